"""The encoding of cones by kernels beside its torch twin in float64: cones, cotangents, and what counts as equal."""

from __future__ import annotations

import torch
from _twins import BLOCK, DEVICE, one_way, random_table
from torch import Tensor

from zipnerf_ns.functional import cones as twins
from zipnerf_ns.functional.cones import Cones, Lookup
from zipnerf_ns.functional.hash_grid import HashGrid
from zipnerf_ns.functional.spacing import s_to_t
from zipnerf_ns.kernels.encode import cone_encode as kernels
from zipnerf_ns.kernels.encode.tuning import Launch, Tuning

RAYS = 200 if DEVICE.type == "cuda" else 4
"""Seven intervals each make one block under the interpreter, whose time goes by operations, not by lanes."""
TOLERANCE = 1e-5 if DEVICE.type == "cuda" else 5e-6
"""Relative L2. A position is rounded by 6e-8 of the cube's side, up to 40 cells, and its sine and cosine are off by up
to 1e-6 of a cone's radius; a GPU's reciprocals and roots are off by another digit."""
PLAIN = one_way(Launch("interval", block=BLOCK, num_warps=1))
AABB = torch.tensor([[-2.0, -1.5, -1.0], [1.0, 1.5, 2.5]])
GAIN = 3.0


def random_cones(rays: int = RAYS, n: int = 7, turned: bool = True, boxed: bool = False, far: float = 4.0) -> Cones:
    """Cones that begin within the ball and end outside, or far away, from thin ones to wide ones; where they are turned
    each is told a share of its weights besides."""
    sdist = torch.rand(rays, n + 1).sort(dim=-1).values
    return Cones(
        origins=0.5 * torch.randn(rays, 3),
        directions=torch.nn.functional.normalize(torch.randn(rays, 3), dim=-1),
        radius=10.0 ** (torch.rand(rays, 1) * 2.0 - 2.5),
        tdist=s_to_t(sdist, torch.full((rays, 1), 0.1), torch.full((rays, 1), far)),
        turns=2.0 * torch.rand(rays, n) if turned else None,
        aabb=AABB if boxed else None,
        told=torch.rand(rays, 1) if turned else None,
    )


def make_lookup(grid: HashGrid, prefilter: str = "multisample", **changes) -> Lookup:
    """Every level with a bandwidth of its own, which only "ipe" heeds."""
    return Lookup(grid, prefilter, GAIN, torch.linspace(0.5, 1.5, len(grid.levels)))._replace(**changes)


def moved(values: tuple, device: torch.device, dtype: torch.dtype) -> tuple:
    """A tuple's tensors elsewhere and in another precision."""
    return type(values)(*(value.to(device, dtype) if isinstance(value, Tensor) else value for value in values))


def random_cotangent(shape: tuple[int, ...], dtype: torch.dtype, by_channel: bool) -> Tensor:
    v = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(DEVICE, dtype)
    return v.t().contiguous().t() if by_channel else v


def truth_of(table: Tensor, cones: Cones, lookup: Lookup, v: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Channels and the table's gradient by the twin in float64."""
    leaf = table.to(DEVICE, torch.float64).requires_grad_()
    lookup = moved(lookup, DEVICE, torch.float64)._replace(dtype=torch.float64)
    channels = twins.cone_encode(leaf, moved(cones, DEVICE, torch.float64), scales.to(DEVICE).double(), lookup)
    return channels.detach(), torch.autograd.grad(channels, leaf, v.double())[0]


def assert_close(found: Tensor, truth: Tensor, name: str, tolerance: float = TOLERANCE) -> None:
    assert found.shape == truth.shape and torch.isfinite(found).all(), name
    error, scale = (found.double() - truth).norm(), truth.norm()
    assert error <= tolerance * scale, f"{name}: {error / scale:.1e}"


def assert_equals_twin(
    cones: Cones, lookup: Lookup, tuning: Tuning | None = PLAIN, by_channel: bool = True, tolerance: float = TOLERANCE
) -> None:
    """Channels, features and weights apart, and the table's gradient for a random cotangent agree as vectors."""
    grid = lookup.grid
    table, scales = random_table(grid), torch.linspace(1.0, 2.0, len(grid.levels))
    leaf = table.to(DEVICE).requires_grad_()
    arguments = (leaf, moved(cones, DEVICE, torch.float32), scales.to(DEVICE), moved(lookup, DEVICE, torch.float32))
    if tuning is None:
        found = kernels.cone_encode(*arguments)
    else:
        found = kernels.tuned_cone_encode(*arguments, None, tuning)
    assert found.dtype == lookup.dtype
    v = random_cotangent(tuple(found.shape), found.dtype, by_channel)
    (v_table,) = torch.autograd.grad(found, leaf, v)
    truth, v_truth = truth_of(table, cones, lookup, v, scales)
    features = len(grid.levels) * grid.features_per_level
    assert_close(found[:, :features], truth[:, :features], "features", tolerance)
    assert_close(found[:, features:], truth[:, features:], "weight features", tolerance)
    assert_close(v_table, v_truth, "v_table")
