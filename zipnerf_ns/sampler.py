"""Sampling along rays: proposal rounds and the final one, each drawing intervals from the round before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zipnerf_ns.ops import TORCH_OPS, Ops
from zipnerf_ns.rays import Rays, Round

DensityFn = Callable[[Rays, Tensor], Tensor]
"""A function from rays and fenceposts ``[rays, n+1]`` in world units to densities ``[rays, n]``."""


class Sampled(NamedTuple):
    """What the sampler hands on."""

    sdist: Float[Tensor, "rays edges"]
    """Fenceposts of the final round, normalized distance."""
    tdist: Float[Tensor, "rays edges"]
    """The same in world units."""
    proposals: list[Round]
    """The rounds before."""


class IntervalSampler(nn.Module):
    """Draws intervals in rounds, each from the previous round's histogram (Zip-NeRF, section 4).

    No gradient flows through where the intervals lie. Its operations are ``ops``: torch's until it is given others.

    Args:
        num_samples: intervals of each round; the last is the rendered one.
    Raises:
        ValueError: if there is no round.
    """

    def __init__(self, num_samples: Sequence[int]) -> None:
        super().__init__()
        if not num_samples:
            raise ValueError("num_samples must name at least one round.")
        self.num_samples = tuple(num_samples)
        self.ops: Ops = TORCH_OPS

    def forward(
        self,
        rays: Rays,
        density_fns: Sequence[DensityFn],
        anneal: float | Float[Tensor, ""] = 1.0,
        side: int = 1,
    ) -> Sampled:
        """Intervals for the final round, with the proposal rounds.

        Args:
            rays: whose origins and limits are used.
            density_fns: one a proposal round.
            anneal: exponent on the weights that are drawn from, 0 to 1.
            side: of the squares of pixels whose rays, one after the other, share their proposals, which are so many
                fewer then.
        Raises:
            ValueError: if there is not one density function fewer than rounds.
        """
        if len(density_fns) != len(self.num_samples) - 1:
            raise ValueError(f"{len(self.num_samples)} rounds need one density_fn fewer, got {len(density_fns)}.")
        sdist: Tensor | None = None
        weights: Tensor | None = None
        proposals: list[Round] = []
        own, rays = rays, rays.merged(side) if side > 1 else rays
        jitters = self._jitters(rays)
        for index, num_samples in enumerate(self.num_samples):
            drawn_from = None if weights is None else weights.detach()
            jitter = None if jitters is None else jitters[index]
            sdist, tdist = self.ops.draw_intervals(
                sdist, drawn_from, num_samples, jitter, anneal, rays.near, rays.far
            )
            if index < len(density_fns):
                weights = self.ops.density_to_weights(density_fns[index](rays, tdist), tdist, rays.valid)
                proposals.append(Round(sdist, tdist, weights))
        if side > 1:
            sdist, tdist = (posts.repeat_interleave(side * side, dim=0) for posts in (sdist, tdist))
            # What lies beyond a ray's own limits has no length.
            tdist = torch.minimum(torch.maximum(tdist, own.near), own.far)
        return Sampled(sdist, tdist, proposals)

    def _jitters(self, rays: Rays) -> Float[Tensor, "rounds rays 1"] | None:
        """One jitter a round and ray, all drawn at once; none at evaluation."""
        if not self.training:
            return None
        return torch.rand(len(self.num_samples), *rays.near.shape, device=rays.near.device)
