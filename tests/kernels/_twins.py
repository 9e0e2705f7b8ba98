"""Kernels beside their torch twins: where they can run, what they are run on, and what counts as equal."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from zipnerf_ns.functional import hash_grid
from zipnerf_ns.functional.contraction import contract_points
from zipnerf_ns.functional.frustum import multisamples
from zipnerf_ns.functional.hash_grid import HashGrid, make_hash_grid
from zipnerf_ns.functional.spacing import s_to_t
from zipnerf_ns.kernels.encode import hash_encode as kernels
from zipnerf_ns.kernels.encode.tuning import Launch, Plan, Tuning

HAS_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNS_KERNELS = HAS_GPU or INTERPRETED
DEVICE = torch.device("cuda" if HAS_GPU and not INTERPRETED else "cpu")
BLOCK = 32
INTERVALS = 1000 if DEVICE.type == "cuda" else 21
"""The interpreter takes tens of milliseconds for a sample at a level, for up to BLOCK intervals at a time."""
TOLERANCE = 1e-5
"""Relative L2. Fractions of a cell differ by 6e-8 * 40 cells where the GPU fuses a product and a sum."""


def odd_grid(features: int) -> HashGrid:
    """Resolutions 5 (dense, no power of two), 14 and 40 (hashed); no level but the first begins on a window."""
    return make_hash_grid(3, 5, 40, 10, features)


def even_grid(features: int) -> HashGrid:
    """Resolutions 4, 8 (dense, powers of two) and 16 (hashed)."""
    return make_hash_grid(3, 4, 16, 10, features)


def one_way(launch: Launch, half_table: bool = False) -> Tuning:
    """All levels by the same launch, in both directions."""
    return Tuning(Plan(launch, launch), Plan(launch, launch), half_table)


def random_table(grid: HashGrid) -> Tensor:
    return torch.randn(grid.num_entries, grid.features_per_level)


def random_samples(intervals: int, samples: int) -> tuple[Tensor, Tensor]:
    """Half of the intervals with all samples close together, half with samples anywhere, some outside the cube."""
    positions = torch.rand(intervals, samples, 3) * 1.2 - 0.1
    close = positions[:, :1] + 0.02 * torch.randn(intervals, samples, 3)
    return torch.where(torch.rand(intervals, 1, 1) < 0.5, close, positions), 0.1 * torch.rand(intervals, samples)


def outcome(encode, leaves: tuple[Tensor, ...], *args) -> list[Tensor | None]:
    """Features, weights, and gradients of their product with random cotangents, to all leaves but the bandwidths."""
    *leaves, bandwidths = (leaf.to(DEVICE).detach() for leaf in leaves)
    table, positions, stds = leaves = [leaf.requires_grad_() for leaf in leaves]
    results = encode(table, positions, stds, args[0], args[1], bandwidths, *args[2:])
    generator = torch.Generator().manual_seed(5)
    total = sum((out * torch.randn(out.shape, generator=generator).to(DEVICE)).sum() for out in results)
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [*(out.detach() for out in results), *gradients]


def assert_equals_twin(
    grid: HashGrid,
    positions: Tensor,
    stds: Tensor,
    prefilter: str = "multisample",
    tuning: Tuning | None = None,
    num_active: int | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Values, and gradients to table, positions and stds, agree as vectors."""
    leaves = (random_table(grid), positions, stds, torch.linspace(0.5, 1.5, len(grid.levels)))
    expected = outcome(hash_grid.hash_encode, leaves, grid, prefilter, num_active)
    if tuning is None:
        found = outcome(kernels.hash_encode, leaves, grid, prefilter, num_active)
    else:
        found = outcome(kernels.tuned_hash_encode, leaves, grid, prefilter, num_active, tuning)
    names = ("features", "weights", "v_table", "v_positions", "v_stds")
    for name, truth, value in zip(names, expected, found, strict=True):
        if truth is None:
            assert value is None or not value.any(), name
        else:
            assert value.shape == truth.shape and value.dtype == truth.dtype, name
            assert torch.isfinite(value).all(), name
            error, scale = (value - truth).norm(), truth.norm()
            assert error <= tolerance * scale, f"{name}: {error / scale:.1e}"


def cone_samples(rays: int, intervals: int) -> tuple[Tensor, Tensor]:
    """Six multisamples of each interval of pixels' cones through an unbounded scene, in the unit cube."""
    origins = 0.3 * torch.randn(rays, 3)
    directions = torch.nn.functional.normalize(torch.randn(rays, 3), dim=-1)
    sdist = torch.linspace(0.0, 1.0, intervals + 1).expand(rays, -1)
    tdist = s_to_t(sdist, torch.full((rays, 1), 0.1), torch.full((rays, 1), 1e6))
    turns, flips = 6.28 * torch.rand(rays, intervals), torch.rand(rays, intervals) < 0.5
    radius = torch.full((rays, 1), 2e-3)
    points, stds = multisamples(origins, directions, tdist[:, :-1], tdist[:, 1:], radius, turns, flips)
    positions, stds = contract_points(points, stds)
    return positions.flatten(0, 1), stds.flatten(0, 1)
