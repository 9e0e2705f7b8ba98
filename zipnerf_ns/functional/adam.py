"""Adam on hash tables with decay in the gradient: the definition, on torch's own Adam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam

from zipnerf_ns.functional.table_state import TableState


class TableUpdate(NamedTuple):
    """One table in a step: its values, their gradient, and what Adam remembers of it."""

    table: Float[Tensor, "*table"]
    grad: Float[Tensor, "*table"]
    exp_avg: Float[Tensor, "*table"]
    exp_avg_sq: Float[Tensor, "*table"]
    state: TableState
    """Layout and decay of the table; current after the step."""
    step: int
    """Updates of this table, this one included."""


@torch.no_grad()
def decayed_adam_(updates: Sequence[TableUpdate], lr: float, betas: tuple[float, float], eps: float) -> None:
    """One step of Adam, in place, on ``grad + decay * table``, level by level (Zip-NeRF's hash decay, section 5).

    Autograd so never sees a dense gradient for the decay, and every row is decayed whether or not a ray touched it.
    Where a gradient is not finite it counts as zero: the moments would otherwise keep it for ever, and the table with
    them. Gradients are only read. This function *defines* the operation; the kernel in ``zipnerf_ns.kernels`` computes
    the same, faster.

    Args:
        updates: tables and their moments, written; and their states, left current.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
    """
    for table, grad, exp_avg, exp_avg_sq, state, step in updates:
        values, grads, means, mean_squares = (
            [tensor[level.offset : level.offset + level.size] for level in state.grid.levels]
            for tensor in (_as_rows(part, state) for part in (table, grad, exp_avg, exp_avg_sq))
        )
        decayed = [
            torch.nan_to_num(g, 0.0, 0.0, 0.0).add_(p, alpha=decay)
            for g, p, decay in zip(grads, values, state.decay, strict=True)
        ]
        # The number of the step before this one, once a level, for torch counts it up in place.
        steps = torch.full((len(values),), step - 1.0, dtype=torch.float32, device=table.device)
        adam(
            values, decayed, means, mean_squares, [], list(steps.unbind()), fused=True, amsgrad=False,
            beta1=betas[0], beta2=betas[1], lr=lr, weight_decay=0.0, eps=eps, maximize=False,
        )  # fmt: skip
        # Torch does not count its own fused operations as writes.
        torch.autograd.graph.increment_version(table)
        state.refresh(table)


def _as_rows(tensor: Tensor, state: TableState) -> Float[Tensor, "entries features"]:
    """A tensor of the table's size, one row an entry; a view wherever it must be written."""
    return tensor.detach().contiguous().view(-1, state.grid.features_per_level)
