"""Kernels watched on a CPU, as compute-sanitizer watches them on a GPU: where they read and write, and whether anybody
has written what they read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter

from zipnerf_ns.kernels.ahead import Zeros


class Garbage(Zeros):
    """New tensors that nobody has written hold what shows in every result that depends on it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in self.ZEROS:
            return made
        made.detach().fill_(torch.nan if made.is_floating_point() else 85)
        return made


class _Watch:
    """Triton's interpreter of accesses, which refuses those outside of the tensors that a launch was given."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._begins = self._ends = np.zeros(0, np.uint64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def begin(self, arguments: list[Any]) -> None:
        """A launch with these arguments."""
        storages = [value.untyped_storage() for value in arguments if isinstance(value, Tensor)]
        ranges = sorted({(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages})
        self._begins, self._ends = (np.array(ends, np.uint64) for ends in zip(*ranges, strict=True))

    def _check(self, pointers: np.ndarray, mask: np.ndarray, size: int, what: str) -> None:
        active = pointers[np.broadcast_to(mask.astype(bool), pointers.shape)].astype(np.uint64)
        which = np.searchsorted(self._begins, active, side="right") - 1
        inside = (which >= 0) & (active + np.uint64(size) <= self._ends[which])
        if not inside.all():
            raise IndexError(f"{what} {int((~inside).sum())} places outside of the kernel's tensors")

    def load(self, pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: Any) -> np.ndarray:
        self._check(pointers, mask, np.dtype(dtype).itemsize, "reads")
        return self._real.load(pointers, mask, other, dtype)

    def store(self, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray) -> Any:
        self._check(pointers, mask, value.dtype.itemsize, "writes")
        return self._real.store(pointers, value, mask)

    def atomic_rmw(self, op: Any, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray, order: Any) -> np.ndarray:
        self._check(pointers, mask, value.dtype.itemsize, "adds to")
        return self._real.atomic_rmw(op, pointers, value, mask, order)


@contextmanager
def watched() -> Iterator[None]:
    """Within it an interpreted kernel that touches other memory than its tensors' raises, and new tensors hold garbage.

    An overrun from one of a kernel's tensors into another one is not seen.
    """
    watch, garbage = _Watch(interpreter._interpreter), Garbage()
    prepare, run_backward = interpreter.GridExecutor._init_args_hst, torch.autograd._engine_run_backward

    def prepare_watched(self: Any, args: Any, kwargs: Any) -> Any:
        found = prepare(self, args, kwargs)
        watch.begin([*found[0], *found[1].values()])
        return found

    def backward(*args: Any, **kwargs: Any) -> Any:
        # Torch leaves a mode for as long as a function lasts that the mode was asked about.
        with garbage:
            return run_backward(*args, **kwargs)

    with (
        patch.object(interpreter, "_interpreter", watch),
        patch.object(interpreter.GridExecutor, "_init_args_hst", prepare_watched),
        patch.object(torch.autograd, "_engine_run_backward", backward),
        garbage,
    ):
        yield
