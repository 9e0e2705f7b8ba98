"""Where the cameras of the built-in scene stand."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from zipnerf_ns.tools.scene.render import Pinhole

FIELD_OF_VIEW = math.radians(55)
DOME, LOW_DOME = (8.0, 52.0), (5.0, 16.0)
"""The lowest and the highest elevation of cameras, degrees; the low one has all see the horizon."""
NUM_FIXED = 8
"""Cameras that do not move, in two rows."""
_AHEAD = 120.0
"""Azimuth, degrees, from which most of what moves is seen."""


def scene_pinhole(width: int, height: int) -> Pinhole:
    """The camera that takes the scene's pictures, for pictures of a size in pixels."""
    focal = 0.5 * width / math.tan(FIELD_OF_VIEW / 2)
    return Pinhole(focal, focal, width / 2, height / 2, width, height)


def camera_pose(eye: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Camera to world, ``[3, 4]``, with OpenGL's axes, of an upright camera.

    Args:
        eye: where it stands, world units.
        back: away from what it looks at, of any length, not straight up or down.
    """
    back = back / np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back, eye], axis=1)


def dome_pose(index: int, shift: np.ndarray, random: np.random.Generator, dome: tuple[float, float]) -> np.ndarray:
    """Camera to world of one view on a dome of varied radius, looking near the origin.

    Args:
        index: of the view.
        shift: in [0, 1); of the dome's azimuth, height and radius.
        random: of where it looks.
        dome: the lowest and the highest elevation, degrees.
    """
    low, high = dome
    # Three irrational steps (Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018): any number
    # of views covers azimuth, height and radius evenly, and nested counts share their first views.
    azimuth, height, radius = (shift + (index + 1) * np.array([0.8191725, 0.6710436, 0.5497005])) % 1
    elevation = math.radians(low + (high - low) * height**1.4)
    azimuth, radius = 2 * math.pi * azimuth, 2.25 + 0.75 * radius
    flat = math.cos(elevation)
    eye = radius * np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])
    return camera_pose(eye, eye - random.uniform(-0.12, 0.12, 3))


def walking_pose(time: float) -> Float[np.ndarray, "3 4"]:
    """Camera to world of the one camera of the moving scene, which goes more than half about it."""
    return _about(_AHEAD - 100 + 200 * time, 24 + 9 * math.sin(10 * time), 2.6 + 0.2 * math.sin(7 * time))


def beside_pose(time: float, random: np.random.Generator) -> Float[np.ndarray, "3 4"]:
    """Camera to world of a camera 8 to 20 degrees to one side of where the walking one is then."""
    azimuth = _AHEAD - 100 + 200 * time + random.choice([-1, 1]) * random.uniform(8, 20)
    return _about(azimuth, random.uniform(15, 33), random.uniform(2.4, 2.8))


def fixed_pose(number: int) -> Float[np.ndarray, "3 4"]:
    """Camera to world of one of the cameras that stand still: two rows of four, twelve degrees apart."""
    row, column = divmod(number, NUM_FIXED // 2)
    return _about(_AHEAD + 12 * (column - 1.5), (16.0, 28.0)[row], 2.6)


def between_pose(random: np.random.Generator) -> Float[np.ndarray, "3 4"]:
    """Camera to world of a camera among those that stand still."""
    return _about(_AHEAD + random.uniform(-16, 16), random.uniform(17, 27), random.uniform(2.5, 2.7))


def _about(azimuth: float, elevation: float, radius: float) -> np.ndarray:
    """Camera to world of a camera that looks at the origin; degrees."""
    azimuth, elevation = math.radians(azimuth), math.radians(elevation)
    flat = math.cos(elevation)
    eye = radius * np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])
    return camera_pose(eye, eye)
