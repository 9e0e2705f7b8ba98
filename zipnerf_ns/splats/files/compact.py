"""What makes files compact: few numbers that stand for many, and an order in which neighbors are alike."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

ROUNDS = 10
"""Lloyd's steps, after which centers hardly move."""
BINS = 128
"""Bins of the histogram that tells how dense values are: few enough that outliers are seen."""
SAMPLES_PER_CENTER = 4
"""Points that the centers are fitted to: more change a palette little, and cost in proportion."""
MOST_PAIRS = 1 << 26
"""Distances computed at once: 256 MiB of them."""


def codebook(values: Float[Tensor, "*shape"], size: int = 256) -> tuple[Float[Tensor, "size"], Int[Tensor, "*shape"]]:
    """Numbers that stand for all values with little squared error, and the number that stands for each value.

    Args:
        values: any, at least one.
        size: of the codebook; numbers that no value needs repeat the largest.
    """
    flat = values.flatten().double()
    low, high = float(flat.min()), float(flat.max())
    # Where values are p times denser, the best numbers are p^(1/3) times denser (Panter and Dite 1951).
    share = torch.histc(flat, BINS, low, high).cpu().pow(1.0 / 3.0).cumsum(0).numpy()
    wanted = (np.arange(size) + 0.5) / size * share[-1]
    start = np.interp(wanted, np.concatenate([[0.0], share]), np.linspace(low, high, BINS + 1))
    centers = torch.from_numpy(start).to(flat)
    ordered = flat.sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    for _ in range(ROUNDS):
        ends = torch.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2.0)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(ordered))])
        number = ends.diff()
        centers = torch.where(number > 0, sums[ends].diff() / number.clamp(min=1), centers).sort().values
    centers = centers.float()
    return centers, torch.searchsorted((centers[1:] + centers[:-1]) / 2.0, values.contiguous())


def palette(
    points: Float[Tensor, "points axes"], size: int, seed: int = 0
) -> tuple[Float[Tensor, "size axes"], Int[Tensor, "points"]]:
    """Centers that stand for all points with little squared error, and the nearest center of each point.

    Args:
        points: at least ``size``.
        size: number of centers.
        seed: of the points that the centers start from.
    """
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed)).to(points.device)
    centers = points[order[:size]]
    sample = points[order[: SAMPLES_PER_CENTER * size]]
    for _ in range(ROUNDS):
        nearest = _nearest(sample, centers)
        number = torch.bincount(nearest, minlength=size)[:, None]
        sums = torch.zeros_like(centers).index_add_(0, nearest, sample)
        centers = torch.where(number > 0, sums / number.clamp(min=1), centers)
    return centers, _nearest(points, centers)


def morton_order(places: Float[Tensor, "gaussians 3"]) -> Int[Tensor, "gaussians"]:
    """Indices that sort places along Morton's curve, which rarely leaves a neighborhood."""
    low, high = places.min(dim=0).values, places.max(dim=0).values
    cells = ((places - low) / (high - low).clamp(min=1e-12) * 1023.0).long()
    code = torch.zeros_like(cells[:, 0])
    for bit in range(10):
        for axis in range(3):
            code |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    return code.argsort(stable=True)


def _nearest(points: Float[Tensor, "points axes"], centers: Float[Tensor, "size axes"]) -> Int[Tensor, "points"]:
    squares = centers.square().sum(dim=1) / 2.0
    chunks = points.split(max(1, MOST_PAIRS // len(centers)))
    return torch.cat([(squares - chunk @ centers.T).argmin(dim=1) for chunk in chunks])
