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
        self._ranges: set[tuple[int, int]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def begin(self, arguments: list[Any]) -> None:
        """A launch with these arguments."""
        storages = [value.untyped_storage() for value in arguments if isinstance(value, Tensor)]
        self._ranges = {(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages}

    def _check(self, pointers: np.ndarray, mask: np.ndarray, size: int, what: str) -> None:
        active = pointers if mask.all() else pointers[mask.astype(bool)]
        if active.size == 0:
            return
        first, end = int(active.min()), int(active.max()) + size
        # All of an access is in one tensor.
        if not any(begin <= first and end <= last for begin, last in self._ranges):
            raise IndexError(f"{what} places outside of the kernel's tensors")

    def load(self, pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: Any) -> np.ndarray:
        self._check(pointers, mask, np.dtype(dtype).itemsize, "reads")
        return self._real.load(pointers, mask, other, dtype)

    def store(self, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray) -> Any:
        self._check(pointers, mask, value.dtype.itemsize, "writes")
        return self._real.store(pointers, value, mask)

    def atomic_rmw(self, op: Any, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray, order: Any) -> np.ndarray:
        self._check(pointers, mask, value.dtype.itemsize, "adds to")
        return self._real.atomic_rmw(op, pointers, value, mask, order)


_prepared: set[interpreter.InterpretedFunction] = set()


def _call_inner(self: Any, *args: Any, **kwargs: Any) -> Any:
    """What a kernel calls, prepared once: Triton's own looks through the whole language at each of its calls, which
    takes a third of the tests' time. What a launch itself replaces, it replaces at each."""
    if self not in _prepared:
        interpreter._patch_lang(self.fn)
        _prepared.add(self)
    return self.rewrite()(*args, **kwargs)


@contextmanager
def watched() -> Iterator[None]:
    """Within it an interpreted kernel that touches other memory than its tensors' raises, and new tensors hold garbage.

    An access that lies in another one of the kernel's tensors as a whole is not seen.
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
        patch.object(interpreter.InterpretedFunction, "__call__", _call_inner),
        patch.object(torch.autograd, "_engine_run_backward", backward),
        garbage,
    ):
        yield
