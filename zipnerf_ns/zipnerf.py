"""Zip-NeRF (Barron et al., ICCV 2023): rays in, colors, distances and losses out. Read it from top to bottom.

A ray is a pixel's cone. It is cut into intervals in three rounds (``sampler``): two proposal rounds look roughly where
something is, the last one is rendered. A round asks a field (``field``) for the density of its intervals; a field reads
an anti-aliased hash encoding (``encoding``), in which an interval too large for a grid level gets little of it. The
density becomes weights along the ray (``functional.ray_march``), with which the last round's colors are summed. Losses
(``losses``) compare these with the photos, and pull the proposals over the rendered weights.

Nothing here knows Nerfstudio: ``model`` is its face.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zipnerf_ns import losses
from zipnerf_ns.cameras.appearance import Appearance, clipped
from zipnerf_ns.encoding import AntiAliasedHashEncoding, HashGridConfig, TcnnHashEncoding
from zipnerf_ns.encoding.moving import MotionConfig, MovingGridConfig, MovingHashEncoding
from zipnerf_ns.field import Precision, Radiance, ZipNerfDensityField, ZipNerfField
from zipnerf_ns.functional.adam import decay_coefficients
from zipnerf_ns.functional.gradient_scaling import near_camera_scaling, scale_gradient
from zipnerf_ns.functional.hash_grid import Prefilter
from zipnerf_ns.functional.normals import ray_normals
from zipnerf_ns.hash_table import HashTable
from zipnerf_ns.losses import ColorLoss, Multipliers
from zipnerf_ns.ops import Implementation, Ops, resolve_ops
from zipnerf_ns.rays import Rays, Round
from zipnerf_ns.sampler import IntervalSampler

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
    moving_grid: MovingGridConfig = field(default_factory=lambda: MovingGridConfig(6, 1, 16, 512, 19))
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
    use_gradient_scaling: bool = True
    """Lower the gradients of what is nearer to a camera than one world unit: against floaters before the cameras (not
    in the paper)."""
    anneal_slope: float = 10.0
    """Slope b of the proposals' annealing: weights to the power b*f/((b-1)*f+1) at share f of the training
    (mip-NeRF 360)."""
    progressive_levels: bool = False
    """Switch hash levels on from coarse to fine over the training, beginning with four."""

    @property
    def loss_multipliers(self) -> Multipliers:
        """The losses' weights beside the color loss."""
        return Multipliers(
            interlevel=self.interlevel_loss_mult,
            distillation=self.distillation_loss_mult,
            distortion=self.distortion_loss_mult,
            hash_decay=self.hash_decay_mult,
            level_consistency=self.level_consistency_mult,
            appearance=self.appearance_loss_mult,
            mask=self.mask_loss_mult,
        )


class Rendering(NamedTuple):
    """What some rays see."""

    rgb: Float[Tensor, "rays 3"]
    """Colors in front of black: without what is behind where a ray is not opaque."""
    accumulation: Float[Tensor, "rays 1"]
    """Opacity, 0 to 1."""
    rounds: list[Round]
    """Intervals and weights of every round, the rendered one last."""
    radiance: Radiance
    """Densities and colors of the rendered round's intervals."""


