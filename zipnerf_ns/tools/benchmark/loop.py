"""The benchmark's part that times the trainer's own loop: what a user's steps take, not only the bare ones."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NamedTuple

from zipnerf_ns.tools.benchmark.setup import Bench, Row, set_rays
from zipnerf_ns.tools.benchmark.steps import STEP_EFFORT, time_step
from zipnerf_ns.tools.benchmark.timing import TINY, synchronize

PREPARATION_STEPS = 10
"""Of the loop, before its time is taken."""
LOOP_MS = 2e3
"""As many steps are timed as bare ones take this long."""


class LoopTimes(NamedTuple):
    """What a run of the loop took."""

    step_ms: float
    """A step, with the loop's Python and its logs, but neither evaluations nor checkpoints."""
    evaluation_ms: float
    """An evaluation with everything that follows from it, such as its pictures' way into the event file."""


class CheckpointTimes(NamedTuple):
    """What a checkpoint took that was written while the training went on."""

    cost_ms: float
    """By how much the training came later: the wait for the copy, and steps that were slower meanwhile."""
    blocked_ms: float
    """The wait for the copy of the state."""
    write_ms: float
    """From there until the file was whole."""


def measure_loops(bench: Bench) -> None:
    """The trainer's own loop: logging in it, an evaluation and a checkpoint each spread over the steps between two."""
    # The first evaluation of a process compiles what only evaluations use.
    bench.trainer.pipeline.get_eval_image_metrics_and_images(step=0)
    for rays in bench.rays:
        set_rays(bench.trainer, rays)
        bench.model.train()
        bare = time_step(bench, TINY if bench.sizes.is_tiny else STEP_EFFORT)
        least, most = bench.sizes.loop_steps
        steps = min(max(int(LOOP_MS / bare) // least * least, least), most)
        loop, checkpoint = time_loop(bench, steps, least), time_checkpoint(bench, bare)
        config, name = bench.trainer.config, bench.implementations[0].name
        spread = loop.evaluation_ms / config.steps_per_eval_image + checkpoint.cost_ms / config.steps_per_save
        row = Row("loop", f"{rays} rays", rays, "whole", {name: loop.step_ms + spread})
        row.values = dict(
            bare_ms=bare, loop_only_ms=loop.step_ms, evaluation_ms=loop.evaluation_ms,
            checkpoint_ms=checkpoint.cost_ms, checkpoint_blocked_ms=checkpoint.blocked_ms,
            checkpoint_write_ms=checkpoint.write_ms, steps=steps, steps_per_evaluation=config.steps_per_eval_image,
            steps_per_checkpoint=config.steps_per_save,
        )  # fmt: skip
        row.values[f"{name} rays/s"] = rays / row.ms[name] * 1e3
        bench.rows.append(row)


def time_loop(bench: Bench, steps: int, rest: int) -> LoopTimes:
    """Runs the loop so that an evaluation falls behind the steps that count; its start-up and its checkpoints do not.

    Args:
        bench: with the number of rays set.
        steps: that count.
        rest: steps beginning with the one that is evaluated, by whose longer time the evaluation is known.
    """
    trainer, config = bench.trainer, bench.trainer.config
    evaluated = config.steps_per_eval_image * max(1, -(-(steps + PREPARATION_STEPS) // config.steps_per_eval_image))
    first = evaluated - steps
    trainer._start_step, config.max_num_iterations = first - PREPARATION_STEPS, evaluated + rest + 1
    # What the trainer says to whoever trains would drown the benchmark's table.
    with _marks(bench, {first, evaluated, evaluated + rest}) as marks, redirect_stdout(io.StringIO()):
        trainer.train()
    step_ms = (marks[evaluated] - marks[first]) / steps
    return LoopTimes(step_ms, max(marks[evaluated + rest] - marks[evaluated] - rest * step_ms, 0.0))


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


def time_checkpoint(bench: Bench, bare_ms: float) -> CheckpointTimes:
    """Trains bare steps while a checkpoint is written; the second of two, for the first one reserves memory.

    Args:
        bench: with the number of rays set.
        bare_ms: what such a step takes otherwise.
    """
    return [_time_one_checkpoint(bench, bare_ms) for _ in range(2)][-1]


def _time_one_checkpoint(bench: Bench, bare_ms: float) -> CheckpointTimes:
    trainer, steps = bench.trainer, 0
    begin = _now(bench)
    trainer.begin_checkpoint(trainer.step)
    blocked = _now(bench) - begin
    while trainer.checkpoints.is_writing:
        trainer.train_iteration(trainer.step)
        steps += 1
    trainer.checkpoints.wait()
    total = _now(bench) - begin
    return CheckpointTimes(max(total - steps * bare_ms, blocked), blocked, total - blocked)


def _now(bench: Bench) -> float:
    synchronize(bench.device)
    return time.perf_counter() * 1e3
