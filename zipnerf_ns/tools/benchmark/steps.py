"""The benchmark's parts that time whole steps, the trainer's own loop around them, and pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.benchmark import timer

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation

from zipnerf_ns.cameras.rays import ImageRays
from zipnerf_ns.ops import Ops
from zipnerf_ns.tools.benchmark.pieces import least_ms, picture_pieces, step_pieces
from zipnerf_ns.tools.benchmark.setup import Bench, Row
from zipnerf_ns.tools.benchmark.timing import median_ms

LEAST_CALLS = 2
"""Calls of what is timed, however long it takes."""
PREPARATION_STEPS = 10
"""Steps of the loop before its time is taken."""


def measure_steps(bench: Bench) -> None:
    """The bare step: pixels and rays, forward pass, losses, backward pass, both optimizers."""
    bench.model.train()
    for rays in bench.sizes.rays:
        bench.set_rays(rays)
        row = bench.row("step", f"{rays:,} rays", rays)
        for ops in bench.implementations:
            _time(bench, ops, row, lambda: bench.trainer.train_iteration(bench.trainer.step))
        # The pieces' memory is free again before the next peak is measured.
        row.values["floor ms"] = least_ms(bench, step_pieces(bench, bench.implementations[0], rays))


def measure_pictures(bench: Bench) -> None:
    """Whole pictures from a held-out camera, as evaluation and viewer render them."""
    bench.model.eval()
    held_out = bench.trainer.pipeline.datamanager.eval_dataset.cameras[:1]
    for width, height in bench.sizes.pictures:
        camera = resized(held_out, width, height)
        row = bench.row("render", f"{width}x{height}", width * height)
        for ops in bench.implementations:
            _time(bench, ops, row, lambda camera=camera: bench.model.get_outputs_for_camera(camera))
        # From the pieces of the picture's middle.
        asked = bench.model.asked(camera)
        side = asked.side
        rays = ImageRays(asked.source, bench.device, side=side)
        squares = len(rays) // side**2
        count = min(squares, bench.sizes.rays[-1] // side**2)
        start = (squares - count) // 2 * side**2
        count *= side**2
        middle = rays.bundle(start, start + count)
        least = least_ms(bench, picture_pieces(bench, bench.implementations[0], middle, asked))
        row.values["floor ms"] = least * len(rays) / count
    bench.model.train()


def _time(bench: Bench, ops: Ops, row: Row, run: Callable[[], Any]) -> None:
    """Fills in a row's time and peak of memory, but not where they would take the twin too long or too much memory."""
    column, on_cuda = f"{ops.name} ms", bench.device.type == "cuda"
    known = [other for other in bench.rows if other.part == row.part and column in other.values]
    if known and bench.is_twin(ops):
        seconds = LEAST_CALLS * known[-1].values[column] * row.rays / known[-1].rays / 1e3
        if seconds > bench.twin_seconds:
            bench.left_out.append(f"{row.part} {row.name}, {ops.name}: expected to take {seconds:.0f} s")
            return
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    with bench.running(ops, f"{row.part} {row.name}"):
        milliseconds = median_ms(run, bench.sizes.seconds)
        row.values |= {column: milliseconds, f"{ops.name} M rays/s": row.rays / milliseconds / 1e3}
        if on_cuda:
            row.values[f"{ops.name} GiB"] = torch.cuda.max_memory_allocated(bench.device) / 2**30


def resized(camera: Cameras, width: int, height: int) -> Cameras:
    """One camera with another picture: square pixels, and the same field of view from left to right."""
    focal = camera.fx.cpu() * width / camera.width.cpu()
    return Cameras(camera.camera_to_worlds.cpu(), focal, focal, width / 2, height / 2, width, height)


def measure_loops(bench: Bench) -> None:
    """The trainer's own loop: logging in it, evaluations and checkpoints spread over the steps between them."""
    trainer = bench.trainer
    # The first evaluation of a process compiles what only evaluations use; the first checkpoint reserves memory.
    trainer.pipeline.get_eval_image_metrics_and_images(step=0)
    trainer.save_checkpoint(0)
    for rays in bench.sizes.rays:
        bench.set_rays(rays)
        bench.model.train()
        bare = median_ms(lambda: trainer.train_iteration(trainer.step), bench.sizes.seconds)
        step, pause = time_loop(bench)
        loop = step + pause / trainer.config.steps_per_eval_image
        bench.row("loop", f"{rays:,} rays", rays).values = {
            "bare step ms": bare, "logged step ms": step, "evaluation and checkpoint ms": pause,
            f"loop ms, these every {trainer.config.steps_per_eval_image}": loop, "loop / bare": loop / bare,
        }  # fmt: skip


def time_loop(bench: Bench) -> tuple[float, float]:
    """Runs the loop so that an evaluation and a checkpoint fall behind the steps that count.

    Returns:
        Milliseconds of a step, with the loop's Python and its logs; and those by which an evaluation and a checkpoint
        hold the training up, with what follows from them, such as slower steps while the checkpoint is written.
    """
    trainer, steps, marks = bench.trainer, bench.sizes.loop_steps, {}
    paused = trainer.config.steps_per_eval_image
    first, last = paused - steps, paused + steps

    def mark(step: int) -> None:
        marks[step] = timer()

    before = TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], mark, iters=(first, paused, last))
    trainer._start_step = first - PREPARATION_STEPS
    # What the trainer says to whoever trains would drown the benchmark's tables.
    with (
        patch.object(trainer, "callbacks", [*trainer.callbacks, before]),
        patch.multiple(trainer.config, max_num_iterations=last + 1, steps_per_save=paused),
        redirect_stdout(io.StringIO()),
    ):
        trainer.train()
    plain, interrupted = marks[paused] - marks[first], marks[last] - marks[paused]
    return plain / steps * 1e3, max(interrupted - plain, 0.0) * 1e3
