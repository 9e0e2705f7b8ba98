"""What the tests of the kernels along rays share: rays, histograms, and what counts as equal to a twin in float64."""

from __future__ import annotations

import torch
from _twins import DEVICE
from torch import Tensor

from zipnerf_ns.functional import ray_march as twins
from zipnerf_ns.functional.spacing import s_to_t
from zipnerf_ns.kernels.march import ray_march as kernels

EPS = 1e-5
TOLERANCE = 3e-6
"""Relative L2 of a ray. A GPU's exp is off by 6e-8 a unit of its argument, of which up to about 20 matter."""
SIZES = [(1, 2, 2), (2, 16, 17), (5, 64, 64), (6, 64, 32), (5, 32, 64), (9, 5, 3), (3, 48, 200), (2, 512, 130)]
SIZES += [(0, 64, 32)]
"""Rays, intervals, and intervals of the other histogram: odd ones, one ray, none, more than a program works on."""


def histogram(rays: int, bins: int, empty: float = 0.0) -> tuple[Tensor, Tensor]:
    """Fenceposts from 0 to 1 and weights that sum to less than one; a share ``empty`` of them are zero."""
    widths = 0.1 + torch.rand(rays, bins, dtype=torch.float64)
    ends = widths.cumsum(dim=-1) / widths.sum(dim=-1, keepdim=True)
    sdist = torch.cat([torch.zeros(rays, 1), ends], dim=-1).clamp_max(1.0)
    weights = (0.05 + torch.rand(rays, bins)) * (torch.rand(rays, bins) >= empty)
    return sdist.float(), 0.9 * weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-3)


def spiky_histogram(rays: int, bins: int) -> tuple[Tensor, Tensor]:
    """Coinciding fenceposts at both ends and inside, mass where there is no width, empty rays, all mass in one bin."""
    sdist, weights = histogram(rays, bins, empty=0.6)
    sdist[:, bins // 2] = sdist[:, bins // 2 + 1]
    sdist[1::3, 1], sdist[2::3, -2] = 0.0, 1.0
    weights[0] = 0.0
    weights[3] = 0.0
    weights[3, bins // 3] = 1.0
    return sdist, weights


def fenceposts(sdist: Tensor, near: float = 0.1, far: float = 1e6) -> Tensor:
    return s_to_t(sdist.double(), *(torch.full((len(sdist), 1), end).double() for end in (near, far))).float()


def rays_to_march(rays: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Densities from nearly nothing to opaque, fenceposts out to far, which rays see, and colors.

    Every other ray lets light through to its end.
    """
    density = 10.0 ** (torch.rand(rays, n) * 5.0 - 3.0)
    density[::2] *= 1e-8
    valid = torch.arange(rays)[:, None] % 4 != 1
    return density, fenceposts(histogram(rays, n)[0]), valid, torch.rand(rays, n, 3)


def outcome(operation, args, wanted: tuple[int, ...], double: bool) -> list[Tensor]:
    """Results, and the gradients to the arguments ``wanted`` of their product with random cotangents."""
    args = [arg.to(DEVICE) if isinstance(arg, Tensor) else arg for arg in args]
    if double:
        args = [arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]
    args = [arg.detach().requires_grad_() if i in wanted else arg for i, arg in enumerate(args)]
    results = operation(*args)
    results = (results,) if isinstance(results, Tensor) else results
    generator = torch.Generator().manual_seed(5)
    total = sum((out * torch.randn(out.shape, generator=generator).to(out)).sum() for out in results)
    gradients = torch.autograd.grad(total, [args[i] for i in wanted]) if wanted else ()
    return [*(out.detach() for out in results), *gradients]


def assert_close(found: Tensor, truth: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal ray by ray: the gradients of rays that end far away are a million times those of others."""
    assert found.shape == truth.shape
    assert torch.isfinite(found).all()
    error, scale = (x.double()[:, None].flatten(1).norm(dim=1) for x in (found.double() - truth, truth))
    # Behind opaque matter the truth itself is a difference of numbers that float64 rounds to 1e-16.
    assert (error <= tolerance * scale + 1e-14).all(), f"{error / scale}"


def assert_equals_twin(name: str, args, wanted: tuple[int, ...] = (), tolerance: float = TOLERANCE) -> None:
    """Values, and gradients to the arguments whose numbers are ``wanted``, agree as vectors."""
    found = outcome(getattr(kernels, name), args, wanted, double=False)
    truth = outcome(getattr(twins, name), args, wanted, double=True)
    for value, expected in zip(found, truth, strict=True):
        assert value.dtype == torch.float32
        assert_close(value, expected, tolerance)
