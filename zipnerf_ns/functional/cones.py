"""Pixels' cones cut into intervals: as Gaussians in the unit cube, and as the features that the fields read."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional import contraction, frustum
from zipnerf_ns.functional.hash_grid import HashGrid, Prefilter, hash_encode
from zipnerf_ns.functional.numerics import TINY

KNOWN_OCTAVES, UNKNOWN_OCTAVES = 0.05, 0.15
"""Binary logarithms of the factors beyond photos' widths up to which networks know what weights mean, and from which on
they are told none: held-out photos' widths are within 0.04 in nine of ten pixels, those of bonsai within 0.01."""
NEAREST_PHOTOS = 4
"""Photos with which a camera is compared."""


class Cones(NamedTuple):
    """The intervals of some rays."""

    origins: Float[Tensor, "rays 3"]
    """World frame."""
    directions: Float[Tensor, "rays 3"]
    """Unit, world frame."""
    radius: Float[Tensor, "rays 1"]
    """Radius of the cone at distance 1 along the unit direction."""
    tdist: Float[Tensor, "rays edges"]
    """Fenceposts along the direction, world units, increasing."""
    turns: Float[Tensor, "rays edges-1"] | None
    """Twists in [0, 2): the fraction turns an interval's multisamples about the ray, by whole turns, and numbers from 1
    reverse their order. ``None`` reverses every other interval and turns it by 30 degrees, as evaluation does."""
    aabb: Float[Tensor, "2 3"] | None
    """Box of a bounded scene, world frame; ``None`` for contracted space."""
    times: Float[Tensor, "rays 1"] | None = None
    """Middles of the moments in which the rays see, 0 to 1; for grids that change with time."""
    shifts: Float[Tensor, "intervals 3"] | None = None
    """What is added to where each interval's samples lie in the unit cube, not to their extents, ray by ray."""
    shutter: float = 0.0
    """Length of the moments."""
    seen: Float[Tensor, "rays 1"] | None = None
    """How much each ray sees of what moves, 0 to 1, for encodings that tell it apart; None for all of it."""
    told: Float[Tensor, "rays 1"] | None = None
    """Share of the weight features that each ray's channels have, without a gradient to it; None: all. Networks learn
    colors of features that come with some weights, those of the photos' pixels, and take others for something darker or
    brighter; those that have learned from some rays to do without them are right about others."""

    def detach(self) -> Cones:
        """The same without a gradient to any part."""
        return Cones(*(value.detach() if isinstance(value, Tensor) else value for value in self))


class Lookup(NamedTuple):
    """How features are made of a table; see ``functional.hash_grid.hash_encode``."""

    grid: HashGrid
    prefilter: Prefilter
    gain: float
    """Factor on the table's values."""
    bandwidths: Float[Tensor, "levels"] | None = None
    num_active: int | None = None
    dtype: torch.dtype = torch.float32
    """Type of the channels."""
    close: float = 0.0
    """Cells within which an interval's six multisamples must lie at a level to be looked up as one, in their middle."""


class HalfTable(NamedTuple):
    """A read-only copy of a table in half precision."""

    values: Tensor
    """float16, the table's shape: its values times ``scale``."""
    scale: float


def cones_in_cube(
    cones: Cones, one_lookup: bool
) -> tuple[Float[Tensor, "intervals samples 3"], Float[Tensor, "intervals samples"]]:
    """The Gaussians that stand for each interval's frustum: means in the unit cube, stds in units of its side.

    Args:
        cones: the intervals; the result counts them ray by ray.
        one_lookup: the cone's own Gaussian (its std is the root of its trace) instead of six multisamples.
    """
    origins, directions, radius, tdist, turns, aabb, _, shifts, *_ = cones
    starts, ends = tdist[:, :-1], tdist[:, 1:]
    if one_lookup:
        mean, t_var, r_var = frustum.cone_gaussians(origins, directions, starts, ends, radius)
        along = directions[:, None, :].expand_as(mean)
        if aabb is None:
            positions, stds = contraction.contract_cone_gaussians(mean, along, t_var, r_var)
        else:
            positions, stds = contraction.box_cone_gaussians(mean, along, t_var, r_var, aabb)
        return _shifted(positions.reshape(-1, 1, 3), shifts), stds.reshape(-1, 1)
    if turns is None:
        reverse = (torch.arange(starts.shape[-1], device=starts.device) % 2 == 1).expand(starts.shape)
        rotation = reverse.to(starts.dtype) * (math.pi / 6.0)
    else:
        reverse = turns >= 1.0
        rotation = torch.where(reverse, turns - 1.0, turns) * (2.0 * math.pi)
    points, stds = frustum.multisamples(origins, directions, starts, ends, radius, rotation, reverse)
    points, stds = contraction.points_in_cube(points, stds, aabb)
    points = _shifted(points.reshape(-1, frustum.NUM_MULTISAMPLES, 3), shifts)
    return points, stds.reshape(-1, frustum.NUM_MULTISAMPLES)


