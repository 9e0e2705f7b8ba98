"""Times of work that a device may still be doing after Python has gone on: medians, after a warm-up.

(triton.testing.do_bench would need a GPU, and writes too little between two runs to hide Python's launches.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

FLUSH_BYTES, FLUSHES = 2**28, 4
"""What is written before every timed piece of work on a GPU, more than its cache holds, and how often: that takes a
third of a millisecond, in which Python launches what follows."""


class Effort(NamedTuple):
    """How often something is repeated."""

    warmups: int
    """Runs before the first that counts: kernels are compiled and memory is reserved in them."""
    least: int
    """Runs that count, however long they take."""
    most: int
    """Runs that count, however short they are."""
    seconds: float
    """Between ``least`` and ``most``, as many as fit into this time."""

    def repetitions(self, milliseconds: float) -> int:
        """How often what takes so long is run."""
        return min(max(int(self.seconds * 1e3 / max(milliseconds, 1e-6)), self.least), self.most)


THOROUGH = Effort(3, 5, 40, 0.15)
BRIEF = Effort(1, 1, 5, 0.25)
"""For what is slow."""
TINY = Effort(1, 1, 2, 0.01)
"""For seeing whether it works."""


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def time_stages(device: torch.device, stages: Sequence[Callable[[Any], Any]], effort: Effort) -> tuple[float, ...]:
    """Median time of each stage, ms; a stage is called with what the one before it returned, the first with None.

    On a GPU this is the device's own time between two events. Before each stage a buffer larger than the cache is
    written: what a stage reads then comes from memory, and the device need not wait for Python's launches, as it need
    not in the middle of a large step.
    """
    buffer = torch.empty(FLUSH_BYTES if device.type == "cuda" else 0, dtype=torch.uint8, device=device)

    def stamp() -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def run_once() -> list[tuple[Any, Any]]:
        value, stamps = None, []
        for stage in stages:
            for _ in range(FLUSHES):
                buffer.zero_()
            begin = stamp()
            value = stage(value)
            stamps.append((begin, stamp()))
        return stamps

    def elapsed(begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) if device.type == "cuda" else (end - begin) * 1e3

    for _ in range(effort.warmups):
        run_once()
    synchronize(device)
    runs = [run_once()]
    synchronize(device)
    runs += [run_once() for _ in range(effort.repetitions(sum(elapsed(*stamps) for stamps in runs[0])) - 1)]
    # Events are read only when all is done.
    synchronize(device)
    return tuple(statistics.median(elapsed(*stamps) for stamps in column) for column in zip(*runs, strict=True))


def time_calls(device: torch.device, call: Callable[[], Any], effort: Effort, rounds: int = 5) -> float:
    """Median wall-clock time of one call among many in a row, ms: what Python and the device take together.

    Args:
        device: is waited for before and after every round.
        call: is made again and again.
        effort: counts calls.
        rounds: of calls, of whose means this is the median.
    """

    def time_round(calls: int) -> float:
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        return (time.perf_counter() - begin) / calls * 1e3

    for _ in range(effort.warmups):
        call()
    first = time_round(1)
    calls = effort.repetitions(first)
    if calls == 1:
        return first
    rounds = min(rounds, calls)
    return statistics.median(time_round(calls // rounds) for _ in range(rounds))
