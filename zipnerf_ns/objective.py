"""What a training minimises beside the colour loss: each loss that is on, times its multiplier."""

from __future__ import annotations

from typing import Dict, List, Sequence

from jaxtyping import Float
from torch import Tensor

from zipnerf_ns import losses
from zipnerf_ns.encoding import AntiAliasedHashEncoding
from zipnerf_ns.model_config import ZipNerfModelConfig
from zipnerf_ns.ops import Ops
from zipnerf_ns.rays import Round


def regularisers(
    config: ZipNerfModelConfig,
    rgb_loss: Float[Tensor, ""],
    rounds: Sequence[Round],
    per_level: Sequence[Float[Tensor, "intervals levels features"]],
    encodings: Sequence[AntiAliasedHashEncoding],
    ops: Ops,
) -> Dict[str, Float[Tensor, ""]]:
    """The losses by name, scaled.

    Args:
        config: with the multipliers; what is 0 is not computed.
        rgb_loss: beside which the proposals may lag.
        rounds: of the step's rays, the rendered one last.
        per_level: the rendered round's features by level, alone; empty without level consistency.
        encodings: of all rounds, for their tables' decay.
        ops: the implementation.
    """
    scaled: Dict[str, Tensor] = {}
    if config.interlevel_loss_mult > 0.0:
        widths: List[float] = [proposal.blur_halfwidth for proposal in config.proposals]
        scaled["interlevel_loss"] = config.interlevel_loss_mult * losses.interlevel_loss(rounds, widths, ops)
    if config.distillation_loss_mult > 0.0:
        distillation = config.distillation_loss_mult * losses.distillation_loss(rounds)
        if config.proposal_catchup:
            distillation = distillation * losses.proposal_catchup(distillation, rgb_loss)
        scaled["distillation_loss"] = distillation
    if config.distortion_loss_mult > 0.0:
        scaled["distortion_loss"] = config.distortion_loss_mult * losses.distortion_loss(rounds[-1], ops)
    if config.level_consistency_mult > 0.0:
        (features,) = per_level
        scaled["level_consistency_loss"] = config.level_consistency_mult * losses.level_consistency(features)
    if config.hash_decay_mult > 0.0:
        mean_squares = [encoding.summary(ops).mean_square for encoding in encodings]
        scaled["hash_decay"] = config.hash_decay_mult * losses.hash_decay(mean_squares)
    return scaled