def _shifted(
    positions: Float[Tensor, "intervals samples 3"], shifts: Float[Tensor, "intervals 3"] | None
) -> Float[Tensor, "intervals samples 3"]:
    return positions if shifts is None else positions + shifts[:, None]


def middles_in_cube(
    cones: Cones,
) -> tuple[Float[Tensor, "intervals 1 3"], Float[Tensor, "intervals 1"], Float[Tensor, "intervals 1"]]:
    """The middle of each interval's six multisamples: where it lies in the unit cube, with which std, and how far they
    reach at most, along the ray and across it together, in units of the cube's side."""
    origins, directions, radius, tdist, _, aabb, _, shifts, *_ = cones
    t = frustum.multisample_distances(tdist[:, :-1], tdist[:, 1:])
    middle = t.mean(dim=-1, keepdim=True)
    off_axis = middle * (radius[..., None] / math.sqrt(2.0))
    points = origins[:, None, None] + middle[..., None] * directions[:, None, None]
    reach = (t[..., -1:] - t[..., :1] + 2.0 * off_axis).reshape(-1, 1)
    if aabb is None:
        inverse = 1.0 / points.norm(dim=-1).clamp_min(1.0).reshape(-1, 1)
        # Across the direction from the center lengths shrink least.
        reach = reach * (0.25 * (2.0 - inverse) * inverse)
    else:
        reach = reach / (aabb[1] - aabb[0]).amin()
    points, stds = contraction.points_in_cube(points, frustum.STD_SCALE * off_axis, aabb)
    return _shifted(points.reshape(-1, 1, 3), shifts), stds.reshape(-1, 1), reach


def separate_intervals(cones: Cones) -> Cones:
    """The same intervals, each on a ray of its own and with the same multisamples; counted ray by ray."""
    bins = cones.tdist.shape[1] - 1
    turns = cones.turns
    if turns is None:
        # Said in numbers, for the place among a ray's intervals, by which evaluation turns them, is lost.
        is_odd = torch.arange(bins, device=cones.tdist.device) % 2 == 1
        turns = (is_odd.to(cones.tdist.dtype) * (1.0 + 1.0 / 12.0)).expand(cones.tdist.shape[0], bins)
    return Cones(
        cones.origins.repeat_interleave(bins, dim=0),
        cones.directions.repeat_interleave(bins, dim=0),
        cones.radius.repeat_interleave(bins, dim=0),
        torch.stack([cones.tdist[:, :-1], cones.tdist[:, 1:]], dim=-1).reshape(-1, 2),
        turns.reshape(-1, 1),
        cones.aabb,
        None if cones.times is None else cones.times.repeat_interleave(bins, dim=0),
        cones.shifts,
        cones.shutter,
        None if cones.seen is None else cones.seen.repeat_interleave(bins, dim=0),
        None if cones.told is None else cones.told.repeat_interleave(bins, dim=0),
    )


def interval_times(cones: Cones, grid: HashGrid) -> Float[Tensor, "intervals"] | None:
    """The time of each interval, where rays have times and the grid changes with them."""
    if cones.times is None or not grid.is_timed:
        return None
    return cones.times[:, 0].repeat_interleave(cones.tdist.shape[1] - 1)


def channels(
    per_level: Float[Tensor, "intervals levels features"],
    weights: Float[Tensor, "intervals levels"],
    weight_scales: Float[Tensor, "levels"],
    lookup: Lookup,
    told: Float[Tensor, "rays 1"] | None = None,
) -> Float[Tensor, "intervals channels"]:
    """Features of all levels times the gain, then one weight feature (2w - 1) * scale a level (Zip-NeRF, section 2), as
    far as a ray is told of it."""
    weight_features = (2.0 * weights - 1.0) * weight_scales
    if told is not None:
        weight_features = weight_features * by_interval(told, len(weights))
    return torch.cat([per_level.flatten(1) * lookup.gain, weight_features], -1).to(lookup.dtype)


