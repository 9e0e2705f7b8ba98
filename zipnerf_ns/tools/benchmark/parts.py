"""The benchmark's parts that time a step's pieces one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

import torch

from zipnerf_ns.ops import Ops
from zipnerf_ns.tools.benchmark.floors import Cost, num_bytes
from zipnerf_ns.tools.benchmark.setup import Batch, Bench, BenchError, Row, capture, set_rays
from zipnerf_ns.tools.benchmark.timing import time_stages
from zipnerf_ns.tools.benchmark.works import Counts, Work, count_rounds, level_works, pixel_work, works

WORK_PARTS = ("encode", "mlp", "rays", "loss")
"""Parts that consist of works."""
STAGES = ("forward", "backward")


def measure_works(bench: Bench, parts: Collection[str]) -> None:
    """Times the works of some parts at the largest number of rays, on every implementation."""
    rays = bench.rays[-1]
    bench.model.train()
    batch = capture(bench.model, bench.bundle(rays), bench.implementations[0])
    counts = count_rounds(bench, batch)
    for ops in bench.implementations:
        own = batch if ops is bench.implementations[0] else batch.in_rows()
        _time_works(bench, _works_of(bench, own, ops, counts, parts), rays, ops)


def _works_of(bench: Bench, batch: Batch, ops: Ops, counts: Counts, parts: Collection[str]) -> Iterable[Work]:
    yield from (work for work in works(bench, batch, ops, counts) if work.part in parts)
    if "rays" in parts:
        yield pixel_work(bench, len(batch.rays.origins), ops)
    if "encode" in parts:
        yield from level_works(bench, batch, ops, counts)


def _time_works(bench: Bench, some: Iterable[Work], rays: int, ops: Ops) -> None:
    for work in some:
        rows = _rows_of(bench, work, rays)
        try:
            times = work.time(bench.device, bench.effort(ops))
        except torch.cuda.OutOfMemoryError:
            if ops is bench.implementations[0]:
                raise
            torch.cuda.empty_cache()
            for row in rows:
                row.ms[ops.name] = None
                row.notes.append(f"{ops.name}: out of memory")
            continue
        for row, milliseconds in zip(rows, times, strict=True):
            row.ms[ops.name] = milliseconds


def _rows_of(bench: Bench, work: Work, rays: int) -> list[Row]:
    """The rows of a work's stages: new ones with floors, or those that another implementation has begun."""
    stages = STAGES if work.leaves else STAGES[:1]
    known = [row for row in bench.rows if (row.part, row.name) == (work.part, work.name)]
    if known:
        return known
    rows = [
        bench.floor(Row(work.part, work.name, rays, stage), cost)
        for stage, cost in zip(stages, work.costs(), strict=True)
    ]
    bench.rows += rows
    return rows


def optimizer_cost(bench: Bench) -> Cost:
    """Values, gradients and two moments are read; values and moments are written."""
    return Cost(7.0 * num_bytes([network.encoding.hash_table for _, network in bench.networks]))


def measure_optimizer(bench: Bench) -> None:
    """Times a step of the hash tables' optimiser after a real backward pass, at rate 0: the tables stay as they are."""
    set_rays(bench.trainer, bench.rays[-1])
    bench.model.train()
    bench.trainer.train_iteration(0)
    tables = [network.encoding.hash_table for _, network in bench.networks]
    if any(table.grad is None for table in tables):
        raise BenchError("a training step left no gradients of the hash tables: the optimiser cannot be measured.")
    row = bench.floor(Row("optimizer", "hash tables", bench.rays[-1], "whole"), optimizer_cost(bench))
    config = bench.trainer.config.optimizers["hash_tables"]["optimizer"]
    for ops in bench.implementations:
        optimizer = dataclasses.replace(config, lr=0.0, implementation=ops.name).setup(tables)
        (row.ms[ops.name],) = time_stages(
            bench.device, [lambda _, optimizer=optimizer: optimizer.step()], bench.effort(ops)
        )
    bench.rows.append(row)
