"""What several tests of ``functional/`` share: seeded inputs, random cotangents, textbook formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Output = Tensor | tuple[Tensor, ...]

CONE_RADII = [1e-4, 1e-3, 0.0095, 0.1, 0.6]
"""From a telephoto pixel to the cone of nerfstudio's validation ray, whose pixel_area is 1."""


def rng(seed: int) -> torch.Generator:
    """A generator of this seed; no test depends on the order in which tests run."""
    return torch.Generator().manual_seed(seed)


def unit_vectors(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Directions spread evenly over the sphere, [*shape, 3]."""
    vectors = torch.randn(*shape, 3, generator=rng(seed), dtype=torch.float64)
    return (vectors / vectors.norm(dim=-1, keepdim=True)).to(dtype)


def random_histogram(
    batch: Sequence[int], bins: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Fenceposts from 0 to 1, no interval narrower than 1/(10 bins), and positive weights that sum to one."""
    generator = rng(seed)
    widths = 0.1 + torch.rand(*batch, bins, generator=generator, dtype=torch.float64)
    ends = widths.cumsum(dim=-1) / widths.sum(dim=-1, keepdim=True)
    sdist = torch.cat([torch.zeros_like(ends[..., :1]), ends], dim=-1)
    weights = torch.rand(*batch, bins, generator=generator, dtype=torch.float64).square() + 1e-3
    return sdist.to(dtype), (weights / weights.sum(dim=-1, keepdim=True)).to(dtype)


def random_cotangents(outputs: Output, seed: int) -> list[Tensor]:
    """One random cotangent per output: a cotangent of ones hides permutations and wrong signs."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    generator = rng(seed)
    return [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]


def gradients(function: Callable[..., Output], leaves: Sequence[Tensor], seed: int) -> tuple[Output, list[Tensor]]:
    """Output of ``function(*leaves)``, and gradients of its product with random cotangents, 0 if unused."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    outputs = function(*leaves)
    listed = (outputs,) if isinstance(outputs, Tensor) else outputs
    total = sum((out * v_out).sum() for out, v_out in zip(listed, random_cotangents(outputs, seed), strict=True))
    return outputs, list(torch.autograd.grad(total, leaves, materialize_grads=True))


def assert_finite(function: Callable[..., Output], *leaves: Tensor, seed: int = 0) -> None:
    """Value and gradient of ``function(*leaves)`` are finite everywhere."""
    outputs, grads = gradients(function, leaves, seed)
    for out in (outputs,) if isinstance(outputs, Tensor) else outputs:
        assert torch.isfinite(out).all(), f"value: {out}"
    for index, grad in enumerate(grads):
        assert torch.isfinite(grad).all(), f"gradient of argument {index}: {grad}"


def dense_density(x: np.ndarray, sdist: Tensor, weights: Tensor) -> np.ndarray:
    """Density at the points ``x`` of one ray's histogram, zero outside of it, interval by interval."""
    density = np.zeros_like(x)
    for start, end, weight in zip(sdist[:-1].tolist(), sdist[1:].tolist(), weights.tolist(), strict=True):
        if end > start:
            density[(x >= start) & (x < end)] = weight / (end - start)
    return density


def random_intervals(batch, num, seed, dtype=torch.float64):
    """Intervals of every proportion, from thin ones to ones that start near 0; distances from 1e-3 to 1e3."""
    generator = rng(seed)
    ends = 10.0 ** (torch.rand(*batch, num, generator=generator, dtype=torch.float64) * 6.0 - 3.0)
    thickness = 10.0 ** (-3.0 * torch.rand(*batch, num, generator=generator, dtype=torch.float64))
    return (ends * (1.0 - thickness)).to(dtype), ends.to(dtype)


def textbook_moments(t0: Tensor, t1: Tensor, radius: float):
    """mip-NeRF, eq. 7 as printed."""
    m, d = (t0 + t1) / 2.0, (t1 - t0) / 2.0
    s = 3.0 * m**2 + d**2
    t_mean = m + 2.0 * m * d**2 / s
    t_var = d**2 / 3.0 - 4.0 / 15.0 * (d**4 * (12.0 * m**2 - d**2) / s**2)
    return t_mean, t_var, radius**2 * (m**2 / 4.0 + 5.0 / 12.0 * d**2 - 4.0 / 15.0 * d**4 / s)


def cone(radius: float, batch=(), dtype=torch.float64) -> Tensor:
    """The cone's radius as the functions take it."""
    return torch.full((*batch, 1), radius, dtype=dtype)
