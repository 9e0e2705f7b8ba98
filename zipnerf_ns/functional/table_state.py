"""What follows from a hash table's values and is wanted at every step, kept by whoever wrote the table last.

The mean square of each level goes into the weight features and the decay's value, and a half-precision copy may be
what the look-up reads. Both follow from the values alone, so the optimizer, which has every value in its hands, leaves
them here, and nobody passes over the table again. Whatever else changes the table makes them stale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from zipnerf_ns.functional.hash_grid import HashGrid, mean_square_per_level

HALF_SCALE = 256.0
"""Factor on the half-precision copy: values of 1e-6 are still normal numbers, values up to 255 still finite."""


class Summary(NamedTuple):
    """What a :class:`TableState` keeps."""

    mean_square: Float[Tensor, "levels"]
    """Mean squared value of each level."""
    half: Float16[Tensor, "*table"] | None
    """The table times HALF_SCALE, where it is wanted."""


class TableState:
    """A table's layout, its decay, and a summary of the values it had when ``record`` or ``refresh`` was last called.

    It hangs on the parameter as ``table_state``, where an optimizer finds it. Torch's in-place operations and
    ``load_state_dict`` raise a tensor's version, moving it changes its address: :meth:`is_current` sees either.
    It cannot see a write through ``parameter.data``, nor one by ``torch.optim.Adam(fused=True)``, for torch counts
    neither; after such a write call :meth:`forget`.

    Args:
        grid: where the levels lie in the table, whose values may have any shape that holds them in this order.
        decay: of each level, see the attribute; zeros if not given.
        wants_half: whether to keep the half-precision copy.
    """

    def __init__(self, grid: HashGrid, decay: Sequence[float] | None = None, wants_half: bool = False) -> None:
        self.grid = grid
        self.decay = (0.0,) * len(grid.levels) if decay is None else decay
        self.wants_half = wants_half
        self.mean_square: Tensor | None = None
        self.half: Tensor | None = None
        self._written: tuple[torch.device, int, int] | None = None

    @property
    def decay(self) -> tuple[float, ...]:
        """What the optimizer adds to the gradient of each level, in multiples of the level's values."""
        return self._decay

    @decay.setter
    def decay(self, coefficients: Sequence[float]) -> None:
        if len(coefficients) != len(self.grid.levels):
            raise ValueError(f"{len(coefficients)} decay coefficients were given for {len(self.grid.levels)} levels.")
        self._decay = tuple(float(coefficient) for coefficient in coefficients)

    def attach(self, table: Tensor) -> TableState:
        """Hangs itself on a parameter: deep copies and ``load_state_dict(assign=True)`` make one without it.

        Raises:
            ValueError: if the table does not hold the grid's values.
        """
        needed = self.grid.num_entries * self.grid.features_per_level
        if table.numel() != needed:
            raise ValueError(f"the table has {table.numel()} values, its grid needs {needed}.")
        table.table_state = self
        return self

    def is_current(self, table: Tensor) -> bool:
        """Whether ``mean_square``, and ``half`` if it is wanted, are those of the table as it is now."""
        return self._written == _identity(table) and (self.half is not None or not self.wants_half)

    def record(self, table: Tensor, mean_square: Float[Tensor, "levels"], half: Tensor | None) -> None:
        """Takes over what a writer of the table has computed of the values it wrote."""
        kept = self.mean_square
        if kept is not None and kept.dtype == mean_square.dtype and kept.device == mean_square.device:
            # In the same place, for whoever reads it may be a graph that was captured once.
            kept.copy_(mean_square)
        else:
            self.mean_square = mean_square
        self.half, self._written = half, _identity(table)

    def refresh(self, table: Tensor, compute: Callable[[Tensor, TableState], Summary] | None = None) -> None:
        """Brings the summary up to date with a table; ``compute`` does it, or :func:`summarize` if not given."""
        # Kept beyond this forward pass, so it must be fit for any other, also if this one runs in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            self.record(table, *(compute or summarize)(table, self))

    def forget(self) -> None:
        """Counts as stale from now on; what is computed next goes to the same memory."""
        self._written = None

    def half_buffer(self, table: Tensor) -> Float16[Tensor, "*table"] | None:
        """Memory for the half-precision copy, the present one's if it fits; None if no copy is wanted."""
        if not self.wants_half:
            return None
        if self.half is not None and self.half.shape == table.shape and self.half.device == table.device:
            return self.half
        return torch.empty_like(table, dtype=torch.float16, requires_grad=False)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's table lies at another address, and some day another table may lie at this one.
        return {**self.__dict__, "mean_square": None, "half": None, "_written": None}


def summarize(table: Tensor, state: TableState) -> Summary:
    """The summary that a state keeps of its table, in plain torch."""
    values = table.detach()
    mean_square = mean_square_per_level(values.reshape(-1, state.grid.features_per_level), state.grid)
    half = state.half_buffer(values)
    return Summary(mean_square, half if half is None else torch.mul(values, HALF_SCALE, out=half))


def decay_coefficients(grid: HashGrid, mult: float) -> tuple[float, ...]:
    """For :attr:`TableState.decay`: the gradient of mult/2 times the sum over levels of their mean square is
    ``mult / number of values`` times a level's values (Zip-NeRF, section 5)."""
    return tuple(mult / (level.size * grid.features_per_level) for level in grid.levels)


def _identity(table: Tensor) -> tuple[torch.device, int, int]:
    """Tells a table's values from others by where they lie and how often torch has seen them written."""
    return table.device, table.data_ptr(), table._version
