"""What Zip-NeRF (Barron et al., ICCV 2023) is made of: every setting of the method, with its line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.encoding.moving import MotionConfig, MovingGridConfig
from zipnerf_ns.functional.hash_grid import Prefilter
from zipnerf_ns.functional.mlp import Precision
from zipnerf_ns.losses import ColorLoss
from zipnerf_ns.ops import Implementation

MIN_ACTIVE_LEVELS = 4
"""Levels that progressive training begins with."""


@dataclass
class ProposalConfig:
    """One proposal round."""

    num_samples: int = 64
    """Intervals per ray in this round."""
    grid: HashGridConfig = field(default_factory=lambda: HashGridConfig(6, 1, 16, 512))
    """Hash grid of this round's density."""
    hidden_dim: int = 64
    """Width of the hidden layer."""
    blur_halfwidth: float = 0.03
    """Half-width of the box blur in the interlevel loss, in normalized ray distance (0.03 then 0.003 in Zip-NeRF)."""
    moving_grid: MovingGridConfig = field(default_factory=lambda: MovingGridConfig(4, 1, 16, 512, 19))
    """Hash grid of what changes with time; of use only with motion."""


def paper_proposals() -> tuple[ProposalConfig, ...]:
    """The two proposal rounds of Zip-NeRF (section 5)."""
    return (
        ProposalConfig(grid=HashGridConfig(6, 1, 16, 512), blur_halfwidth=0.03),
        ProposalConfig(grid=HashGridConfig(8, 1, 16, 2048), blur_halfwidth=0.003),
    )


@dataclass
class ZipNerfConfig:
    """What Zip-NeRF is made of; defaults are the paper's unless their line says otherwise."""

    grid: HashGridConfig = field(default_factory=HashGridConfig)
    """Hash grid of the rendered round."""
    proposals: tuple[ProposalConfig, ...] = field(default_factory=paper_proposals)
    """The proposal rounds, in order."""
    num_samples: int = 32
    """Intervals per ray in the rendered round."""
    prefilter: Prefilter = "multisample"
    """Anti-aliasing: multisample (six look-ups an interval, best), ipe (one, faster), none (for comparison)."""
    proposal_prefilter: Prefilter = "ipe"
    """Anti-aliasing of the proposal rounds, of which no color is seen: with one look-up an interval pictures were as
    good as with the paper's six (multisample)."""
    implementation: Implementation = "auto"
    """What computes the model: triton (CUDA), torch (anywhere), auto (the faster that runs here), tcnn (as auto, with
    hash grids by tinycudann)."""
    precision: Precision = "bfloat16"
    """Number format of matrix products on CUDA: bfloat16, float16 (what it is on GPUs without bfloat16: RTX 20, T4),
    float32; density and prefilter weights are always float32."""

    motion: MotionConfig = field(default_factory=MotionConfig)
    """Whether and how the scene moves."""

    hidden_dim: int = 64
    """Width of the density network's hidden layer."""
    bottleneck_dim: int = 256
    """Features handed from the density to the color network."""
    color_layers: int = 3
    """Hidden layers of the color network."""
    color_dim: int = 256
    """Width of the color network's hidden layers."""
    color_group: Literal[1, 2, 4, 8, 16] = 2
    """Neighboring intervals of a ray that share a color, seen in the mean of their features; 1: each has its own."""

    rgb_loss: ColorLoss = "pseudo_huber"
    """Distance of rendered and true colors, beside which the other losses count: pseudo_huber (measured best: small
    errors squared, large ones not, by a step's own root mean square), charbonnier (the paper's), mse, rmse."""
    interlevel_loss_mult: float = 0.01
    """Weight of the anti-aliased interlevel loss, which trains the proposals (Zip-NeRF, section 4); 0 is off."""
    distillation_loss_mult: float = 0.0
    """Weight of KL + squared difference between the rendered and the proposals' histograms; 0 is off."""
    proposal_catchup: bool = True
    """Raise the distillation's weight while it exceeds ten times the color loss; without distillation no effect."""
    distortion_loss_mult: float = 0.05
    """Weight of the distortion loss, which gathers each ray's weight (mip-NeRF 360, with 0.01); 0 is off."""
    hash_decay_mult: float = 0.1
    """Weight of the decay of hash table values (Zip-NeRF, section 5); 0 is off."""
    level_consistency_mult: float = 0.0
    """Weight of the difference between adjacent levels' features; 0 is off."""
    appearance_loss_mult: float = 0.003
    """Weight of the share of photos whose light is not the mean one, with use_appearance; 0 is off."""
    mask_loss_mult: float = 0.001
    """Weight of the share of what is seen that may move, with motion.kind blend and both; 0 is off."""
    untold_every: int = 8
    """Of so many training rays one is not told the prefilter's weights, so that pictures from nearer, from farther and
    of other sizes than the photos, whose weights are others, are as bright (not in the paper); 0: none."""
    use_gradient_scaling: bool = True
    """Lower the gradients of what is nearer to a camera than one world unit: against floaters before the cameras (not
    in the paper)."""
    anneal_slope: float = 10.0
    """Slope b of the proposals' annealing: weights to the power b*f/((b-1)*f+1) at share f of the training
    (mip-NeRF 360)."""
    progressive_levels: bool = False
    """Switch hash levels on from coarse to fine over the training, beginning with four."""
