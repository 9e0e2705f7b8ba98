"""Adam on hash tables with decay in the gradient, and what follows from the values it wrote: the definition, on torch's
own Adam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float16
from torch import Tensor
from torch.optim.adam import adam

from zipnerf_ns.functional.hash_grid import HashGrid, mean_square_per_level

HALF_SCALE = 256.0
"""Factor on the half-precision copy: values of 1e-6 are still normal numbers, values up to 255 below its largest."""
LARGEST_HALF = 65504.0
"""Largest number of float16, which stands in the copy for all that is larger: infinities would be no colors."""
LARGEST_GRADIENT = 1e19
"""From here on a gradient counts as one that is not finite: its square is not, either."""


class Summary(NamedTuple):
    """What follows from a table's values and is wanted at every step."""

    mean_square: Float[Tensor, "levels"]
    """Mean squared value of each level."""
    half: Float16[Tensor, "*table"] | None
    """The table times HALF_SCALE, where it is wanted."""


class TableUpdate(NamedTuple):
    """One table in a step: its values, their gradient, and what Adam remembers of it."""

    table: Float[Tensor, "*table"]
    grad: Float[Tensor, "*table"]
    exp_avg: Float[Tensor, "*table"]
    exp_avg_sq: Float[Tensor, "*table"]
    step: int
    """Updates of this table, this one included."""
    grid: HashGrid
    """Where the levels lie in the table, whose values may have any shape that holds them in this order."""
    decay: tuple[float, ...]
    """Added to the gradient of each level, in multiples of the level's values."""
    half: Float16[Tensor, "*table"] | None = None
    """Memory for the half-precision copy; None if no copy is wanted."""
    found_inf: Float[Tensor, ""] | None = None
    """1 where nothing is to change, else 0, as torch's own Adam reads it; None for 0."""


@torch.no_grad()
def decayed_adam_(updates: Sequence[TableUpdate], lr: float, betas: tuple[float, float], eps: float) -> list[Summary]:
    """One step of Adam, in place, on ``grad + decay * table``, level by level (Zip-NeRF's hash decay, section 5).

    Autograd so never sees a dense gradient for the decay, and every row is decayed whether or not a ray touched it.
    Where a gradient is not finite, or its square is not, it counts as zero: the moments would otherwise keep it for
    ever, and the table with them. Gradients are only read. This function *defines* the operation; the kernel in
    ``zipnerf_ns.kernels`` computes the same, faster.

    Args:
        updates: tables, their moments and half-precision copies, written.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
    Returns:
        the summary of each table's new values.
    """
    summaries = []
    for table, grad, exp_avg, exp_avg_sq, step, grid, decay, half, found_inf in updates:
        values, grads, means, mean_squares = (
            [tensor[level.offset : level.offset + level.size] for level in grid.levels]
            for tensor in (_as_rows(part, grid) for part in (table, grad, exp_avg, exp_avg_sq))
        )
        decayed = [
            torch.where(g.abs() < LARGEST_GRADIENT, g, 0.0).add_(p, alpha=coefficient)
            for g, p, coefficient in zip(grads, values, decay, strict=True)
        ]
        # The number of the step before this one, once a level, for torch counts it up in place.
        steps = torch.full((len(values),), step - 1.0, dtype=torch.float32, device=table.device)
        adam(
            values, decayed, means, mean_squares, [], list(steps.unbind()), fused=True, amsgrad=False,
            beta1=betas[0], beta2=betas[1], lr=lr, weight_decay=0.0, eps=eps, maximize=False, found_inf=found_inf,
        )  # fmt: skip
        # Torch does not count its own fused operations as writes.
        torch.autograd.graph.increment_version(table)
        summaries.append(summarize(table, grid, half))
    return summaries


def summarize(table: Float[Tensor, "*table"], grid: HashGrid, half: Float16[Tensor, "*table"] | None = None) -> Summary:
    """What a step would leave behind if it did not change the table.

    Args:
        table: the values, of any shape that holds them in the grid's order.
        grid: where the levels lie.
        half: memory for the half-precision copy, written; None if no copy is wanted.
    """
    values = table.detach()
    mean_square = mean_square_per_level(_as_rows(values, grid), grid)
    if half is not None:
        torch.mul(values, HALF_SCALE, out=half).clamp_(-LARGEST_HALF, LARGEST_HALF)
    return Summary(mean_square, half)


def decay_coefficients(grid: HashGrid, mult: float) -> tuple[float, ...]:
    """For :attr:`TableUpdate.decay`: the gradient of mult/2 times the sum over levels of their mean square is
    ``mult / number of values`` times a level's values (Zip-NeRF, section 5)."""
    return tuple(mult / (level.size * grid.features_per_level) for level in grid.levels)


def _as_rows(tensor: Tensor, grid: HashGrid) -> Float[Tensor, "entries features"]:
    """A tensor of the table's size, one row an entry; a view wherever it must be written."""
    return tensor.detach().contiguous().view(-1, grid.features_per_level)
