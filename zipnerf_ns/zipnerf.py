"""Zip-NeRF (Barron et al., ICCV 2023): rays in, colors, distances and losses out. Read it from top to bottom.

A ray is a pixel's cone. It is cut into intervals in three rounds (``sampler``): two proposal rounds look roughly where
something is, the last one is rendered. A round asks a field (``field``) for the density of its intervals; a field reads
an anti-aliased hash encoding (``encoding``), in which an interval too large for a grid level gets little of it. The
density becomes weights along the ray (``functional.ray_march``), with which the last round's colors are summed. Losses
(``losses``) compare these with the photos, and pull the proposals over the rendered weights.

What all of it is made of is set in ``settings``. Nothing here knows Nerfstudio: ``model`` is its face.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zipnerf_ns import losses
from zipnerf_ns.cameras.appearance import Appearance, clipped
from zipnerf_ns.encoding import AntiAliasedHashEncoding, HashGridConfig, TcnnHashEncoding
from zipnerf_ns.encoding.moving import MotionConfig, MovingHashEncoding
from zipnerf_ns.field import Radiance, ZipNerfDensityField, ZipNerfField
from zipnerf_ns.functional.adam import decay_coefficients
from zipnerf_ns.functional.cones import known_share
from zipnerf_ns.functional.gradient_scaling import near_camera_scaling, scale_gradient
from zipnerf_ns.functional.hash_grid import Prefilter
from zipnerf_ns.functional.normals import ray_normals
from zipnerf_ns.hash_table import HashTable
from zipnerf_ns.ops import Ops, resolve_ops
from zipnerf_ns.rays import Rays, Round
from zipnerf_ns.sampler import IntervalSampler
from zipnerf_ns.settings import MIN_ACTIVE_LEVELS, ProposalConfig, ZipNerfConfig

__all__ = ["ProposalConfig", "Rendering", "ZipNerf", "ZipNerfConfig"]
# The first is not used here: config.yml files of earlier versions name it as this module's.


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


def all_but_every(every: int, rays: Rays, shift: int = 0) -> Float[Tensor, "rays 1"] | None:
    """1 for each ray but 0 for one in so many, of which there are none where that is 0; shifted to other rays."""
    if not every:
        return None
    number = torch.arange(shift, shift + len(rays.origins), device=rays.origins.device)[:, None]
    return (number % every != 0).to(rays.origins.dtype)


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
        # From where and how finely photos see, for ``functional.cones.known_share``, if that is known.
        self.register_buffer("photos", None, persistent=False)
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
        self.field.can_be_untold = config.untold_every > 0
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
        first = self.config.motion.still_first
        for field in self.fields if first and self.config.motion.learns_still else ():
            field.encoding.opening.fill_(min(max(progress / first - 1.0, 0.0), 1.0))

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
        widening: float = 1.0,
    ) -> Rendering:
        """Renders rays.

        Args:
            rays: cones of pixels, with their limits.
            prefilter: anti-aliasing mode instead of the configured one.
            finest_level: number of hash levels that the rendered round reads, from the coarsest; all if None.
            photo: number of the training image whose appearance is shown at evaluation; the mean of all if None.
            side: of the squares of pixels whose rays, one after the other, share their proposals; 1 for none.
            widening: factor on the cones of the rendered round at evaluation.
        """
        ops, num_active = self.ops, self.num_active_levels()
        if self.training and self.config.motion.learns_still:
            rays = rays._replace(seen=all_but_every(self.config.motion.still_every, rays))
        density_fns = [lambda rays, tdist, network=network: network.density(rays, tdist, num_active, prefilter)
                       for network in self.proposal_networks]  # fmt: skip
        # At evaluation the training counts as done. Proposals follow the rays and must not move the cameras.
        sampled = self.sampler(rays.detach(), density_fns, self.anneal if self.training else 1.0, side)
        if finest_level is not None:
            num_active = finest_level
        rays = self.as_seen(rays, sampled.tdist, widening)
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

    def as_seen(self, rays: Rays, tdist: Float[Tensor, "rays edges"], widening: float = 1.0) -> Rays:
        """Rays told of the prefilter's weights what networks know: nothing where the photos nearest to a camera
        see with cones of other widths, and in training one in so many.

        Networks take weights that they have never met at a place, of a picture's size or of a camera that is nearer or
        farther, for a sign of brightness. Where rays look is the middle of their last intervals, which are drawn about
        what they see.

        Args:
            rays: of the rendering.
            tdist: fenceposts of its last round, world units.
            widening: factor on the cones at evaluation.
        """
        if self.training:
            # Not those that see nothing that moves, for of that, too, networks learn to do without.
            return rays._replace(told=all_but_every(self.config.untold_every, rays, shift=1))
        if widening != 1.0:
            rays = rays._replace(radius=widening * rays.radius)
        if self.photos is None or not self.field.can_be_untold:
            return rays
        middle = tdist[:, tdist.shape[1] // 2, None]
        places = rays.origins + middle * rays.directions
        return rays._replace(told=known_share(rays.origins, places, middle * rays.radius, self.photos))

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
        config, encoding, rounds = self.config, self.field.encoding, rendering.rounds
        channels, halfwidths = rendering.radiance.channels, [proposal.blur_halfwidth for proposal in config.proposals]
        if self.appearance is not None:
            prediction = clipped(prediction)
        rgb_loss = losses.color_loss(config.rgb_loss, prediction, target, ray_weights)

        def distillation() -> Tensor:
            loss = losses.distillation_loss(rounds)
            if not config.proposal_catchup:
                return loss
            return loss * losses.proposal_catchup(config.distillation_loss_mult * loss, rgb_loss)

        # Each with its weight; those that weigh nothing are not computed.
        others: dict[str, tuple[float, Callable[[], Tensor]]] = {
            "interlevel_loss": (
                config.interlevel_loss_mult, lambda: losses.interlevel_loss(rounds, halfwidths, self.ops)
            ),
            "distillation_loss": (config.distillation_loss_mult, distillation),
            "distortion_loss": (config.distortion_loss_mult, lambda: losses.distortion_loss(rounds[-1], self.ops)),
            "level_consistency_loss": (
                config.level_consistency_mult, lambda: losses.level_consistency(encoding.per_level(channels))
            ),
            "hash_decay": (
                config.hash_decay_mult,
                lambda: losses.hash_decay([table.mean_squares_to_decay() for table in self.tables()]),
            ),
        }  # fmt: skip
        if (appearance := self.appearance) is not None:
            own = config.appearance_loss_mult, lambda: losses.appearance_loss(appearance.departures())
            others["appearance_loss"] = own
        if (mask := rendering.radiance.mask) is not None:
            others["mask_loss"] = config.mask_loss_mult, lambda: losses.mask_loss(rounds[-1], mask)
        return {"rgb_loss": rgb_loss, **{name: mult * loss() for name, (mult, loss) in others.items() if mult > 0.0}}

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
        widening: float = 1.0,
    ) -> Float[Tensor, "rays 3"]:
        """Directions of the surfaces that rays see, world frame; zero where there is none.

        Args:
            rays: that were rendered.
            rendered: the last of their rounds.
            prefilter, finest_level, widening: of the rendering.
        """
        rays = self.as_seen(rays, rendered.tdist, widening)
        return ray_normals(rendered.weights, self.field.normals(rays, rendered.tdist, finest_level, prefilter))
