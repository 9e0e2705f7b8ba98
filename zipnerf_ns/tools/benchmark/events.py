"""What a training has told TensorBoard, read when it has ended."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

# Not from where it lies: the two modules import each other, and only this one may come first.
from nerfstudio.configs.base_config import writer

from zipnerf_ns.engine.progress import IN_USE, RESERVED


class Events(NamedTuple):
    """What a training told TensorBoard, in the order of its steps."""

    times: list[float]
    """Milliseconds a step."""
    reserved: list[float]
    """MiB of the GPU that torch held."""
    in_use: list[float]
    """MiB of the GPU that tensors had taken at the most until then."""
    evaluations: list[float]
    """PSNR of held-out views."""
    seconds: float
    """From its first line to the last."""

    def __str__(self) -> str:
        def cells(values: Sequence[float], digits: int) -> str:
            return " ".join(f"{value:.{digits}f}" for value in tenths(values)) or "not known"

        psnrs = f", {self.evaluations[0]:.2f} to {self.evaluations[-1]:.2f} dB" if self.evaluations else ""
        return (
            f"{self.seconds:.0f} s of steps, {len(self.evaluations)} evaluations{psnrs}; by tenths, ms a step: "
            f"{cells(self.times, 2)}; torch's MiB of the GPU: {cells(self.reserved, 0)}, "
            f"in use at most {max(self.in_use, default=math.nan):.0f}"
        )


def read_events(run: Path) -> Events:
    """What the last process of a run told TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = sorted(run.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime)
    scalars = EventAccumulator(str(files[-1]), size_guidance={"scalars": 0}).Reload() if files else None
    known = set(scalars.Tags()["scalars"]) if scalars else set()

    def values(tag: str) -> list[float]:
        return [event.value for event in scalars.Scalars(tag)] if tag in known else []

    loss = scalars.Scalars("Train Loss") if "Train Loss" in known else []
    times = [1000.0 * value for value in values(writer.EventName.ITER_TRAIN_TIME.value)]
    seconds = loss[-1].wall_time - loss[0].wall_time if loss else 0.0
    return Events(times, values(RESERVED), values(IN_USE), values(writer.EventName.CURR_TEST_PSNR.value), seconds)


def tenths(values: Sequence[float]) -> list[float]:
    """Medians of ten parts that follow each other; the values where they are fewer."""
    bounds = [len(values) * part // 10 for part in range(11)]
    return [statistics.median(values[a:b]) for a, b in pairwise(bounds) if a < b]
