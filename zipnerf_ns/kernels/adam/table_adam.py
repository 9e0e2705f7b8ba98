"""Adam on hash tables in Triton, behind the signature of ``functional.adam.decayed_adam_``.

One launch a table, and one for the mean squares of all of them. The order of every sum is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zipnerf_ns.functional.adam import Summary, TableUpdate
from zipnerf_ns.functional.hash_grid import HashGrid
from zipnerf_ns.kernels import support
from zipnerf_ns.kernels.adam import adam_kernel
from zipnerf_ns.kernels.launching import launching


@torch.no_grad()
def decayed_adam_(
    updates: Sequence[TableUpdate], lr: float, betas: tuple[float, float], eps: float
) -> list[Summary]:
    """One step of Adam, in place, on ``grad + decay * table``, level by level (Zip-NeRF's hash decay, section 5).

    Computes what ``functional.adam.decayed_adam_`` defines, to float32 rounding; see there for the arguments. All
    tables lie on one device.

    Raises:
        ValueError: for a table whose memory the kernel cannot walk through in order.
        RuntimeError: if the kernel cannot run on the tables; the message says what to install.
    """
    if not updates:
        return []
    for update in updates:
        _check(update.table)
        for name in ("table", "exp_avg", "exp_avg_sq"):
            if not getattr(update, name).is_contiguous():
                raise ValueError(f"{name} must be contiguous to be updated in place.")
    with launching("decayed_adam_", updates[0].table):
        return adam_kernel.decayed_adam_(updates, lr, betas, eps)


@torch.no_grad()
def summarize(table: Tensor, grid: HashGrid, half: Tensor | None = None) -> Summary:
    """``functional.adam.summarize`` in one pass, and bit by bit what a step leaves behind: a training that
    resumes from a checkpoint so goes on as if it had not stopped.

    Raises:
        RuntimeError: if the kernel cannot run on the table; the message says what to install.
    """
    _check(table)
    with launching("summarize", table):
        return adam_kernel.summarize(table.contiguous(), grid, half)


def _check(table: Tensor) -> None:
    if table.dtype != torch.float32:
        raise RuntimeError(f"The Triton optimizer updates float32 tables; the hash table is {table.dtype}.")
    support.require(table.device)
