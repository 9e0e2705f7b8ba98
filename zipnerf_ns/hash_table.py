"""A hash table: the values of a grid, and the only state beside parameters.

The mean square of each level goes into the weight features and the decay's value, and a half-precision copy may be
what the look-up reads. Both follow from the values alone, so the optimizer, which has every value in its hands, leaves
them here, and nobody passes over the table again. Whatever else changes the table makes them stale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float16
from torch import Tensor, nn

from zipnerf_ns.functional.adam import Summary, summarize
from zipnerf_ns.functional.hash_grid import HashGrid


class HashTable(nn.Module):
    """A table with its layout, its decay, and the summary of the values it had at the last ``record`` or ``refresh``.

    Torch's in-place operations and ``load_state_dict`` raise a tensor's version, moving it changes its address:
    :meth:`is_current` sees either. It cannot see a write through ``parameter.data``, nor one by
    ``torch.optim.Adam(fused=True)``, for torch counts neither; after such a write call :meth:`forget`.

    Args:
        grid: where the levels lie in the table.
        values: the parameter, of any shape that holds the grid's values in this order.
        decay: of each level, see the attribute; zeros if not given.
    Raises:
        ValueError: if the parameter does not hold the grid's values, or the decay is not one number a level.
    """

    is_decayed: bool
    """Whether an optimizer has been given the table, and applies the decay within its step. Whoever goes on with
    another one sets it to False: the decay is then the loss's."""
    kept: Summary | None
    """What follows from the values, if it :meth:`is_current`; else of earlier ones, and where the next will lie."""

    def __init__(self, grid: HashGrid, values: nn.Parameter, decay: Sequence[float] | None = None) -> None:
        super().__init__()
        needed = grid.num_entries * grid.features_per_level
        if values.numel() != needed:
            raise ValueError(f"the table has {values.numel()} values, its grid needs {needed}.")
        self.grid = grid
        self.hash_table = values
        self.decay = (0.0,) * len(grid.levels) if decay is None else decay
        self.is_decayed, self.kept = False, None
        self._written: tuple[torch.device, int, int] | None = None

    @property
    def decay(self) -> tuple[float, ...]:
        """What is added to the gradient of each level, in multiples of the level's values."""
        return self._decay

    @decay.setter
    def decay(self, coefficients: Sequence[float]) -> None:
        if len(coefficients) != len(self.grid.levels):
            raise ValueError(f"{len(coefficients)} decay coefficients were given for {len(self.grid.levels)} levels.")
        self._decay = tuple(float(coefficient) for coefficient in coefficients)

    @property
    def reads_half(self) -> bool:
        """Whether a half-precision copy is kept."""
        return False

    def is_current(self) -> bool:
        """Whether what is kept, the half-precision copy included if there should be one, is of the present values."""
        return self._written == self._identity() and (self.kept.half is not None or not self.reads_half)

    def record(self, summary: Summary) -> None:
        """Takes over what a writer of the table has computed of the values it wrote."""
        kept, new = self.kept and self.kept.mean_square, summary.mean_square
        if kept is not None and kept.dtype == new.dtype and kept.device == new.device:
            # In the same place, for whoever reads it may be a graph that was captured once.
            summary = summary._replace(mean_square=kept.copy_(new))
        self.kept, self._written = summary, self._identity()

    def refresh(self, compute: Callable[[Tensor, HashGrid, Tensor | None], Summary] = summarize) -> None:
        """Brings what is kept up to date with the values."""
        # Kept beyond this forward pass, so it must be fit for any other, also if this one runs in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            self.record(compute(self.hash_table, self.grid, self.half_buffer()))

    def forget(self) -> None:
        """Counts as stale from now on; what is computed next goes to the same memory."""
        self._written = None

    def half_buffer(self) -> Float16[Tensor, "*table"] | None:
        """Memory for the half-precision copy, the present one's if it fits; None if no copy is wanted."""
        if not self.reads_half:
            return None
        half, table = self.kept and self.kept.half, self.hash_table
        if half is not None and half.shape == table.shape and half.device == table.device:
            return half
        return torch.empty(table.shape, dtype=torch.float16, device=table.device)

    def _identity(self) -> tuple[torch.device, int, int]:
        """Tells the table's values from others by where they lie and how often torch has seen them written."""
        return self.hash_table.device, self.hash_table.data_ptr(), self.hash_table._version

    def __getstate__(self) -> dict[str, Any]:
        # A copy's table lies at another address, and some day another table may lie at this one. No optimizer has it.
        return {**self.__dict__, "is_decayed": False, "kept": None, "_written": None}
