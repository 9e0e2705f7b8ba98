"""Times of work that a device may still be doing after Python has gone on: medians, after a warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

FLUSH_BYTES = 2**28
"""Written before every timed piece of work on a GPU: more than its cache holds."""
FLUSHES = 4
"""Times that it is written: a third of a millisecond, in which Python launches what follows."""


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


THOROUGH = Effort(3, 5, 40, 0.15)
BRIEF = Effort(1, 1, 5, 0.25)
"""For what is slow."""
TINY = Effort(1, 1, 2, 0.01)
"""For seeing whether it works."""


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_stages(device: torch.device, stages: Sequence[Callable[[Any], Any]], effort: Effort) -> tuple[float, ...]:
    """Median time of each stage, ms; a stage is called with what the one before it returned, the first with None.

    On a GPU this is the device's own time between two events. Before each stage a buffer larger than the cache is
    written: what a stage reads then comes from memory, and the device need not wait for Python's launches, as it need
    not in the middle of a large step.
    """
    watch = _DeviceWatch(device) if device.type == "cuda" else _HostWatch()
    for _ in range(effort.warmups):
        _run_once(stages, watch)
    watch.collect()
    _run_once(stages, watch)
    times = [watch.collect()]
    for _ in range(_repetitions(effort, sum(times[0]) / 1e3) - 1):
        _run_once(stages, watch)
    rest = watch.collect()
    times += [rest[start : start + len(stages)] for start in range(0, len(rest), len(stages))]
    return tuple(statistics.median(column) for column in zip(*times, strict=True))


def time_calls(device: torch.device, call: Callable[[], Any], effort: Effort, rounds: int = 5) -> float:
    """Median wall-clock time of one call among many in a row, ms: what Python and the device take together.

    Args:
        device: is waited for before and after every round.
        call: is made again and again.
        effort: counts calls.
        rounds: of calls, of whose means this is the median.
    """
    for _ in range(effort.warmups):
        call()
    first = _time_round(device, call, 1)
    calls = _repetitions(effort, first / 1e3)
    if calls == 1:
        return first
    rounds = min(rounds, calls)
    return statistics.median(_time_round(device, call, calls // rounds) for _ in range(rounds))


def _time_round(device: torch.device, call: Callable[[], Any], calls: int) -> float:
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - begin) / calls * 1e3


def _repetitions(effort: Effort, seconds: float) -> int:
    return min(max(int(effort.seconds / max(seconds, 1e-9)), effort.least), effort.most)


def _run_once(stages: Sequence[Callable[[Any], Any]], watch: Any) -> None:
    value = None
    for stage in stages:
        value = watch.time(stage, value)


class _HostWatch:
    """For devices that Python waits for anyway."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def time(self, stage: Callable[[Any], Any], value: Any) -> Any:
        """Runs one stage and notes its time."""
        begin = time.perf_counter()
        value = stage(value)
        self._times.append((time.perf_counter() - begin) * 1e3)
        return value

    def collect(self) -> list[float]:
        """All times noted since the last call, ms."""
        times, self._times = self._times, []
        return times


class _DeviceWatch:
    """By events in the device's queue, which are read only when all is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def time(self, stage: Callable[[Any], Any], value: Any) -> Any:
        """Runs one stage with nothing in the cache, between two events."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(FLUSHES):
            self._buffer.zero_()
        begin.record()
        value = stage(value)
        end.record()
        self._marks.append((begin, end))
        return value

    def collect(self) -> list[float]:
        """All times since the last call, ms; waits for the device."""
        torch.cuda.synchronize(self._device)
        times = [begin.elapsed_time(end) for begin, end in self._marks]
        self._marks = []
        return times
