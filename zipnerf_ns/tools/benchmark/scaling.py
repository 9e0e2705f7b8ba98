"""How the encoding's time grows with rays, samples, levels, features and tables: exponents, fitted."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence

import torch

from zipnerf_ns.encoding import AntiAliasedHashEncoding, HashGridConfig
from zipnerf_ns.functional.cones import Cones
from zipnerf_ns.tools.benchmark.setup import Batch, Bench, Row, capture
from zipnerf_ns.tools.benchmark.timing import TINY, Effort
from zipnerf_ns.tools.benchmark.works import Work

SCALING_EFFORT = Effort(2, 5, 15, 0.08)
SAMPLES = (16, 24, 32, 48, 64)
FEATURES = (1, 2, 4, 8)
TOLERANCE = 0.15
"""By which an exponent may miss 1 and still be called linear: caches and launches are not free of size."""


def measure_scaling(bench: Bench) -> None:
    """Times the rendered round's encoding, one of its sizes varied at a time."""
    bench.model.train()
    ops = bench.implementations[0]
    batch = capture(bench.model, bench.bundle(bench.rays[-1]), ops)
    effort = TINY if bench.sizes.is_tiny else SCALING_EFFORT
    for sweep, values, cases in _sweeps(bench, batch):
        pieces = (_work(bench, *case, batch.channels[-1].dtype) for case in cases)
        times = [piece.time(bench.device, effort) for piece in pieces]
        wholes = [sum(pair) for pair in times]
        exponent = slope(values, wholes)
        row = Row("scaling", sweep, bench.rays[-1], "whole")
        row.values = {
            "values": list(values), f"{ops.name} forward ms": [forward for forward, _ in times],
            f"{ops.name} backward ms": [backward for _, backward in times], "ms": wholes, "exponent": exponent,
            "verdict": verdict(exponent),
        }  # fmt: skip
        bench.rows.append(row)


Case = tuple[HashGridConfig, Cones]


def _sweeps(bench: Bench, batch: Batch) -> Iterator[tuple[str, Sequence[int], Iterator[Case]]]:
    """What is varied, over which values, and the grid and intervals of each value, made when they are needed."""
    grid, ops = bench.model.config.grid, bench.implementations[0]
    usual = bench.model.field.cones(batch.rays, batch.rounds[-1].tdist)
    before = batch.rounds[-2]

    def first(rays: int) -> Cones:
        parts = [tensor if tensor is None else tensor[:rays] for tensor in usual[:-1]]
        return Cones(*parts, usual.aabb)

    def drawn(samples: int) -> Cones:
        jitter = torch.rand_like(batch.rays.near)
        _, tdist = ops.draw_intervals(
            before.sdist, before.weights, samples, jitter, 1.0, batch.rays.near, batch.rays.far
        )
        return bench.model.field.cones(batch.rays, tdist)

    def with_grid(**changes: int) -> Case:
        return dataclasses.replace(grid, **changes), usual

    rays = [bench.rays[-1] // part for part in (8, 4, 2, 1)]
    levels = sorted({max(2, round(grid.num_levels * share)) for share in (0.4, 0.7, 1.0)})
    yield "rays", rays, ((grid, first(count)) for count in rays)
    yield "samples a ray", SAMPLES, ((grid, drawn(count)) for count in SAMPLES)
    yield "levels", levels, (with_grid(num_levels=count) for count in levels)
    yield "features a level", FEATURES, (with_grid(features_per_level=count) for count in FEATURES)
    sizes = bench.sizes.log2_tables
    yield "entries a level", [2**size for size in sizes], (with_grid(log2_hashmap_size=size) for size in sizes)


def _work(bench: Bench, grid: HashGridConfig, cones: Cones, dtype: torch.dtype) -> Work:
    ops = bench.implementations[0]
    encoding = AntiAliasedHashEncoding(grid, bench.model.config.prefilter).to(bench.device)
    return Work("scaling", "encode", lambda: (encoding(cones, ops, dtype=dtype),), (), (encoding.hash_table,))


def slope(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The exponent p of the power law times = c * sizes^p that fits best, by least squares of the logarithms."""
    fit = statistics.linear_regression([math.log(size) for size in sizes], [math.log(time) for time in times])
    return fit.slope


def verdict(exponent: float) -> str:
    """An exponent in words."""
    if abs(exponent - 1.0) <= TOLERANCE:
        return "linear"
    return "less than linear" if exponent < 1.0 else "MORE THAN LINEAR"
