"""The progress line's content, with a clock that the test turns."""

from __future__ import annotations

import pytest
import torch

from zipnerf_ns import progress as progress_module
from zipnerf_ns.progress import ProgressLine, format_duration


class Clock:
    """Stands for the time module."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def run(clock: Clock, steps: range, seconds: float, total: int = 100, psnr: float = 20.0, **changes):
    """Lines of a run whose steps take so many seconds each, 512 rays a step."""
    lines = []
    line = ProgressLine(steps.start, total, lines.append, **changes)
    for step in steps:
        clock.now += seconds
        line.update(step, 512, {"psnr": torch.tensor(psnr)})
    return lines, line


def test_a_line_says_step_speed_quality_and_times(clock):
    lines, line = run(clock, range(0, 20), 0.25)
    assert lines == ["step 8/100 (8%)  250 ms/step  2.0 k rays/s  PSNR train 20.00  0:02 passed  0:23 left"]
    line.test_psnr = 27.314
    clock.now += 100.0
    line.update(20, 512, {"psnr": torch.tensor(22.0)})
    # 13 steps since the last line took 103 s; the train PSNR is the mean of the old line's and this one's.
    assert lines[1] == (
        "step 21/100 (21%)  7923 ms/step  0.1 k rays/s  PSNR train 21.00  test 27.31 dB  1:45 passed  10:26 left"
    )


def test_the_first_line_comes_soon_the_others_at_the_interval_and_the_last_step_always(clock):
    lines, _ = run(clock, range(0, 100), 0.5, interval=10.0)
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert steps == [4, 24, 44, 64, 84, 100]
    assert lines[-1].endswith("0:50 passed  0:00 left")


def test_a_resumed_run_counts_its_own_steps_only(clock):
    lines, _ = run(clock, range(60, 65), 1.0)
    assert lines == ["step 62/100 (62%)  1000 ms/step  0.5 k rays/s  PSNR train 20.00  0:02 passed  0:38 left"]


def test_metrics_are_not_read_when_no_line_is_due(clock):
    class Watched(dict):
        reads = 0

        def __getitem__(self, key):
            self.reads += 1
            return super().__getitem__(key)

    metrics = Watched(psnr=torch.tensor(20.0))
    line = ProgressLine(0, 100, lambda text: None)
    clock.now += 0.1
    line.update(0, 512, metrics)
    # The shape checker may look at the mapping, too: only what a line adds counts.
    idle = metrics.reads
    line.update(1, 512, metrics)
    without_a_line = metrics.reads - idle
    clock.now += 60.0
    line.update(2, 512, metrics)
    assert metrics.reads - idle - without_a_line > without_a_line


def test_without_a_psnr_the_line_leaves_it_out(clock):
    lines = []
    line = ProgressLine(0, 2, lines.append)
    clock.now += 4.0
    line.update(0, 1000, {})
    assert lines == ["step 1/2 (50%)  4000 ms/step  0.2 k rays/s  0:04 passed  0:04 left"]


def test_a_clock_that_stands_still_divides_by_nothing(clock):
    lines, _ = run(clock, range(0, 3), 0.0, total=3)
    assert len(lines) == 1 and lines[0].startswith("step 3/3 (100%)") and lines[0].endswith("0:00 left")


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.0, "0:00"),
        (0.49, "0:00"),
        (59.6, "1:00"),
        (61.0, "1:01"),
        (3599.0, "59:59"),
        (3600.0, "1:00:00"),
        (36610.0, "10:10:10"),
    ],
)
def test_durations_read_as_a_clock(seconds, text):
    assert format_duration(seconds) == text
