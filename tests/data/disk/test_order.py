"""The order of pixels on disk: a bijection, whose pieces are samples of everything."""

from __future__ import annotations

import numpy as np
import pytest

from zipnerf_ns.data.disk.order import Order


@pytest.mark.parametrize(("pixels", "pieces"), [(1, 1), (7, 7), (100, 1), (100, 8), (103, 8), (5000, 256), (257, 256)])
def test_every_pixel_is_in_one_piece_but_for_those_that_fill_the_last_run(pixels, pieces):
    order = Order(pixels, pieces)
    found = np.concatenate([order.pixels(piece) for piece in range(pieces)])
    assert np.array_equal(np.sort(found), np.arange(order.length * pieces)) and len(found) - pixels < pieces
    # Counts are of what lies before, and pieces are sorted by pixel.
    for piece in (0, pieces - 1):
        mine, borders = order.pixels(piece), np.arange(0, pixels + 1, 3)
        assert np.array_equal(order.before(borders, piece), (mine < borders[:, None]).sum(1))
        assert np.array_equal(order.before(np.array([pixels]), np.arange(pieces))[[piece]], [(mine < pixels).sum()])


@pytest.mark.parametrize("pieces", [64, 97, 256, 2000])
def test_neighboring_pieces_are_spread_over_each_run(pieces):
    """Of a tenth of the pieces, gaps within a run are never three times the mean."""
    order, count = Order(400 * pieces, pieces), pieces // 10
    for first in (0, pieces // 2):
        places = np.sort([order.pixels(first + piece) % pieces for piece in range(count)], axis=0)
        gaps = np.diff(places, axis=0, append=places[:1] + pieces)
        assert gaps.max() < 3 * pieces / count


def test_pieces_are_no_pattern_in_photos():
    """The pixels of a piece in photos of 64x64, by column and by row, as often as by chance: Pearson's statistic."""
    order = Order(64 * 64 * 64, 64)
    for piece in (0, 1, 40):
        pixels = order.pixels(piece)
        for where in (pixels % 64, pixels // 64 % 64, (pixels + pixels // 64) % 64):
            counts = np.bincount(where, minlength=64)
            assert abs(((counts - 64.0) ** 2 / 64.0).sum() - 63) < 6 * (2 * 63) ** 0.5
