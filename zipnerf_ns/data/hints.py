"""What the data say about a scene: written by the datamanager, read by the model, carried in a dataset's metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Mapping, Optional

SCENE_HINTS = "zipnerf_scene_hints"
"""Key of the dataset's metadata under which :class:`SceneHints` travel."""


@dataclass(frozen=True)
class SceneHints:
    """What the data say about the scene, for the model's "auto" settings."""

    bounded: bool
    """Whether everything lies within the scene box."""
    background: Literal["white", "black"]
    """What shows through where there is nothing."""
    longest_side: int
    """Longest side of a training image, pixels."""


def find_hints(metadata: Optional[Mapping[str, Any]]) -> Optional[SceneHints]:
    """The hints in a dataset's metadata; None with a datamanager that leaves none."""
    return None if metadata is None else metadata.get(SCENE_HINTS)
