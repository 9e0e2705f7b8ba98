"""Times of work that a device may still be doing after Python has gone on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(run: Callable[[], Any], seconds: float) -> float:
    """Median time of one call among many in a row, ms, Python and device together; after a warm-up of at least one.

    (Not triton.testing.do_bench, which needs a GPU, and of a captured step would time the wait for Python's launch.)

    Args:
        run: what is called, twice at least.
        seconds: over which calls are counted.
    """
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median * 1e3
