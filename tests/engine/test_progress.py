"""The clock's and the progress line's content, with a time that the test turns and a device that lags behind."""

from __future__ import annotations

import pytest
import torch

from zipnerf_ns.engine import progress as progress_module
from zipnerf_ns.engine.progress import ProgressLine, StepTimer, TrainingClock, format_duration


class Time:
    """Stands for the time module, and for a device that computes what it was given one after the other."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.device_done = 1000.0
        self.waits = 0

    def monotonic(self) -> float:
        return self.now

    def launch(self, python: float, device: float) -> None:
        """Python works for so long, then the device on what it was given."""
        self.now += python
        self.device_done = max(self.device_done, self.now) + device

    def synchronize(self) -> None:
        self.waits += 1
        self.now = max(self.now, self.device_done)


@pytest.fixture
def time(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr(progress_module, "time", time)
    return time


def start(time: Time, first: int = 0, total: int = 100, **changes) -> tuple[ProgressLine, list[str]]:
    lines: list[str] = []
    return ProgressLine(first, total, TrainingClock(time.synchronize), lines.append, **changes), lines


def run(time: Time, steps: range, seconds: float, total: int = 100, psnr: float = 20.0, **changes):
    """Lines of a run whose steps take so many seconds of Python each, 512 rays a step."""
    line, lines = start(time, steps.start, total, **changes)
    for step in steps:
        time.now += seconds
        line.update(step, 512, {"psnr": torch.tensor(psnr)})
    return lines, line


def test_a_line_says_step_speed_quality_and_times(time):
    lines, line = run(time, range(0, 20), 0.25)
    assert lines == ["step 8/100 (8%)  250 ms/step  2.0 k rays/s  PSNR train 20.00 dB  0:02 passed  0:23 left"]
    line.test_psnr = 27.314
    time.now += 100.0
    line.update(20, 512, {"psnr": torch.tensor(22.0)})
    # 13 steps since the last line took 103 s; the train PSNR is the mean of the old line's and this one's.
    assert lines[1] == (
        "step 21/100 (21%)  7923 ms/step  0.1 k rays/s  PSNR train 21.00 dB, test 27.31 dB  1:45 passed  10:26 left"
    )


def test_fast_steps_are_told_to_a_tenth_of_a_millisecond(time):
    lines, _ = run(time, range(0, 1000), 0.0052, total=1000)
    assert "  5.2 ms/step  98.5 k rays/s  " in lines[0]


def test_the_first_line_comes_soon_the_others_at_the_interval_and_the_last_step_always(time):
    lines, _ = run(time, range(0, 100), 0.5, interval=10.0)
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert steps == [4, 24, 44, 64, 84, 100]
    assert lines[-1].endswith("0:50 passed  0:00 left")


def test_speed_and_time_left_are_the_devices(time):
    """Python is done with a step in 10 ms, the device in 50: its queue is 8 s long when the first line is due."""
    line, lines = start(time, total=1000, interval=2.0)
    for step in range(1000):
        time.launch(0.01, 0.05)
        line.update(step, 1000, {})
    speeds = [(float(text.split("  ")[1].split()[0]), float(text.split("  ")[2].split()[0])) for text in lines]
    assert speeds == [(50.0, 20.0)] * len(lines) and len(lines) >= 2
    assert lines[-1].startswith("step 1000/1000 (100%)") and lines[-1].endswith("0:50 passed  0:00 left")


def test_the_device_is_not_waited_for_when_no_line_is_due(time):
    line, lines = start(time, total=1000)
    time.launch(0.001, 0.05)
    line.update(0, 512, {})
    after_first = time.waits
    for step in range(1, 100):
        time.launch(0.001, 0.05)
        line.update(step, 512, {})
    assert lines == [] and time.waits == after_first == 1


def test_the_first_step_compiles_and_says_nothing_about_speed(time):
    """Its minute would be taken for a step's, and half a year announced."""
    line, lines = start(time, total=20_000)
    time.now += 60.0
    line.update(0, 1000, {"psnr": torch.tensor(9.0)})
    assert lines == ["step 1/20000 (0%)  PSNR train 9.00 dB  1:00 passed"]
    for step in range(1, 41):
        time.now += 0.25
        line.update(step, 1000, {"psnr": torch.tensor(9.0)})
    assert lines[1:] == ["step 41/20000 (0%)  250 ms/step  4.0 k rays/s  PSNR train 9.00 dB  1:10 passed  1:23:10 left"]


def test_a_resumed_run_counts_its_own_steps_only(time):
    lines, _ = run(time, range(60, 65), 1.0)
    assert lines == ["step 62/100 (62%)  1000 ms/step  0.5 k rays/s  PSNR train 20.00 dB  0:02 passed  0:38 left"]


@pytest.mark.parametrize("recurs", [True, False])
def test_evaluations_count_for_the_time_left_but_not_as_steps(time, recurs):
    """100 steps of 0.1 s and 5 s beside them: the rest takes them again only if they belong to the run."""
    line, lines = start(time, total=1000, interval=20.0)
    line.update(0, 1000, {})
    for step in range(1, 100):
        time.now += 0.1
        line.update(step, 1000, {})
    with line.clock.pause(recurs):
        time.now += 5.0
    time.now += 10.0
    lines.clear()
    line.update(199, 1000, {})
    left = 800 * (0.1 + (5.0 / 200 if recurs else 0.0))
    assert "  100 ms/step  10.0 k rays/s  " in lines[0] and lines[0].endswith(f"{format_duration(left)} left")


def test_the_clock_leaves_out_pauses_but_not_what_the_device_still_had_to_do(time):
    clock = TrainingClock(time.synchronize)
    time.launch(0.5, 2.0)
    with clock.pause():
        time.launch(0.1, 7.0)
    time.launch(0.5, 0.0)
    assert clock.seconds() == pytest.approx(3.0) and clock.paused == pytest.approx(7.1)
    with pytest.raises(KeyError), clock.pause():
        time.now += 4.0
        raise KeyError
    assert clock.seconds() == pytest.approx(3.0)


def test_laps_are_means_over_their_own_steps(time):
    timer = StepTimer(TrainingClock(time.synchronize))
    time.launch(0.0, 9.0)
    assert timer.lap(1) is None
    time.launch(0.0, 2.0)
    assert timer.lap(5) == pytest.approx(0.5)
    time.launch(0.0, 3.0)
    assert timer.lap(6) == pytest.approx(3.0)


def test_metrics_are_not_read_when_no_line_is_due(time):
    class Watched(dict):
        reads = 0

        def __getitem__(self, key):
            self.reads += 1
            return super().__getitem__(key)

    metrics = Watched(psnr=torch.tensor(20.0))
    line, _ = start(time)
    time.now += 0.1
    line.update(0, 512, metrics)
    # The shape checker may look at the mapping, too: only what a line adds counts.
    idle = metrics.reads
    line.update(1, 512, metrics)
    without_a_line = metrics.reads - idle
    time.now += 60.0
    line.update(2, 512, metrics)
    assert metrics.reads - idle - without_a_line > without_a_line


def test_without_a_psnr_the_line_leaves_it_out(time):
    line, lines = start(time, total=3)
    for step in range(2):
        time.now += 4.0
        line.update(step, 1000, {})
    assert lines == ["step 1/3 (33%)  0:04 passed"]
    time.now += 4.0
    line.update(2, 1000, {})
    assert lines[1] == "step 3/3 (100%)  4000 ms/step  0.2 k rays/s  0:12 passed  0:00 left"


def test_a_clock_that_stands_still_divides_by_nothing(time):
    lines, _ = run(time, range(0, 3), 0.0, total=3)
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
