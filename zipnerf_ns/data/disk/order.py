"""In which order a store on disk has a capture's pixels: piece after piece, each of them a sample of all photos.

The pixels of all photos, one after the other, are cut into runs of as many pixels as there are pieces, and every piece
has one pixel of each run, in the order of the runs. What is read in one go is then of every photo its share, as evenly
spread as it can be, and a photo can be written without any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np
from jaxtyping import Int

GOLDEN = 0.6180339887498949
"""Steps of this share of a circle leave no large gap, however many they are."""
MIXERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))
"""Odd numbers that spread what they multiply over all bits (splitmix64)."""


@dataclass(frozen=True)
class Order:
    """Where each pixel is.

    A run that the pixels do not fill is continued with the first ones: its numbers go on beyond ``num_pixels``.
    """

    num_pixels: int
    """Pixels of all photos; what masks ignore is not counted."""
    num_pieces: int
    """Pieces, of equal length; no more than there are pixels."""

    @property
    def length(self) -> int:
        """Pixels of a piece, which is the number of runs."""
        return -(-self.num_pixels // self.num_pieces)

    @cached_property
    def _step(self) -> int:
        """From a piece to the next in each run: what several pieces have of it is spread over it."""
        return spreading(self.num_pieces)

    def places(self, pieces: Int[np.ndarray, "..."] | int, runs: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Which pixel of its run each piece has; both are broadcast."""
        mixed = runs.astype(np.uint64) * MIXERS[0]
        mixed ^= mixed >> np.uint64(29)
        mixed *= MIXERS[1]
        turns = ((mixed >> np.uint64(33)) % np.uint64(self.num_pieces)).astype(np.int64)
        return (turns + self._step * pieces) % self.num_pieces

    def pixels(self, piece: int) -> Int[np.ndarray, "length"]:
        """The numbers of a piece's pixels, in its order."""
        runs = np.arange(self.length)
        return runs * self.num_pieces + self.places(piece, runs)

    def before(self, pixels: Int[np.ndarray, "..."], pieces: Int[np.ndarray, "..."] | int) -> Int[np.ndarray, "..."]:
        """How many pixels of a piece come before a given one; both are broadcast."""
        runs = pixels // self.num_pieces
        return runs + (self.places(pieces, runs) < pixels % self.num_pieces)


def spreading(count: int) -> int:
    """The step that comes by all places of a circle, and at any time has left no large gap; of more than three billion
    places a shorter one, for products of it and a place must be numbers of 64 bits."""
    wanted = min(round(GOLDEN * count), 2**62 // count)
    return next(step for step in range(max(wanted, 1), wanted + count + 1) if gcd(step, count) == 1)
