"""What is computed along each ray, on plain tensors: drawing intervals, rendering them, and losses on their weights.

Each function has a fused kernel of the same name and signature in ``zipnerf_ns.kernels.march``; these define what
those compute. Intervals of a ray adjoin: n of them are n+1 fenceposts, ``sdist`` in normalized distance (0 to 1) or
``tdist`` along the unit direction in world units.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zipnerf_ns.functional import spacing, stepfun, volume
from zipnerf_ns.functional.linspline import blurred_resample

LEAST_MASS = 1e-6
"""Added to every weight in a mean over a group, which is so defined where nothing has any."""


@torch.no_grad()
def draw_intervals(
    sdist: Float[Tensor, "rays edges"] | None,
    weights: Float[Tensor, "rays bins"] | None,
    num_samples: int,
    jitter: Float[Tensor, "rays 1"] | None,
    anneal: float | Float[Tensor, ""],
    near: Float[Tensor, "rays 1"],
    far: Float[Tensor, "rays 1"],
) -> tuple[Float[Tensor, "rays {num_samples}+1"], Float[Tensor, "rays {num_samples}+1"]]:
    """Fenceposts ``sdist`` and ``tdist`` of intervals drawn from a histogram; no gradient (Zip-NeRF, section 4).

    Args:
        sdist, weights: the histogram, or ``None`` for the first round, whose histogram is even on [0, 1].
        num_samples: intervals to draw, at least 2.
        jitter: one number in [0, 1) a ray; ``None`` draws the middles.
        anneal: exponent on the weights, 0 to 1; a number, or a tensor on the rays' device.
        near, far: ends of each ray, world units.
    Raises:
        ValueError: if ``num_samples`` is below 2, or only one of ``sdist`` and ``weights`` is given.
    """
    if (sdist is None) != (weights is None):
        raise ValueError("a histogram is both sdist and weights: give both, or neither for an even one.")
    if sdist is None:
        sdist = torch.cat([torch.zeros_like(near), torch.ones_like(near)], dim=-1)
        weights = torch.ones_like(near)
    drawn = stepfun.sample_intervals(sdist, weights, num_samples, jitter, anneal)
    return drawn, spacing.s_to_t(drawn, near, far)


def density_to_weights(
    density: Float[Tensor, "rays n"], tdist: Float[Tensor, "rays n+1"], valid: Bool[Tensor, "rays 1"]
) -> Float[Tensor, "rays n"]:
    """Share of each ray's color that its intervals contribute (mip-NeRF, eq. 4), with a gradient to the density.

    Args:
        density: per world unit.
        tdist: fenceposts, world units.
        valid: False for rays that see nothing: their weights and gradients are zero.
    """
    tdist = tdist.detach()
    return torch.where(valid, volume.density_to_weights(density, tdist[:, :-1], tdist[:, 1:]), 0.0)


def render(
    density: Float[Tensor, "rays n"],
    tdist: Float[Tensor, "rays n+1"],
    valid: Bool[Tensor, "rays 1"],
    colors: Float[Tensor, "rays n 3"],
) -> tuple[Float[Tensor, "rays n"], Float[Tensor, "rays 3"], Float[Tensor, "rays 1"]]:
    """Weights, color without a background, and accumulation, with gradients to density and colors.

    Args:
        density, tdist, valid: as :func:`density_to_weights` takes them.
        colors: of each interval, in any floating dtype; summed in the density's.
    """
    weights = density_to_weights(density, tdist, valid)
    rgb = (weights[..., None] * colors.to(weights.dtype)).sum(dim=-2)
    return weights, rgb, weights.sum(dim=-1, keepdim=True)


def group_channels(
    channels: Float[Tensor, "intervals channels"], weights: Float[Tensor, "rays n"], size: int
) -> Float[Tensor, "groups channels"]:
    """Mean channels of each ``size`` neighboring intervals of a ray under their weights.

    A ray's last group has what is left. Where nothing has weight the mean is the plain one. Channels alone have a
    gradient: one to the weights, too, made no difference to what is learned.

    Args:
        channels: of the encoding.
        weights: of the intervals, not negative.
        size: intervals of a group.
    """
    (rays, n), groups = weights.shape, -(-weights.shape[1] // size)
    rest = groups * size - n
    masses = torch.nn.functional.pad(weights.detach() + LEAST_MASS, (0, rest)).view(rays, groups, size, 1)
    rows = torch.nn.functional.pad(channels.unflatten(0, (rays, n)), (0, 0, 0, rest)).unflatten(1, (groups, size))
    means = (rows * masses).sum(dim=2) / masses.sum(dim=2)
    return means.flatten(0, 1).to(channels.dtype)


def interlevel(
    w_prop: Float[Tensor, "rays n"],
    sdist_prop: Float[Tensor, "rays n+1"],
    w_main: Float[Tensor, "rays m"],
    sdist_main: Float[Tensor, "rays m+1"],
    halfwidth: float,
    eps: float,
) -> Float[Tensor, "rays"]:
    """Anti-aliased interlevel loss of each ray (Zip-NeRF, section 4), with a gradient to the proposal's weights only.

    The sum over the proposal's intervals of max(0, w_blurred - w_prop)^2 / (w_prop + eps).

    Args:
        w_prop, sdist_prop: the proposal's histogram.
        w_main, sdist_main: the rendered histogram, which the proposal should cover.
        halfwidth: half-width of the box that blurs the latter, normalized distance; > 0.
        eps: keeps the division finite.
    Raises:
        ValueError: if ``halfwidth`` is not positive.
    """
    with torch.no_grad():
        w_blurred = blurred_resample(sdist_prop, sdist_main, w_main, halfwidth)
    excess = torch.relu(w_blurred - w_prop)
    return (excess.square() / (w_prop + eps)).sum(dim=-1)


def distortion(tdist: Float[Tensor, "rays edges"], weights: Float[Tensor, "rays edges-1"]) -> Float[Tensor, "rays"]:
    """Distortion of each ray (mip-NeRF 360, eq. 15) on power-laddered distance (Zip-NeRF's supplement).

    Args:
        tdist: fenceposts, world units; without gradient.
        weights: mass of each interval; with gradient.
    """
    return stepfun.distortion(spacing.distortion_distance(tdist.detach()), weights)


@torch.no_grad()
def median_and_mean_distance(
    weights: Float[Tensor, "rays n"], tdist: Float[Tensor, "rays n+1"]
) -> tuple[Float[Tensor, "rays 1"], Float[Tensor, "rays 1"]]:
    """Median and geometric mean distance along each ray, world units; no gradient. Near for both of an empty ray.

    Args:
        weights: mass of each interval, not necessarily normalized.
        tdist: fenceposts, world units.
    """
    starts, ends = tdist[:, :-1], tdist[:, 1:]
    return volume.median_distance(weights, starts, ends), volume.expected_distance(weights, starts, ends)
