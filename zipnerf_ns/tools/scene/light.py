"""Light that changes from photo to photo: exposure and white balance, each a gain of linear light."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

TOE = 0.04045
"""sRGB is a straight line below this (IEC 61966-2-1)."""
TINT = 0.3
"""How far red and blue go apart in white balance, of how far exposures go."""


def draw_gains(count: int, stops: float, seed: list[int]) -> Float[ndarray, "count 3"]:
    """Gains of red, green and blue for some photos; over the photos each channel's geometric mean is 1.

    Args:
        count: photos.
        stops: exposures are drawn between so many stops darker and brighter, white balance between TINT of them.
        seed: of the draws; any integers.
    """
    exposure, warmth = np.random.default_rng(seed).uniform(-stops, stops, (2, count, 1))
    drawn = exposure + TINT * warmth * np.array([1.0, 0.0, -1.0])
    return 2.0 ** (drawn - drawn.mean(axis=0))


def to_linear(colors: Float[ndarray, "*batch 3"]) -> Float[ndarray, "*batch 3"]:
    """sRGB colors as amounts of light, both in [0, 1]."""
    return np.where(colors <= TOE, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def relight(colors: Float[ndarray, "*batch 3"], gains: Float[ndarray, "3"]) -> Float[ndarray, "*batch 3"]:
    """sRGB colors in [0, 1] under gains of linear light, brought back to sRGB and clipped, as a camera does it."""
    linear = np.clip(to_linear(colors) * gains, 0.0, 1.0)
    return np.where(linear <= TOE / 12.92, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
