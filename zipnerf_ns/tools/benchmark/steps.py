"""The benchmark's parts that time whole steps, the trainer's own loop around them, and pictures."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NamedTuple

import torch

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle

from zipnerf_ns.cameras.rays import ImageRays
from zipnerf_ns.tools.benchmark.floors import Cost
from zipnerf_ns.tools.benchmark.pieces import count_rounds, optimizer_cost, pixel_work, works
from zipnerf_ns.tools.benchmark.setup import Bench, Row, capture, leave_out
from zipnerf_ns.tools.benchmark.timing import Effort, synchronize, time_calls

STEP_EFFORTS = Effort(4, 10, 100, 0.6), Effort(1, 1, 4, 1.0)
"""Of the method's own implementation, and of its twin."""
PICTURE_EFFORTS = Effort(1, 3, 10, 0.8), Effort(0, 1, 1, 0.0)
GIB = 2**30
PREPARATION_STEPS = 10
"""Of the loop, before its time is taken."""
LOOP_MS = 2e3
"""As many steps are timed as bare ones take this long."""


class Case(NamedTuple):
    """Something whole that is timed on every implementation."""

    rays: int
    rows: list[Row]
    prepare: Callable[[], Callable[[], Any]]
    """What is to be timed, ready to be called."""
    floor: Callable[[], float]
    """The least time that it takes here, ms."""


def measure_steps(bench: Bench, parts: Collection[str]) -> None:
    """The bare step (pixels and rays, forward pass, losses, backward pass, both optimizers) and its peak memory."""
    bench.model.train()
    cases = []
    for rays in bench.rays:
        rows = [bench.row(part, f"{rays} rays", rays) for part in ("step", "memory") if part in parts]
        cases.append(Case(rays, rows, lambda rays=rays: _step(bench, rays), lambda rays=rays: step_floor(bench, rays)))
    _measure(bench, cases, STEP_EFFORTS)


def measure_pictures(bench: Bench) -> None:
    """Whole pictures from a held-out camera, as evaluation and viewer render them."""
    bench.model.eval()
    held_out, cases = bench.trainer.pipeline.datamanager.eval_dataset.cameras[:1], []
    for width, height in bench.sizes.pictures:
        camera, rays = resized(held_out, width, height), width * height
        cases.append(Case(
            rays, [bench.row("render", f"{width}x{height}", rays)],
            lambda camera=camera: lambda: bench.model.get_outputs_for_camera(camera),
            lambda camera=camera: _picture_floor(bench, camera),
        ))  # fmt: skip
    _measure(bench, cases, PICTURE_EFFORTS)
    bench.model.train()


def _measure(bench: Bench, cases: list[Case], efforts: tuple[Effort, Effort]) -> None:
    """Fills in the cases' rows, but for what would take the twin too long or too much memory."""
    has_peak = bench.device.type == "cuda"
    for ops in bench.implementations:
        effort, ms_per_ray = bench.effort(ops, *efforts), 0.0
        for case in cases:
            seconds = (effort.warmups + effort.least) * ms_per_ray * case.rays / 1e3
            if bench.is_twin(ops) and seconds > bench.twin_seconds:
                leave_out(case.rows, ops, f"expected to take {seconds:.0f} s")
                continue
            if has_peak:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(bench.device)
            with bench.lacking(ops, case.rows), bench.using(ops):
                milliseconds = time_calls(bench.device, case.prepare(), effort)
                ms_per_ray = milliseconds / case.rays
                for row in case.rows:
                    if row.part == "memory":
                        peak = torch.cuda.max_memory_allocated(bench.device) / GIB if has_peak else None
                        row.values[f"{ops.name} GiB"] = peak
                        row.notes += [] if has_peak else ["counted on CUDA only"]
                        continue
                    row.ms[ops.name], row.values[f"{ops.name} rays/s"] = milliseconds, 1e3 / ms_per_ray
                    if not bench.is_twin(ops):
                        row.floor_ms = case.floor()


def _step(bench: Bench, rays: int) -> Callable[[], Any]:
    """A bare step at a number of rays, ready to be called."""
    bench.set_rays(rays)
    return lambda: bench.trainer.train_iteration(bench.trainer.step)


def step_floor(bench: Bench, rays: int) -> float:
    """The sum over a step's pieces of the least time that each can take, ms."""
    pixels = pixel_work(bench, rays)
    return _floor(bench, bench.bundle(rays)) + _sum_of_floors(bench, [*pixels.costs(), optimizer_cost(bench)])


def _picture_floor(bench: Bench, camera: Cameras) -> float:
    """As of a step, from the pieces' forward passes on rays of the picture's middle, ms."""
    rays = ImageRays(camera, bench.device, None)
    count = min(len(rays), bench.rays[-1])
    start = (len(rays) - count) // 2
    return _floor(bench, rays.bundle(start, start + count)) * len(rays) / count


def _floor(bench: Bench, bundle: RayBundle) -> float:
    batch = capture(bench.model, bundle)
    pieces = works(bench, batch, count_rounds(bench, batch))
    return _sum_of_floors(bench, [cost for piece in pieces for cost in piece.costs()])


def _sum_of_floors(bench: Bench, costs: list[Cost]) -> float:
    return sum(bench.ceilings.floor(cost)[0] for cost in costs)


