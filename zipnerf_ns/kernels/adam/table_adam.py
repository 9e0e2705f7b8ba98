"""Adam on hash tables in Triton, behind the signature of ``functional.adam.decayed_adam_``.

One launch a table, and one for the mean squares of all of them. The order of every sum is fixed.
"""

from __future__ import annotations

import importlib
import os
from functools import lru_cache
from types import ModuleType
from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor

from zipnerf_ns.functional.adam import TableUpdate
from zipnerf_ns.functional.table_state import Summary, TableState
from zipnerf_ns.kernels.encode import hash_encode


def why_unavailable(table: Tensor) -> Optional[str]:
    """What the kernel lacks to work on a table, as a sentence for the user; None if nothing."""
    if table.dtype != torch.float32:
        return f"The Triton optimiser updates float32 tables; the hash table is {table.dtype}."
    return hash_encode.why_unavailable(table.device)


@lru_cache(maxsize=1)
def _kernel() -> ModuleType:
    """The part that needs triton, imported when first used: configurations must load without it, and quickly."""
    return importlib.import_module("zipnerf_ns.kernels.adam.adam_kernel")


@torch.no_grad()
def decayed_adam_(updates: Sequence[TableUpdate], lr: float, betas: Tuple[float, float], eps: float) -> None:
    """One step of Adam, in place, on ``grad + decay * table``, level by level (Zip-NeRF's hash decay, section 5).

    Computes what ``functional.adam.decayed_adam_`` defines, to float32 rounding; see there for the arguments. All
    tables lie on one device.

    Raises:
        ValueError: for a table whose memory the kernel cannot walk through in order.
        RuntimeError: if the kernel cannot run on the tables; the message says what to install.
    """
    if not updates:
        return
    for update in updates:
        _check(update.table)
        for name in ("table", "exp_avg", "exp_avg_sq"):
            if not getattr(update, name).is_contiguous():
                raise ValueError(f"{name} must be contiguous to be updated in place.")
    with torch.cuda.device_of(updates[0].table):
        _kernel().decayed_adam_(updates, lr, betas, eps)


@torch.no_grad()
def summarise(table: Tensor, state: TableState) -> Summary:
    """``functional.table_state.summarise`` in one pass, and bit by bit what a step leaves behind: a training that
    resumes from a checkpoint so goes on as if it had not stopped.

    Raises:
        RuntimeError: if the kernel cannot run on the table; the message says what to install.
    """
    _check(table)
    with torch.cuda.device_of(table):
        return _kernel().summarise(table.contiguous(), state)


def _check(table: Tensor) -> None:
    if not _can_run(table.dtype, table.device, os.environ.get("TRITON_INTERPRET")):
        raise RuntimeError(why_unavailable(table))


@lru_cache(maxsize=16)
def _can_run(dtype: torch.dtype, device: torch.device, interpret: Optional[str]) -> bool:
    """Asked once, for asking the driver at every step would take longer than the launches."""
    return why_unavailable(torch.empty(0, dtype=dtype, device=device)) is None