class ZipNerf(nn.Module):
    """The radiance field of one scene (Zip-NeRF, section 5).

    Args:
        config: what it is made of.
        aabb: box of a bounded scene, world frame; without it all of space is contracted (mip-NeRF 360).
        num_images: training images, each with an appearance of its own; 0 for none.
        bandwidth: lambda of prefilter "ipe".
    Raises:
        ValueError: for a grid that cannot be built.
    """

    def __init__(
        self,
        config: ZipNerfConfig,
        aabb: Float[Tensor, "2 3"] | None = None,
        num_images: int = 0,
        bandwidth: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("aabb", aabb, persistent=False)
        early, motion = config.proposal_prefilter, config.motion
        encodings = [
            self._make_encoding(p.grid, early, bandwidth, motion.of_proposal(p.moving_grid, early))
            for p in config.proposals
        ]
        last = self._make_encoding(config.grid, config.prefilter, bandwidth, motion)
        self.proposal_networks = nn.ModuleList(
            ZipNerfDensityField(encoding, aabb, proposal.hidden_dim, config.precision)
            for encoding, proposal in zip(encodings, config.proposals, strict=True)
        )
        self.field = ZipNerfField(
            last, aabb, config.hidden_dim, config.precision, config.bottleneck_dim, config.color_layers,
            config.color_dim, config.color_group,
        )  # fmt: skip
        self.appearance = Appearance(num_images) if num_images else None
        self.sampler = IntervalSampler([*(proposal.num_samples for proposal in config.proposals), config.num_samples])
        self.progress = 1.0
        self.register_buffer("anneal", torch.ones(()), persistent=False)

    def _make_encoding(
        self, grid: HashGridConfig, prefilter: Prefilter, bandwidth: float, motion: MotionConfig
    ) -> AntiAliasedHashEncoding:
        kind = TcnnHashEncoding if self.config.implementation == "tcnn" else AntiAliasedHashEncoding
        bandwidths = None if bandwidth == 1.0 else (bandwidth,) * grid.num_levels
        still = motion.kind == "none"
        encoding = kind(grid, prefilter, bandwidths) if still else MovingHashEncoding(grid, motion, prefilter)
        for table in encoding.tables():
            table.decay = decay_coefficients(table.grid, self.config.hash_decay_mult)
        return encoding

    @property
    def fields(self) -> list[ZipNerfDensityField]:
        """The field of every round, the rendered one last."""
        return [*self.proposal_networks, self.field]

    @property
    def ops(self) -> Ops:
        """The operations that compute the model where it is now; everything in it has been told of them.

        Raises:
            RuntimeError: if the implementation cannot run there; the message says what it needs.
        """
        ops = resolve_ops(self.config.implementation, self.anneal.device)
        if self.sampler.ops is not ops:
            for part in (self.sampler, *self.tables()):
                part.ops = ops
        return ops

    def _apply(self, *args: Any, **kwargs: Any) -> ZipNerf:
        super()._apply(*args, **kwargs)
        # Its fields, which meshes ask by themselves, are told what computes them on the new device.
        _ = self.ops
        return self

    def tables(self) -> list[HashTable]:
        """The hash tables of every round, the rendered one's last; an optimizer that decays them is given these."""
        return [table for network in self.fields for table in network.encoding.tables()]

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Hash tables, and networks: they take different learning rates; the appearance, in neither, takes a third."""
        tables = [table.hash_table for table in self.tables()]
        every = [parameter for network in self.fields for parameter in network.parameters()]
        return tables, [parameter for parameter in every if not any(parameter is table for table in tables)]

    def set_progress(self, progress: float) -> None:
        """Sets the share of the training that is done, 0 to 1, from which all schedules follow."""
        self.progress = progress
        slope = self.config.anneal_slope
        # In place, and in the device's memory, for the training step may be a graph that was captured once.
        self.anneal.fill_(slope * progress / ((slope - 1.0) * progress + 1.0))

    def num_active_levels(self) -> int | None:
        """Hash levels in use in training, from the coarsest; None for all."""
        if not (self.training and self.config.progressive_levels):
            return None
        levels = self.config.grid.num_levels
        return min(levels, max(MIN_ACTIVE_LEVELS, int(round(levels * self.progress))))

    def forward(
        self,
        rays: Rays,
        prefilter: Prefilter | None = None,
        finest_level: int | None = None,
        photo: int | None = None,
        side: int = 1,
    ) -> Rendering:
        """Renders rays.

        Args:
            rays: cones of pixels, with their limits.
            prefilter: anti-aliasing mode instead of the configured one.
            finest_level: number of hash levels that the rendered round reads, from the coarsest; all if None.
            photo: number of the training image whose appearance is shown at evaluation; the mean of all if None.
            side: of the squares of pixels whose rays, one after the other, share their proposals; 1 for none.
        """
        ops, num_active = self.ops, self.num_active_levels()
        density_fns = [lambda rays, tdist, network=network: network.density(rays, tdist, num_active, prefilter)
                       for network in self.proposal_networks]  # fmt: skip
        # At evaluation the training counts as done. Proposals follow the rays and must not move the cameras.
        sampled = self.sampler(rays.detach(), density_fns, self.anneal if self.training else 1.0, side)
        if finest_level is not None:
            num_active = finest_level
        radiance: Radiance = self.field(rays, sampled.tdist, num_active, prefilter)
        if self.training and self.config.use_gradient_scaling:
            scaling = near_camera_scaling(sampled.tdist[:, :-1], sampled.tdist[:, 1:])
            radiance = radiance._replace(
                density=scale_gradient(radiance.density[..., None], scaling)[..., 0],
                colors=scale_gradient(radiance.colors, scaling),
            )
        if self.appearance is not None and (self.training or photo is not None):
            images = rays.camera_indices if self.training else photo
            radiance = radiance._replace(colors=self.appearance(radiance.colors, images))
        weights, rgb, accumulation = ops.render(radiance.density, sampled.tdist, rays.valid, radiance.colors)
        rounds = [*sampled.proposals, Round(sampled.sdist, sampled.tdist, weights)]
        return Rendering(rgb, accumulation, rounds, radiance)

    def losses(
        self,
        rendering: Rendering,
        prediction: Float[Tensor, "rays 3"],
        target: Float[Tensor, "rays 3"],
        ray_weights: Float[Tensor, "rays"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """What a training step minimizes the sum of, by name.

        Args:
            rendering: of the step's rays, in training mode.
            prediction: its colors over some background.
            target: the photos' colors over the same one.
            ray_weights: of each ray in the color loss, 1 on average; equal if not given.
        """
        ops, per_level, departures = self.ops, None, None
        if self.config.level_consistency_mult > 0.0:
            per_level = self.field.encoding.per_level(rendering.radiance.channels)
        mask = self.field.encoding.mask(rendering.radiance.channels) if self.config.motion.is_masked else None
        if self.appearance is not None:
            prediction, departures = clipped(prediction), self.appearance.departures()
        rgb_loss = losses.color_loss(self.config.rgb_loss, prediction, target, ray_weights)
        return {"rgb_loss": rgb_loss, **losses.regularizers(
            self.config.loss_multipliers, ops, rendering.rounds, [p.blur_halfwidth for p in self.config.proposals],
            [table.mean_squares_to_decay() for table in self.tables()],
            per_level, rgb_loss if self.config.proposal_catchup else None, departures, mask,
        )}  # fmt: skip

    def distances(self, rounds: list[Round]) -> dict[str, Float[Tensor, "rays 1"]]:
        """Distances along the rays, world units: the rendered round's median and geometric mean first, then the
        proposals' medians."""
        *proposals, main = rounds
        find = self.ops.median_and_mean_distance
        depth, expected = find(main.weights, main.tdist)
        medians = [find(prop.weights, prop.tdist)[0] for prop in proposals]
        # Several rays may share a proposal.
        others = {
            f"prop_depth_{i}": median.repeat_interleave(len(depth) // max(len(median), 1), dim=0)
            for i, median in enumerate(medians)
        }
        return {"depth": depth, "expected_depth": expected, **others}

    @torch.no_grad()
    def normals(
        self,
        rays: Rays,
        rendered: Round,
        prefilter: Prefilter | None = None,
        finest_level: int | None = None,
    ) -> Float[Tensor, "rays 3"]:
        """Directions of the surfaces that rays see, world frame; zero where there is none.

        Args:
            rays: that were rendered.
            rendered: the last of their rounds.
            prefilter, finest_level: of the rendering.
        """
        return ray_normals(rendered.weights, self.field.normals(rays, rendered.tdist, finest_level, prefilter))
