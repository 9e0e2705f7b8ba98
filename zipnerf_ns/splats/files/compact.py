"""What makes files compact: few numbers that stand for many, and an order in which neighbors are alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zipnerf_ns.data.memory import check_room
from zipnerf_ns.splats.gaussians import Gaussians

ROUNDS = 10
"""Lloyd's steps, after which centers hardly move."""
BINS = 128
"""Bins of the histogram that tells how dense values are: few enough that outliers are seen."""
SAMPLES_PER_CENTER = 4
"""Points that the centers are fitted to: more change a palette little, and cost in proportion."""
MOST_PAIRS = 1 << 26
"""Distances computed at once: 256 MiB of them."""
MOST_AT_ONCE = 12
"""Bytes of memory for one of a file: numbers of 8 bits become some of 32 and 64."""


def check_unpacked(path: Path, size: int) -> None:
    """Checks that what a file unpacks to finds room: a few kilobytes can claim to be any number of gigabytes.

    Args:
        size: bytes that are said to come of it.
    Raises:
        InputError: naming the file, if they do not.
    """
    check_room(f"{path} unpacks to", MOST_AT_ONCE * size, torch.device("cpu"), "Take a smaller one.")


def codebook(values: Float[Tensor, "*shape"], size: int = 256) -> tuple[Float[Tensor, "size"], Int[Tensor, "*shape"]]:
    """Numbers that stand for all values with little squared error, and the number that stands for each value.

    Args:
        values: any, at least one.
        size: of the codebook; numbers that no value needs repeat the largest.
    """
    few = values.unique()
    if len(few) <= size:
        return torch.cat([few, few[-1:].expand(size - len(few))]), torch.searchsorted(few, values.contiguous())
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
    points: Float[Tensor, "points axes"], size: int, weights: Float[Tensor, "points"], seed: int = 0
) -> tuple[Float[Tensor, "size axes"], Int[Tensor, "points"]]:
    """Centers that stand for all points with little squared error, and the nearest center of each point.

    Args:
        points: at least ``size``.
        size: number of centers.
        weights: how much each point's error counts, positive.
        seed: of the points that the centers start from.
    """
    # Without replacement, by weight: with so many axes the best centers are nearly as dense as weights are.
    draws = torch.rand(len(points), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = (-draws.log().to(points.device) / weights).argsort()[: SAMPLES_PER_CENTER * size]
    centers, sample, weights = points[order[:size]], points[order], weights[order, None]
    for _ in range(ROUNDS):
        nearest = _nearest(sample, centers)
        total = torch.zeros_like(centers[:, :1]).index_add_(0, nearest, weights)
        sums = torch.zeros_like(centers).index_add_(0, nearest, weights * sample)
        centers = torch.where(total > 0.0, sums / total, centers)
    return centers, _nearest(points, centers)


def visibility(
    gaussians: Gaussians, middle: Float[Tensor, "3"] | None = None, around: float | None = None
) -> Float[Tensor, "gaussians"]:
    """About what each Gaussian adds to pictures: its opacity times its part of the view; 1 on average.

    Args:
        gaussians: any.
        middle: what the cameras look at; by default the middle of all Gaussians.
        around: how far from there they are, all around; by default as far as half of the Gaussians.
    """
    middle = gaussians.means.median(dim=0).values if middle is None else middle
    distances = (gaussians.means - middle).norm(dim=1)
    distances = distances + (float(distances.median()) if around is None else around)
    areas = gaussians.scales.topk(2, dim=1).values.sum(dim=1).exp()
    seen = torch.sigmoid(gaussians.opacities) * areas / distances.square().clamp_min(1e-12)
    # What is hardly seen still counts a little, and a sum of squares does not vanish.
    return (seen / seen.mean()).clamp_min(1e-6)


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
