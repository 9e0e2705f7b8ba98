"""Many trials: one after another, or one at a time on each of several GPUs."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from zipnerf_ns.tools.trials.trial import Trial, read_result, run_trial

SET_UP_LIMIT, LIMIT_FACTOR = 900.0, 4.0
"""A trial is ended after this many seconds, and this many times those that it trains."""


class Planned(NamedTuple):
    """A trial that is to be run."""

    trial: Trial
    folder: Path
    """Of this trial alone."""
    name: str
    """By which a person knows it."""


class Finished(NamedTuple):
    """What came of a trial."""

    index: int
    """Among the planned ones."""
    result: dict[str, Any]
    was_there: bool
    """Kept from an earlier run."""


def run_all(
    planned: Sequence[Planned], timeout: float | None, resume: bool, gpus: Sequence[str] = ()
) -> Iterator[Finished]:
    """Runs trials and gives their results as they come.

    With several GPUs each trial has one to itself and they share the processor's cores and the disk.

    Args:
        planned: in the order in which they begin.
        timeout: seconds after which a trial is ended; None for a generous limit by its training time.
        resume: take results of exactly these trials that are in their folders.
        gpus: as CUDA_VISIBLE_DEVICES names them; none runs one trial after another on what this process sees.
    """
    waiting = []
    for index, each in enumerate(planned):
        result = read_result(each.folder, each.trial) if resume else None
        if result is None:
            waiting.append(index)
        else:
            yield Finished(index, result, True)

    def run(index: int, gpu: str | None) -> Finished:
        trial, folder, _ = planned[index]
        limit = timeout
        if limit is None and trial.seconds is not None:
            limit = SET_UP_LIMIT + LIMIT_FACTOR * trial.seconds
        return Finished(index, run_trial(trial, folder, limit, gpu), False)

    if len(gpus) < 2:
        for index in waiting:
            yield run(index, next(iter(gpus), None))
        return
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for gpu in gpus:
        free.put(gpu)

    def run_on_a_free_one(index: int) -> Finished:
        gpu = free.get()
        try:
            return run(index, gpu)
        finally:
            free.put(gpu)

    # An interrupt reaches the trials by itself, whose results then say so.
    pool = ThreadPoolExecutor(len(gpus))
    try:
        for future in as_completed([pool.submit(run_on_a_free_one, index) for index in waiting]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
