"""The encoding of scenes that move: what stands still in one hash table, what changes in others over space and time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zipnerf_ns.encoding import AntiAliasedHashEncoding, HashGridConfig
from zipnerf_ns.functional.cones import Cones
from zipnerf_ns.functional.hash_grid import Prefilter
from zipnerf_ns.hash_table import HashTable

SHIFT_SCALE = 0.1
"""What it gives is in multiples of this part of the unit cube's side, four tenths of a world unit."""
KNOTS_A_MOMENT = 0.4
"""Knots at most, of each moment that one camera sees: with more, a scene in which nothing moves was learned worse."""
SHIFT_GROUP = 2
"""Neighboring intervals of a ray that are shifted alike."""


@dataclass
class MovingGridConfig(HashGridConfig):
    """Shape of one multiresolution hash grid over space and time."""

    num_levels: int = 8
    """Levels of the grid, coarse to fine."""
    max_res: int = 2048
    """Cells along each side of the contracted scene at the finest level."""
    log2_hashmap_size: int = 20
    """Log2 of the most table entries a level may have; coarser levels that fit are stored without hashing."""
    base_knots: int = 4
    """Moments from the first to the last time that the coarsest level holds, between which it is interpolated."""
    max_knots: int = 32
    """Moments that the finest level holds; of one camera, with motion.kind auto, two for five of the data at most."""


@dataclass
class MotionConfig:
    """How a scene moves."""

    kind: Literal["none", "auto", "blend", "deform", "both"] = "none"
    """none (it stands still), blend (a second hash grid over space and time, by a learned mask), deform (the grid is
    read at where things once were), both, or auto: both where several cameras see each moment, which measured best with
    eight; else blend, for one camera does not tell what a deformation has copied before it."""
    grid: MovingGridConfig = field(default_factory=MovingGridConfig)
    """Hash grid over space and time of the rendered round; of use only with blend and both."""
    deformation: MovingGridConfig = field(default_factory=lambda: MovingGridConfig(5, 4, 8, 128, 19))
    """Hash grid over space and time that says where things were; of use only with deform and both."""
    prefilter: Prefilter = "ipe"
    """Anti-aliasing of the rendered round's grid over space and time."""
    hidden_dim: int = 64
    """Width of the layer between the deformation's features and shifts; 0 for none, shifts are then their sums."""
    mask: bool = True
    """Learn where anything moves, and let the grid over space and time be seen there alone."""
    still_first: float = 0.1
    """Share of the training in which nothing moves yet; in as long again motion comes in little by little. Of use only
    with blend."""
    still_every: int = 8
    """One of so many rays of a step sees what stands still alone, which so learns to be whole without what moves; 0:
    none does. Of use only with blend."""

    @property
    def is_blended(self) -> bool:
        """Whether there is a grid over space and time beside the still one."""
        return self.kind in ("auto", "blend", "both")

    @property
    def is_masked(self) -> bool:
        """Whether a mask is learned."""
        return self.is_blended and self.mask

    @property
    def is_deformed(self) -> bool:
        """Whether the still grid is read at other places than where intervals are."""
        return self.kind in ("auto", "deform", "both")

    @property
    def learns_still(self) -> bool:
        """Whether what stands still is learned by itself, too: a deformation would copy it to where it is not."""
        return self.kind == "blend"

    def settled(self, cameras_at_once: int | None, time_step: float | None) -> MotionConfig:
        """With what "auto" stands for.

        Args:
            cameras_at_once: how many see each moment; None where nobody knows, and "auto" is made as "both".
            time_step: from one moment to the next, where all of time is 1; None where it is not known.
        """
        if self.kind != "auto" or cameras_at_once is None:
            return self
        if cameras_at_once > 1:
            return dataclasses.replace(self, kind="both")
        knots = self.grid.max_knots if time_step is None else round(KNOTS_A_MOMENT * (1.0 / time_step + 1.0))
        knots = max(self.grid.base_knots, min(self.grid.max_knots, knots))
        return dataclasses.replace(self, kind="blend", grid=dataclasses.replace(self.grid, max_knots=knots))

    def of_proposal(self, grid: MovingGridConfig, prefilter: Prefilter) -> MotionConfig:
        """What a proposal round knows of motion: where something is at which time, however it got there."""
        return MotionConfig("none" if self.kind == "none" else "blend", grid, prefilter=prefilter, mask=False)


