"""A render's outputs, of which the dear ones are computed only for whoever asks for them."""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple

from torch import Tensor


class Deferred(NamedTuple):
    """An output that has not been asked for yet."""

    compute: Callable[[], Tensor]


class Outputs(Dict[str, Any]):
    """Outputs by name. A deferred one is a key like the others, and computed when its value is first looked up.

    Nerfstudio's programs list the names, and then look up those that they show; who iterates over values meets
    :class:`Deferred` instead, and can leave out what is no tensor, as they do.
    """

    def defer(self, name: str, compute: Callable[[], Tensor]) -> None:
        """Offers an output under a name."""
        self[name] = Deferred(compute)

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if isinstance(value, Deferred):
            value = self[name] = value.compute()
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The output, computed if need be, or the default where there is none of that name."""
        return self[name] if name in self else default
