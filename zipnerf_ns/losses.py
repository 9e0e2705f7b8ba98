"""The losses of Zip-NeRF on rounds of intervals; each returns its unscaled mean over the rays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional.numerics import TINY
from zipnerf_ns.functional.stepfun import resample
from zipnerf_ns.ops import Ops
from zipnerf_ns.rays import Round

CHARBONNIER_PADDING = 0.001
"""Errors below this are treated as squared, above as absolute (Zip-NeRF, section 5); rmse's root begins there, too."""
KNEE = 2.0
"""Errors of pseudo_huber that are well below so many times a step's root mean square are treated as squared, well above
as absolute."""
INTERLEVEL_EPS = 1e-5
"""Keeps the interlevel loss's division finite; well below any weight that shows."""
LOG_EPS = 1e-6
"""Floor of a probability inside the distillation's logarithm."""

COMMON_DEPARTURE = 0.1
"""Length of a photo's three log gains up to which a departure from the mean light is common: some 6% each."""

ColorLoss = Literal["pseudo_huber", "charbonnier", "mse", "rmse"]
"""Distances between rendered and true colors."""


def charbonnier(prediction: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """sqrt(e^2 + 0.001^2), mean over the channels: unreduced over the rays (Zip-NeRF, section 5)."""
    return torch.sqrt((prediction - target).square() + CHARBONNIER_PADDING**2).mean(dim=-1)


def squared_error(prediction: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """Squared error, mean over the channels: unreduced over the rays."""
    return (prediction - target).square().mean(dim=-1)


def pseudo_huber(
    prediction: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"], knee: Float[Tensor, ""]
) -> Float[Tensor, "*batch"]:
    """sqrt(e^2 + knee^2) - knee, mean over the channels: unreduced over the rays (Charbonnier et al., 1997)."""
    return (torch.sqrt((prediction - target).square() + knee.square()) - knee).mean(dim=-1)


def color_loss(
    name: ColorLoss,
    prediction: Float[Tensor, "*batch 3"],
    target: Float[Tensor, "*batch 3"],
    ray_weights: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    """The mean distance of colors over a step's rays.

    "rmse" is the root of the mean squared error: the gradient's direction is that of "mse", its size does not fade as
    the errors become small, so that the other losses keep their share, as they do beside "charbonnier". "pseudo_huber"
    lies between the two: small errors pull like those of "rmse", the few that are many times larger no more than in
    "charbonnier", and what is large follows the step's own root mean square.

    Args:
        name: of the distance.
        prediction, target: of the same rays.
        ray_weights: of each ray in the mean, 1 on average; None for equal ones.
    """
    if name == "pseudo_huber":
        mean_square = _mean(squared_error(prediction.detach(), target), ray_weights)
        per_ray = pseudo_huber(prediction, target, KNEE * torch.sqrt(mean_square + CHARBONNIER_PADDING**2))
        return math.sqrt(1.0 + KNEE**2) * _mean(per_ray, ray_weights)
    per_ray = charbonnier(prediction, target) if name == "charbonnier" else squared_error(prediction, target)
    mean = _mean(per_ray, ray_weights)
    return torch.sqrt(mean + CHARBONNIER_PADDING**2) if name == "rmse" else mean


def _mean(per_ray: Float[Tensor, "*batch"], ray_weights: Float[Tensor, "*batch"] | None) -> Float[Tensor, ""]:
    return (per_ray if ray_weights is None else per_ray * ray_weights).mean()


def interlevel_loss(rounds: Sequence[Round], blur_halfwidths: Sequence[float], ops: Ops) -> Float[Tensor, ""]:
    """Anti-aliased interlevel loss (Zip-NeRF, section 4): proposals must cover the blurred NeRF histogram.

    Per ray the sum over a proposal's intervals of max(0, w_blurred - w_prop)^2 / (w_prop + eps), the gradient
    reaching only the proposal; summed over the proposals.

    Args:
        rounds: the rendered one last.
        blur_halfwidths: of each proposal, normalized distance.
        ops: the implementation.
    """
    *proposals, main = rounds
    weights = main.weights.detach()
    per_ray = [
        ops.interlevel(proposal.weights, proposal.sdist, weights, main.sdist, halfwidth, INTERLEVEL_EPS)
        for proposal, halfwidth in zip(proposals, blur_halfwidths, strict=True)
    ]
    return torch.stack(per_ray).sum(dim=0).mean()


def distillation_loss(rounds: Sequence[Round]) -> Float[Tensor, ""]:
    """KL(p_main || p_prop) + |w_main - w_prop|^2, the NeRF histogram being the teacher; summed over the proposals.

    Unlike the interlevel loss, which only asks for an upper envelope, this pulls a proposal onto the rendered
    histogram from both sides. p are the weights normalized to sum to one; rays without weight count as zero.

    Args:
        rounds: the rendered one last.
    """
    *proposals, main = rounds
    loss = main.weights.new_zeros(())
    for sdist, _, w_prop in proposals:
        with torch.no_grad():
            w_main = resample(sdist, main.sdist, main.weights)
            total = w_main.sum(dim=-1, keepdim=True)
            p_main = w_main / total.clamp_min(TINY)
        p_prop = w_prop / w_prop.sum(dim=-1, keepdim=True).clamp_min(LOG_EPS)
        log_ratio = torch.log(p_main + LOG_EPS) - torch.log(p_prop + LOG_EPS)
        # The ray's opacity weighs its divergence: an empty ray's p is arbitrary.
        divergence = (total[..., 0] * (p_main * log_ratio).sum(dim=-1)).mean()
        loss = loss + divergence + (w_main - w_prop).square().sum(dim=-1).mean()
    return loss


def proposal_catchup(
    proposal_loss: Float[Tensor, ""], rgb_loss: Float[Tensor, ""], ratio: float = 10.0, limit: float = 10.0
) -> Float[Tensor, ""]:
    """Factor by which the proposals' loss is raised while it exceeds ``ratio`` times the color's; no gradient.

    Args:
        proposal_loss, rgb_loss: the scaled losses.
        ratio: how far the proposals may lag behind before they are helped.
        limit: the largest factor.
    """
    lag = proposal_loss.detach() / (ratio * rgb_loss.detach()).clamp_min(TINY)
    return lag.clamp(1.0, limit)


def distortion_loss(main: Round, ops: Ops) -> Float[Tensor, ""]:
    """mip-NeRF 360's distortion (eq. 15) of the rendered round, on power-laddered distance (Zip-NeRF's supplement)."""
    return ops.distortion(main.tdist, main.weights).mean()


def hash_decay(mean_squares: Sequence[Float[Tensor, "_"]]) -> Float[Tensor, ""]:
    """Half the sum over grids and levels of the mean squared table value (Zip-NeRF, section 5).

    A value to report: its gradient, table / entries of the level, is added where the optimizer reads the table.
    """
    return 0.5 * torch.stack([per_level.sum() for per_level in mean_squares]).sum()


def level_consistency(per_level: Float[Tensor, "intervals levels features"]) -> Float[Tensor, ""]:
    """Mean squared difference of adjacent levels' features, the finer one being the teacher."""
    # The networks may read their features in half precision, in which differences have no digits left to square.
    per_level = per_level.to(torch.promote_types(per_level.dtype, torch.float32))
    return (per_level[:, :-1] - per_level[:, 1:].detach()).square().mean()


def appearance_loss(departures: Float[Tensor, "images 3"]) -> Float[Tensor, ""]:
    """Share of the photos that are not in the mean light, those with small departures counted in part.

    Any camera's exposure drifts by a few percent along its path. Colors that depend on the view explain that as well,
    and unlike gains they carry on to views between the photos. A large departure costs no more than a middling one
    (Geman and McClure, 1985), so that gains that are needed are hardly lowered.

    Args:
        departures: log gains of each photo less their mean over the photos.
    """
    squares = departures.square().sum(dim=-1)
    return (squares / (squares + COMMON_DEPARTURE**2)).mean()


def mask_loss(main: Round, mask: Float[Tensor, "intervals 1"]) -> Float[Tensor, ""]:
    """Share of what rays see that may move: it pulls down the mask where nothing does, and no weights."""
    return (main.weights.detach() * mask.view_as(main.weights)).sum(dim=-1).mean()