class MovingHashEncoding(AntiAliasedHashEncoding):
    """The encoding of a scene that moves: a still grid with what changes beside it, or read at where things once were.

    Its own table, the still one, has no time. A second grid over space and time gives channels behind the still ones,
    times a mask that is read from those (Masked Space-Time Hash Encoding, NeurIPS 2023), so that what stands still
    takes no rows of it. A third one, from whose features a small network makes a shift of each interval, moves where
    the still table is read (D-NeRF, CVPR 2021).

    Args:
        config: the still grid's shape.
        motion: the others.
        prefilter: of the still grid, see :class:`AntiAliasedHashEncoding`.
    Raises:
        ValueError: for a grid that cannot be built.
    """

    def __init__(self, config: HashGridConfig, motion: MotionConfig, prefilter: Prefilter = "multisample") -> None:
        super().__init__(config, prefilter)
        self.register_buffer("opening", torch.ones(()))
        self.moving = self.deformation = self.mask_layer = None
        if motion.is_blended:
            self.moving = AntiAliasedHashEncoding(motion.grid, motion.prefilter)
        if motion.is_masked:
            self.mask_layer = nn.Linear(super().get_out_dim(), 1)
        if motion.is_deformed:
            self.deformation = AntiAliasedHashEncoding(motion.deformation, "ipe")
            features, width = self.deformation.get_out_dim(), motion.hidden_dim
            hidden = [nn.Linear(features, width), nn.ReLU()] if width else []
            self.shift_layers = nn.Sequential(*hidden, nn.Linear(width or features, 3))
            nn.init.zeros_(self.shift_layers[-1].bias)
            if width:
                nn.init.zeros_(self.shift_layers[-1].weight)

    def get_out_dim(self) -> int:
        """Features and weight features of all levels, the still ones first."""
        return super().get_out_dim() + (0 if self.moving is None else self.moving.get_out_dim())

    def tables(self) -> list[HashTable]:
        """The still table, and those over space and time."""
        return [self, *(table for table in (self.moving, self.deformation) if table is not None)]

    def forward(self, cones: Cones, *args: Any, **kwargs: Any) -> Float[Tensor, "intervals channels"]:
        """Channels of each interval, those of the grid over space and time last; see the base class."""
        return self.with_mask(cones, *args, **kwargs)[0]

    def with_mask(
        self,
        cones: Cones,
        num_active: int | None = None,
        prefilter: Prefilter | None = None,
        dtype: torch.dtype = torch.float32,
        is_frozen: bool = False,
    ) -> tuple[Float[Tensor, "intervals channels"], Float[Tensor, "intervals 1"] | None]:
        """Channels of each interval, and how much of what changes is seen in it, 0 to 1, where a mask is learned."""
        seen, mask = self.share_seen(cones), self.mask_layer
        read_at = cones
        if self.deformation is not None:
            read_at = cones._replace(shifts=self.shifts(cones, is_frozen, seen))
        still = super().forward(read_at, num_active, prefilter, dtype, is_frozen)
        if self.moving is None:
            return still, None
        moving = self.moving(cones, self._active_moving(num_active), prefilter, dtype, is_frozen)
        return self.ops.join_channels(still, moving, seen, mask and mask.weight, mask and mask.bias)

    def share_seen(self, cones: Cones) -> Float[Tensor, "rays 1"]:
        """How much each ray sees of all that moves, of which little has come in at first."""
        return self.opening.expand(len(cones.tdist), 1) if cones.seen is None else self.opening * cones.seen

    def shifts(
        self, cones: Cones, is_frozen: bool = False, seen: Float[Tensor, "rays 1"] | None = None
    ) -> Float[Tensor, "intervals 3"]:
        """From where each interval is to where the still table is read for it, in sides of the unit cube."""
        size = 1 if (cones.tdist.shape[1] - 1) % SHIFT_GROUP else SHIFT_GROUP
        # One look-up an interval, which nothing turns.
        groups = cones._replace(tdist=cones.tdist[:, ::size].contiguous(), turns=None)
        with torch.autocast(cones.tdist.device.type, enabled=False):
            # In float32: a cell of the finest level is a ten-thousandth of the cube.
            raw = self.shift_layers(self.deformation(groups, is_frozen=is_frozen))
            raw = raw.unflatten(0, (len(cones.tdist), groups.tdist.shape[1] - 1))
            shifts = raw * (SHIFT_SCALE if seen is None else SHIFT_SCALE * seen[:, :, None])
        return shifts.repeat_interleave(size, dim=1).flatten(0, 1)

    def _active_moving(self, num_active: int | None) -> int | None:
        """Levels of the grid over space and time that are no finer than the still ones in use."""
        if num_active is None:
            return None
        finest = max((level.resolution for level in self.grid.levels[: max(num_active, 0)]), default=0)
        return sum(level.resolution <= finest for level in self.moving.grid.levels)
