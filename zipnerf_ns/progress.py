"""One line every few seconds that tells a person how training goes."""

from __future__ import annotations

import time
from typing import Callable, Mapping, Optional

from torch import Tensor


class ProgressLine:
    """Says step, speed, quality so far and time left; a line, not a redrawn screen, so that logs stay readable.

    Args:
        first_step, total_steps: the run trains steps first_step .. total_steps - 1.
        write: where lines go.
        interval: least seconds between two lines.
    """

    def __init__(self, first_step: int, total_steps: int, write: Callable[[str], None], interval: float = 10.0) -> None:
        self.total_steps = total_steps
        self.write = write
        self.interval = interval
        self.test_psnr: Optional[float] = None
        self._train_psnr: Optional[float] = None
        self._start = self._last_time = time.monotonic()
        self._last_step = first_step
        self._lines = 0

    def update(self, step: int, rays_per_step: int, metrics: Mapping[str, Tensor]) -> None:
        """To be called after every step; reads ``metrics`` (and waits for the device) only when a line is due."""
        now = time.monotonic()
        done = step + 1 >= self.total_steps
        # The first line comes soon: a person wants to see that something moves.
        due = min(self.interval, 2.0) if self._lines == 0 else self.interval
        if now - self._last_time < due and not done:
            return
        steps = max(step + 1 - self._last_step, 1)
        psnr = float(metrics["psnr"]) if "psnr" in metrics else None
        if psnr is not None:
            # A single batch is noisy; the mean over the last few lines is not.
            self._train_psnr = psnr if self._train_psnr is None else 0.5 * (self._train_psnr + psnr)
        seconds = max(time.monotonic() - self._last_time, 1e-9) / steps
        self._last_time, self._last_step = time.monotonic(), step + 1
        self._lines += 1
        parts = [
            f"step {step + 1}/{self.total_steps} ({100.0 * (step + 1) / self.total_steps:.0f}%)",
            f"{1000.0 * seconds:.0f} ms/step",
            f"{rays_per_step / seconds / 1000.0:.1f} k rays/s",
        ]
        if self._train_psnr is not None:
            parts.append(f"PSNR train {self._train_psnr:.2f}")
        if self.test_psnr is not None:
            parts.append(f"test {self.test_psnr:.2f} dB")
        parts.append(f"{format_duration(now - self._start)} passed")
        parts.append(f"{format_duration(seconds * (self.total_steps - step - 1))} left")
        self.write("  ".join(parts))


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, second = divmod(int(round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
