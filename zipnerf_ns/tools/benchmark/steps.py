"""The benchmark's parts that time whole steps and pictures."""

from __future__ import annotations

from collections.abc import Collection
from typing import Optional

import torch

from nerfstudio.cameras.cameras import Cameras

from zipnerf_ns.cameras.rays import ImageRays
from zipnerf_ns.ops import Ops
from zipnerf_ns.tools.benchmark.floors import Cost
from zipnerf_ns.tools.benchmark.parts import optimizer_cost
from zipnerf_ns.tools.benchmark.setup import Bench, Row, capture, set_rays
from zipnerf_ns.tools.benchmark.timing import TINY, Effort, time_calls
from zipnerf_ns.tools.benchmark.works import count_rounds, pixel_work, works

STEP_EFFORT = Effort(4, 10, 100, 0.6)
TWIN_STEP_EFFORT = Effort(1, 1, 4, 1.0)
PICTURE_EFFORT = Effort(1, 3, 10, 0.8)
TWIN_PICTURE_EFFORT = Effort(0, 1, 1, 0.0)
GIB = 2**30


def measure_steps(bench: Bench, parts: Collection[str]) -> None:
    """The bare step (pixels and rays, forward pass, losses, backward pass, both optimisers) and its peak memory."""
    bench.model.train()
    for ops in bench.implementations:
        is_first, expected = ops is bench.implementations[0], 0.0
        for index, rays in enumerate(bench.rays):
            rows = [_row(bench, part, rays) for part in ("step", "memory") if part in parts]
            if expected > bench.twin_seconds and not is_first:
                _leave_out(rows, ops, f"expected to take {expected:.0f} s with its warm-up")
                continue
            try:
                milliseconds = _measure_step(bench, ops, rays, rows)
            except torch.cuda.OutOfMemoryError:
                if is_first:
                    raise
                torch.cuda.empty_cache()
                _leave_out(rows, ops, "out of memory")
                continue
            # One that warms up and one that counts, of the next number of rays.
            following = bench.rays[min(index + 1, len(bench.rays) - 1)]
            expected = 2.0 * milliseconds / 1e3 * following / rays


def _measure_step(bench: Bench, ops: Ops, rays: int, rows: list[Row]) -> float:
    """Fills in a step's rows for one implementation; returns its time, ms."""
    set_rays(bench.trainer, rays)
    is_first = ops is bench.implementations[0]
    effort = TINY if bench.sizes.is_tiny else STEP_EFFORT if is_first else TWIN_STEP_EFFORT
    counts_memory = bench.device.type == "cuda"
    if counts_memory:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    with bench.using(ops):
        milliseconds = time_step(bench, effort)
    peak = torch.cuda.max_memory_allocated(bench.device) / GIB if counts_memory else None
    for row in rows:
        if row.part == "memory":
            row.values[f"{ops.name} GiB"] = peak
            row.notes += [] if counts_memory else ["counted on CUDA only"]
            continue
        row.ms[ops.name] = milliseconds
        row.values[f"{ops.name} rays/s"] = rays / milliseconds * 1e3
        if is_first:
            row.floor_ms = step_floor(bench, rays)
    return milliseconds


def time_step(bench: Bench, effort: Effort) -> float:
    """Wall-clock time of a bare step at the number of rays that is set, ms."""
    trainer = bench.trainer
    return time_calls(bench.device, lambda: trainer.train_iteration(trainer.step), effort)


def step_floor(bench: Bench, rays: int) -> float:
    """The sum over a step's pieces of the least time that each can take, ms."""
    ops = bench.implementations[0]
    batch = capture(bench.model, bench.bundle(rays), ops)
    pieces = [*works(bench, batch, ops, count_rounds(bench, batch)), pixel_work(bench, rays, ops)]
    costs = [cost for piece in pieces for cost in piece.costs()] + [optimizer_cost(bench)]
    return _sum_of_floors(bench, costs)


def _sum_of_floors(bench: Bench, costs: list[Cost]) -> float:
    return sum(bench.ceilings.floor(cost)[0] for cost in costs)


def measure_pictures(bench: Bench) -> None:
    """Whole pictures from a held-out camera, as evaluation and viewer render them."""
    bench.model.eval()
    for ops in bench.implementations:
        is_first, expected = ops is bench.implementations[0], 0.0
        effort = TINY if bench.sizes.is_tiny else PICTURE_EFFORT if is_first else TWIN_PICTURE_EFFORT
        for width, height in bench.sizes.pictures:
            row = _row(bench, "render", width * height, f"{width}x{height}")
            if expected * width * height > bench.twin_seconds and not is_first:
                _leave_out([row], ops, f"expected to take {expected * width * height:.0f} s")
                continue
            camera = resized(bench.trainer.pipeline.datamanager.eval_dataset.cameras[:1], width, height)
            with bench.using(ops):
                milliseconds = time_calls(
                    bench.device, lambda camera=camera: bench.model.get_outputs_for_camera(camera), effort, 3
                )
            expected = milliseconds / 1e3 / (width * height)
            row.ms[ops.name], row.values[f"{ops.name} rays/s"] = milliseconds, 1.0 / expected
            if is_first:
                row.floor_ms = _picture_floor(bench, camera)
    bench.model.train()


def _picture_floor(bench: Bench, camera: Cameras) -> float:
    """As of a step, from the pieces' forward passes on rays of the picture's middle, ms."""
    ops, rays = bench.implementations[0], ImageRays(camera, bench.device, None)
    count = min(len(rays), bench.rays[-1])
    start = (len(rays) - count) // 2
    batch = capture(bench.model, rays.bundle(start, start + count), ops)
    costs = [cost for piece in works(bench, batch, ops, count_rounds(bench, batch)) for cost in piece.costs()]
    return _sum_of_floors(bench, costs) * len(rays) / count


def resized(camera: Cameras, width: int, height: int) -> Cameras:
    """One camera with another picture: square pixels, and the same field of view from left to right."""
    focal = camera.fx.cpu() * width / camera.width.cpu()
    return Cameras(
        camera.camera_to_worlds.cpu(), focal, focal, torch.full_like(focal, width / 2),
        torch.full_like(focal, height / 2), torch.full_like(focal, width, dtype=torch.int64),
        torch.full_like(focal, height, dtype=torch.int64),
    )  # fmt: skip


def _row(bench: Bench, part: str, rays: int, name: Optional[str] = None) -> Row:
    """The part's row for so many rays, begun if there is none."""
    known = [row for row in bench.rows if (row.part, row.rays) == (part, rays)]
    if not known:
        known = [Row(part, name or f"{rays} rays", rays, "whole")]
        bench.rows += known
    return known[0]


def _leave_out(rows: list[Row], ops: Ops, reason: str) -> None:
    for row in rows:
        if row.part == "memory":
            row.values[f"{ops.name} GiB"] = None
        else:
            row.ms[ops.name] = None
        row.notes.append(f"{ops.name}: {reason}")

