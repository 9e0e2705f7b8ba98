"""What several tests of ``functional/`` share: seeded inputs, random cotangents, and a histogram sampled densely."""

from __future__ import annotations

from typing import Callable, List, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

Output = Union[Tensor, Tuple[Tensor, ...]]


def rng(seed: int) -> torch.Generator:
    """A generator of this seed; no test depends on the order in which tests run."""
    return torch.Generator().manual_seed(seed)


def unit_vectors(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Directions spread evenly over the sphere, [*shape, 3]."""
    vectors = torch.randn(*shape, 3, generator=rng(seed), dtype=torch.float64)
    return (vectors / vectors.norm(dim=-1, keepdim=True)).to(dtype)


def random_histogram(
    batch: Sequence[int], bins: int, seed: int, dtype: torch.dtype = torch.float64
) -> Tuple[Tensor, Tensor]:
    """Fenceposts from 0 to 1, no interval narrower than 1/(10 bins), and positive weights that sum to one."""
    generator = rng(seed)
    widths = 0.1 + torch.rand(*batch, bins, generator=generator, dtype=torch.float64)
    ends = widths.cumsum(dim=-1) / widths.sum(dim=-1, keepdim=True)
    sdist = torch.cat([torch.zeros_like(ends[..., :1]), ends], dim=-1)
    weights = torch.rand(*batch, bins, generator=generator, dtype=torch.float64).square() + 1e-3
    return sdist.to(dtype), (weights / weights.sum(dim=-1, keepdim=True)).to(dtype)


def random_cotangents(outputs: Output, seed: int) -> List[Tensor]:
    """One random cotangent per output: a cotangent of ones hides permutations and wrong signs."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    generator = rng(seed)
    return [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]


def gradients(function: Callable[..., Output], leaves: Sequence[Tensor], seed: int) -> Tuple[Output, List[Tensor]]:
    """Output of ``function(*leaves)``, and the gradients of its product with random cotangents."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    outputs = function(*leaves)
    listed = (outputs,) if isinstance(outputs, Tensor) else outputs
    total = sum((out * v_out).sum() for out, v_out in zip(listed, random_cotangents(outputs, seed)))
    return outputs, list(torch.autograd.grad(total, leaves))


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
    for start, end, weight in zip(sdist[:-1].tolist(), sdist[1:].tolist(), weights.tolist()):
        if end > start:
            density[(x >= start) & (x < end)] = weight / (end - start)
    return density