def resized(camera: Cameras, width: int, height: int) -> Cameras:
    """One camera with another picture: square pixels, and the same field of view from left to right."""
    focal = camera.fx.cpu() * width / camera.width.cpu()
    return Cameras(
        camera.camera_to_worlds.cpu(), focal, focal, torch.full_like(focal, width / 2),
        torch.full_like(focal, height / 2), torch.full_like(focal, width, dtype=torch.int64),
        torch.full_like(focal, height, dtype=torch.int64),
    )  # fmt: skip


def measure_loops(bench: Bench) -> None:
    """The trainer's own loop: logging in it, an evaluation and a checkpoint each spread over the steps between two."""
    # The first evaluation of a process compiles what only evaluations use.
    bench.trainer.pipeline.get_eval_image_metrics_and_images(step=0)
    name = bench.implementations[0].name
    for rays in bench.rays:
        bench.model.train()
        bare = time_calls(bench.device, _step(bench, rays), bench.effort(bench.implementations[0], *STEP_EFFORTS))
        least, most = bench.sizes.loop_steps
        steps = min(max(int(LOOP_MS / bare) // least * least, least), most)
        values = time_loop(bench, steps, least) | time_checkpoint(bench, bare)
        evaluation, checkpoint = bench.trainer.config.steps_per_eval_image, bench.trainer.config.steps_per_save
        row = bench.row("loop", f"{rays} rays", rays)
        row.ms[name] = values["loop_only_ms"] + values["evaluation_ms"] / evaluation
        row.ms[name] += values["checkpoint_ms"] / checkpoint
        row.values = values | {
            "bare_ms": bare, "steps": steps, "steps_per_evaluation": evaluation, "steps_per_checkpoint": checkpoint,
            f"{name} rays/s": rays / row.ms[name] * 1e3,
        }  # fmt: skip


def time_loop(bench: Bench, steps: int, rest: int) -> dict[str, float]:
    """Runs the loop so that an evaluation falls behind the steps that count; its start-up and its checkpoints do not.

    Args:
        bench: with the number of rays set.
        steps: that count.
        rest: steps beginning with the one that is evaluated, by whose longer time the evaluation is known.
    Returns:
        ``loop_only_ms`` of a step, with the loop's Python and its logs, but neither evaluations nor checkpoints, and
        ``evaluation_ms``, with everything that follows from one, such as its pictures' way into the event file.
    """
    trainer, config = bench.trainer, bench.trainer.config
    evaluated = config.steps_per_eval_image * max(1, -(-(steps + PREPARATION_STEPS) // config.steps_per_eval_image))
    first = evaluated - steps
    trainer._start_step, config.max_num_iterations = first - PREPARATION_STEPS, evaluated + rest + 1
    # What the trainer says to whoever trains would drown the benchmark's table.
    with _marks(bench, {first, evaluated, evaluated + rest}) as marks, redirect_stdout(io.StringIO()):
        trainer.train()
    step_ms = (marks[evaluated] - marks[first]) / steps
    evaluation_ms = max(marks[evaluated + rest] - marks[evaluated] - rest * step_ms, 0.0)
    return {"loop_only_ms": step_ms, "evaluation_ms": evaluation_ms}


@contextmanager
def _marks(bench: Bench, steps: set[int]) -> Iterator[dict[int, float]]:
    """Within, the times are noted at which some steps of the trainer begin, ms, and no checkpoint is written."""
    trainer, marks = bench.trainer, {}
    iterate = trainer.train_iteration

    def iteration(step: int) -> Any:
        if step in steps:
            marks[step] = _now(bench)
        return iterate(step)

    changed: dict[str, Callable[[int], Any]] = {"train_iteration": iteration}
    changed |= dict.fromkeys(("begin_checkpoint", "save_checkpoint"), lambda step: None)
    for name, method in changed.items():
        setattr(trainer, name, method)
    try:
        yield marks
    finally:
        for name in changed:
            delattr(trainer, name)


def time_checkpoint(bench: Bench, bare_ms: float) -> dict[str, float]:
    """Trains bare steps while a checkpoint is written; the second of two, for the first one reserves memory.

    Args:
        bench: with the number of rays set.
        bare_ms: what such a step takes otherwise.
    Returns:
        ``checkpoint_ms`` by which the training comes later: the wait for the copy of the state, which is
        ``checkpoint_blocked_ms``, and steps that are slower meanwhile. ``checkpoint_write_ms`` go by from the copy
        until the file is whole.
    """
    trainer = bench.trainer
    for _ in range(2):
        steps, begin = 0, _now(bench)
        trainer.begin_checkpoint(trainer.step)
        blocked = _now(bench) - begin
        while trainer.checkpoints.is_writing:
            trainer.train_iteration(trainer.step)
            steps += 1
        trainer.checkpoints.wait()
        total = _now(bench) - begin
    cost = max(total - steps * bare_ms, blocked)
    return {"checkpoint_ms": cost, "checkpoint_blocked_ms": blocked, "checkpoint_write_ms": total - blocked}


def _now(bench: Bench) -> float:
    synchronize(bench.device)
    return time.perf_counter() * 1e3