def by_interval(of_rays: Float[Tensor, "rays 1"], intervals: int) -> Float[Tensor, "intervals 1"]:
    """What is known of rays, of each of their intervals, ray by ray; without a gradient."""
    return of_rays.detach().repeat_interleave(intervals // max(len(of_rays), 1), dim=0)


def cone_encode(
    table: Float[Tensor, "entries features"],
    cones: Cones,
    weight_scales: Float[Tensor, "levels"],
    lookup: Lookup,
    half: HalfTable | None = None,
) -> Float[Tensor, "intervals channels"]:
    """Channels of each interval: prefiltered features of all levels, then one weight feature a level.

    This function *defines* the operation; ``kernels.encode.cone_encode`` computes the same, faster.

    Args:
        table: rows of the grid, level after level.
        cones: the intervals; the result counts them ray by ray.
        weight_scales: factor of each level's weight feature.
        half: a copy of the table that an implementation may read instead, as the kernels do; not read here.
    Raises:
        ValueError: if the table's shape is not the grid's.
    """
    how = lookup.grid, lookup.prefilter, lookup.bandwidths, lookup.num_active, interval_times(cones, lookup.grid)
    how = *how, cones.shutter
    per_level, weights = hash_encode(table, *cones_in_cube(cones, lookup.prefilter != "multisample"), *how)
    if looks_up_close_ones_once(cones, lookup):
        positions, stds, reach = middles_in_cube(cones)
        once, weight = hash_encode(table, positions, stds, *how)
        is_close = reach * reach.new_tensor(lookup.grid.resolutions) < lookup.close
        per_level = torch.where(is_close[..., None], once, per_level)
        weights = torch.where(is_close, weight, weights)
    return channels(per_level, weights, weight_scales, lookup, cones.told)


def known_share(
    origins: Float[Tensor, "rays 3"],
    points: Float[Tensor, "rays 3"],
    width: Float[Tensor, "rays 1"],
    photos: Float[Tensor, "photos numbers"],
) -> Float[Tensor, "rays 1"]:
    """How well the widths of a camera's cones are known where they look: 1 where the photos taken nearest to it see a
    place with such, or nearly, and 0 where theirs are others.

    Args:
        origins: of the rays, world frame; one camera's, near each other.
        points: the places, world frame.
        width: of the cones there, world units.
        photos: of each its position and axis, world frame, and the width of its cones at distance 1 along equally many
            angles from that, from 0 to pi.
    """
    apart = (photos[:, :3] - origins.mean(dim=0)).norm(dim=1)
    nearest = photos[apart.topk(min(NEAREST_PHOTOS, len(photos)), largest=False).indices]
    widths = nearest[:, 6:]
    away = points[:, None] - nearest[:, :3]
    distance = away.norm(dim=-1).clamp(TINY, 1.0 / TINY)
    angle = torch.acos((torch.linalg.vecdot(away, nearest[:, 3:6]) / distance).clamp(-1.0, 1.0))
    place = angle * ((widths.shape[1] - 1) / math.pi)
    below = place.long().clamp(max=widths.shape[1] - 2)
    photo = torch.arange(len(nearest), device=photos.device)
    theirs = torch.lerp(widths[photo, below], widths[photo, below + 1], place - below) * distance
    # The farther of the two ways by which the width is out of theirs, as a factor.
    theirs, own = theirs.clamp_min(TINY), width.clamp(TINY, 1.0 / TINY)
    beyond = torch.maximum(theirs.amin(dim=1, keepdim=True) / own, own / theirs.amax(dim=1, keepdim=True))
    return ((UNKNOWN_OCTAVES - torch.log2(beyond)) / (UNKNOWN_OCTAVES - KNOWN_OCTAVES)).clamp(0.0, 1.0)


def looks_up_close_ones_once(cones: Cones, lookup: Lookup) -> bool:
    """Whether ``lookup.close`` is heeded: not where gradients reach the cones, but for their shifts, which would lack
    the cells' corners that multisamples lie beyond."""
    moves = any(isinstance(value, Tensor) and value.requires_grad for value in cones._replace(shifts=None))
    return lookup.close > 0.0 and lookup.prefilter == "multisample" and not moves


def join_channels(
    still: Float[Tensor, "intervals still"],
    moving: Float[Tensor, "intervals moving"],
    seen: Float[Tensor, "rays 1"],
    weight: Float[Tensor, "1 still"] | None = None,
    bias: Float[Tensor, "1"] | None = None,
) -> tuple[Float[Tensor, "intervals channels"], Float[Tensor, "intervals 1"] | None]:
    """Channels of what stands still, and behind them those of what moves, as far as it is seen; and the mask.

    Args:
        still, moving: of the intervals, ray by ray.
        seen: how much of what moves each ray sees, 0 to 1; takes no gradient.
        weight, bias: of the mask, the share of what moves in each interval: the sigmoid of what they make of its still
            channels. None for none.
    """
    share, mask = by_interval(seen, len(still)), None
    if weight is not None:
        mask = torch.sigmoid(torch.nn.functional.linear(still.to(weight.dtype), weight, bias))
        share = share * mask
    return torch.cat([still, (moving * share).to(still.dtype)], dim=1), mask
