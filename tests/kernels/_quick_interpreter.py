"""Triton's interpreter with less to do for the same results: most of its time goes into what can be done once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

TRITONS_OWN: dict[str, Callable] = {}
"""What quicken() replaced, by name."""


def quicken() -> None:
    """Replaces parts of the interpreter in this process; one that another release of Triton lacks stays as it is."""
    from triton.runtime import interpreter

    if hasattr(interpreter, "_get_np_dtype"):
        _name_types_once(interpreter)
    if hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "GridExecutor"):
        _prepare_once_a_launch(interpreter)
    if hasattr(getattr(interpreter, "ScanOps", None), "generic_scan"):
        TRITONS_OWN["generic_scan"] = interpreter.ScanOps.generic_scan
        interpreter.ScanOps.generic_scan = scan_in_rounds


def _name_types_once(interpreter: Any) -> None:
    """Every operation asks for the types of its operands, and the interpreter makes a table of all types to answer."""
    plain, known = interpreter._get_np_dtype, {}

    def np_dtype(of: Any) -> np.dtype:
        if of.name not in known:
            known[of.name] = plain(of)
        return known[of.name]

    interpreter._get_np_dtype = np_dtype


def _prepare_once_a_launch(interpreter: Any) -> None:
    """Every call of one kernel function by another prepares the whole language anew, which leaves it as it is."""
    plain_patch, plain_call, prepared = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def patch(fn: Any) -> Any:
        if id(fn.__globals__) in prepared:
            return interpreter._LangPatchScope()
        prepared.add(id(fn.__globals__))
        return plain_patch(fn)

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepared.clear()
        return plain_call(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch, launch


def scan_in_rounds(self: Any, values: tuple) -> list:
    """An associative scan of all lanes at once, in as many rounds as their number has binary digits.

    As on a GPU both operands may stand for many lanes. The interpreter's own goes from lane to lane, and the right one
    stands for one.
    """
    data, types = [value.handle.data for value in values], [value.dtype for value in values]
    lanes = data[0].shape[self.axis]
    place = np.arange(lanes).reshape([-1 if axis == self.axis else 1 for axis in range(data[0].ndim)])
    distance = 1
    while distance < lanes:
        # What comes around the end joins lanes that are already complete, and is not kept.
        before = [np.roll(part, distance, axis=self.axis) for part in data]
        operands = [self.to_tensor(part, dtype) for part, dtype in zip(before + data, types + types, strict=True)]
        joined = self.combine_fn.fn(*operands)
        joined = joined if isinstance(joined, tuple) else (joined,)
        data = [
            np.where(place < distance, part, new.handle.data).astype(part.dtype)
            for part, new in zip(data, joined, strict=True)
        ]
        distance *= 2
    return [self.to_tensor(part, dtype) for part, dtype in zip(data, types, strict=True)]
