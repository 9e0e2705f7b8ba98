"""Arguments for ``_extreme_rows.py``: what goes together, such as a grid and its table, from a case's numbers.

Numbers are float32 unless said otherwise, as everywhere in a step. Bounds below float32's own have their reason beside
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from _extremes import LARGEST, Draw
from _networks import random_weights
from torch import Tensor
from torch.utils import _pytree as tree

from zipnerf_ns.functional import mlp
from zipnerf_ns.functional.adam import TableUpdate
from zipnerf_ns.functional.cones import Cones, HalfTable, Lookup
from zipnerf_ns.functional.hash_grid import HashGrid, Prefilter, make_hash_grid
from zipnerf_ns.functional.similarity import Similarity

WORLD = 1e13
"""Coordinates of the farthest point: far 1e10 in a scene of scale 1e3."""
OPAQUE = 3.3e6
"""exp(MAX_EXPONENT): the largest density that a field gives."""
LARGE = 1e18
"""Its square, and a few hundred of these together, are still numbers of float32."""
WIDEST = 0.6
"""Radius at distance 1 of a cone of Nerfstudio's own test rays, whose pixel has an area of 1."""
FRONT = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def grid(draw: Draw, features: int | None = None) -> HashGrid:
    """Dense and hashed levels, one of a single cell."""
    return make_hash_grid(3, draw.pick(1, 2, 3), draw.pick(9, 2**15), 5, features or draw.pick(1, 2, 4, 8))


def grid_over_time(draw: Draw) -> HashGrid:
    """Levels with knots in time."""
    return make_hash_grid(3, draw.pick(1, 2, 3), draw.pick(9, 2**10), 5, draw.pick(1, 4), 2, draw.pick(2, 5))


def moments(draw: Draw) -> tuple[Tensor, HashGrid]:
    """Rays' times, and a grid that changes."""
    return draw.uniform(draw.rays, 1).float(), grid_over_time(draw)


def timed(draw: Draw) -> tuple[Cones, HashGrid]:
    times, shape = moments(draw)
    return cones(draw)._replace(times=times, shutter=draw.pick(0.0, 1e-30, 1.0)), shape


def table(draw: Draw, grid: HashGrid, high: float = LARGE, leaf: bool = False) -> Tensor:
    return draw.numbers(grid.num_entries, grid.features_per_level, low=-high, high=high, leaf=leaf)


def samples(draw: Draw, leaf: bool = True) -> tuple[Tensor, Tensor]:
    """Positions in the unit cube and outside, and stds; in a box a thousandth wide, the world is 1e16."""
    count, high = draw.pick(1, 6), WORLD / 1e-3
    return (
        draw.numbers(draw.rays, count, 3, low=-high, high=high, leaf=leaf),
        draw.numbers(draw.rays, count, low=0.0, high=high, leaf=leaf),
    )


def lookup(draw: Draw, shape: HashGrid) -> Lookup:
    levels = len(shape.levels)
    bandwidths = draw.pick(None, draw.numbers(levels, low=1e-6, high=1e6))
    dtype = draw.pick(torch.float32, torch.bfloat16)
    return Lookup(shape, draw.pick(*get_args(Prefilter)), 1.0, bandwidths, draw.pick(None, 0, 1, levels), dtype)


def aabb(draw: Draw) -> Tensor:
    """Boxes from a thousandth to a thousand units wide, not all centered."""
    size = draw.pick(1e-3, 1.0, 1e3)
    return torch.tensor([[-1.0, -0.5, -2.0], [1.0, 0.25, -1.0]]) * size + draw.pick(0.0, size)


def cones(draw: Draw, leaf: bool = False) -> Cones:
    return Cones(
        draw.numbers(draw.rays, 3, low=-1e3, high=1e3, leaf=leaf),
        draw.directions(draw.rays, leaf=leaf),
        draw.numbers(draw.rays, 1, low=0.0, high=WIDEST),
        draw.tdist(draw.rays, draw.bins),
        draw.pick(None, (2.0 * draw.uniform(draw.rays, draw.bins)).float().clamp(max=1.9999999)),
        draw.pick(None, aabb(draw)),
        told=draw.pick(None, draw.numbers(draw.rays, 1, low=0.0, high=1.0)),
    )


def cone_encode(draw: Draw) -> Sequence[Any]:
    shape = grid(draw)
    scales = draw.numbers(len(shape.levels), low=0.0, high=1e6)
    values, half = table(draw, shape, 1e6, leaf=True), None
    if draw.pick(True, False):
        half = HalfTable(values.detach().clamp(-255.0, 255.0).mul(256.0).half(), 256.0)
    return values, cones(draw, leaf=draw.pick(True, False)), scales, lookup(draw, shape), half


def seen_by_photos(draw: Draw) -> Sequence[Any]:
    """A camera's rays, what they see and how wide, and other photos' positions, axes and widths."""
    points, photos = anywhere(draw), draw.pick(1, 7)
    places = draw.numbers(photos, 3, low=-1e3, high=1e3), draw.directions(photos)
    cones = torch.cat([*places, draw.numbers(photos, 9, low=0.0, high=WIDEST)], dim=1)
    origins = draw.numbers(len(points), 3, low=-1e3, high=1e3)
    return origins, points, draw.numbers(len(points), 1, low=0.0, high=1e6), cones


def joined(draw: Draw) -> Sequence[Any]:
    """Channels of intervals, and a mask that is anywhere between shut and open."""
    dtype = draw.pick(torch.float32, torch.bfloat16)
    still = draw.numbers(draw.rays * draw.bins, 5, low=-1e6, high=1e6, dtype=dtype, leaf=True)
    moving = draw.numbers(draw.rays * draw.bins, 3, low=-1e6, high=1e6, dtype=dtype, leaf=True)
    weight, bias = (draw.numbers(*shape, low=-1e3, high=1e3, leaf=True) for shape in ((1, 5), (1,)))
    return still, moving, draw.numbers(draw.rays, 1, low=0.0, high=1.0), weight, bias


def updates(draw: Draw) -> list[TableUpdate]:
    found = []
    for shape in (grid(draw, 1), grid(draw)):
        values = table(draw, shape)
        square = table(draw, shape).abs()
        first = square * (2.0 * draw.uniform(*values.shape) - 1.0).float()
        half = draw.pick(None, torch.zeros(values.shape, dtype=torch.float16))
        decay = tuple(draw.pick(0.0, 0.1) / level.size for level in shape.levels)
        step = draw.pick(1, 2, 10**6)
        skips = draw.pick(None, torch.zeros(()), torch.ones(()))
        gradient = table(draw, shape, LARGEST)
        found.append(TableUpdate(values, gradient, first, square.square(), step, shape, decay, half, skips))
    return found


def intervals(draw: Draw, leaf: bool = False) -> tuple[Tensor, Tensor]:
    """Starts and ends."""
    tdist = draw.tdist(draw.rays, draw.bins)
    return tdist[:, :-1].detach().requires_grad_(leaf), tdist[:, 1:].detach().requires_grad_(leaf)


def radius(draw: Draw, leaf: bool = False) -> Tensor:
    return draw.numbers(draw.rays, 1, low=0.0, high=WIDEST, leaf=leaf)


def cone_gaussians(draw: Draw) -> Sequence[Any]:
    origins = draw.numbers(draw.rays, 3, low=-1e3, high=1e3, leaf=True)
    return origins, draw.directions(draw.rays, leaf=True), *intervals(draw, True), radius(draw, True)


def multisamples(draw: Draw) -> Sequence[Any]:
    rotation = draw.numbers(draw.rays, draw.bins, low=-7.0, high=7.0)
    return *cone_gaussians(draw), rotation, draw.uniform(draw.rays, draw.bins) < 0.5


def gaussians(draw: Draw, high: float) -> Sequence[Any]:
    """Means, directions and variances."""
    mean = draw.numbers(draw.rays, 3, low=-high, high=high, leaf=True)
    variances = (draw.numbers(draw.rays, low=0.0, high=high * high, leaf=True) for _ in range(2))
    return mean, draw.directions(draw.rays, leaf=True), *variances


def anywhere(draw: Draw) -> Tensor:
    """Points whose distance from the origin is a number of float32, also times a cotangent."""
    return draw.numbers(draw.rays, 3, low=-LARGEST / 1e4, high=LARGEST / 1e4, leaf=True)


def poses(draw: Draw, count: int, high: float = WORLD) -> Tensor:
    """Cameras turned all ways, and now and then all in one place."""
    around = draw.directions(count)
    turned = torch.linalg.qr(FRONT + draw.pick(0.0, 1e-4, 1.0) * around[:, None] * around[:, :, None])[0]
    place = draw.numbers(count, 3, 1, low=-high, high=high)
    return torch.cat([turned, draw.pick(place, place[:1].expand_as(place))], dim=-1)


def pinhole(draw: Draw) -> Sequence[Any]:
    focal = draw.numbers(2, low=1e-3, high=1e6)
    pixels = draw.numbers(draw.rays, 2, low=0.0, high=1e5, leaf=True)
    return poses(draw, draw.rays).requires_grad_(), pixels, focal, draw.numbers(2, low=0.0, high=1e5)


def network(draw: Draw) -> mlp.RadianceWeights:
    """Weights that are zero, tiny, ordinary or large, by the parameter."""
    torch.manual_seed(draw.pick(0, 1, 2))
    weights = random_weights(8, 32, 64, draw.pick(2, 3, 4))

    def scaled(value: Tensor) -> Tensor:
        return (value.detach() * draw.pick(0.0, 1e-30, 1.0, 1.0, 1.0, 30.0)).requires_grad_()

    return tree.tree_map(scaled, weights)


def precision(draw: Draw) -> str:
    return draw.pick(*get_args(mlp.Precision))


def features(draw: Draw, rows: int) -> Tensor:
    """Up to what float16 holds, and so more than tables with decay ever reach."""
    half = torch.finfo(torch.float16).max
    dtype = draw.pick(torch.float32, torch.bfloat16)
    return draw.numbers(rows, 8, low=-half, high=half, dtype=dtype, leaf=True)


def density_mlp(draw: Draw) -> Sequence[Any]:
    weights = network(draw)
    head = weights.hidden, weights.hidden_bias, weights.density, weights.density_bias
    return features(draw, draw.rays * draw.bins), *head, draw.pick(-1.0, 0.0, 30.0), precision(draw)


def radiance_mlp(draw: Draw) -> Sequence[Any]:
    view = mlp.encode_directions(draw.directions(draw.rays)).requires_grad_()
    rows = features(draw, draw.rays * draw.bins)
    return rows, view, network(draw), draw.pick(-1.0, 30.0), draw.pick(0.0, 1e-3), precision(draw)


def marched(draw: Draw, high: float = OPAQUE) -> Sequence[Any]:
    """Densities, fenceposts, and which rays see anything."""
    density = draw.numbers(draw.rays, draw.bins, low=0.0, high=high, leaf=True)
    return density, draw.tdist(draw.rays, draw.bins), draw.uniform(draw.rays, 1) < 0.8


def rendered(draw: Draw) -> Sequence[Any]:
    dtype = draw.pick(torch.float32, torch.bfloat16, torch.float16)
    return *marched(draw), draw.numbers(draw.rays, draw.bins, 3, low=-1.0, high=2.0, dtype=dtype, leaf=True)


def grouped(draw: Draw) -> Sequence[Any]:
    """Channels of intervals and their weights; sums of channels as large as float32 holds are not asked for."""
    dtype = draw.pick(torch.float32, torch.bfloat16, torch.float16)
    channels = draw.numbers(draw.rays * draw.bins, 5, low=-1e37, high=1e37, dtype=dtype, leaf=True)
    return channels, draw.weights(draw.rays, draw.bins), draw.pick(2, 4, 8)


def histogram(draw: Draw, bins: int | None = None, leaf: bool = False) -> tuple[Tensor, Tensor]:
    bins = bins or draw.bins
    return draw.sdist(draw.rays, bins=bins), draw.weights(draw.rays, bins, leaf=leaf)


def drawn(draw: Draw) -> Sequence[Any]:
    near, far = (torch.full((draw.rays, 1), limit) for limit in draw.limits())
    anneal = draw.pick(0.0, 1e-3, 0.5, 1.0, torch.tensor(0.3))
    jitter = draw.pick(None, draw.numbers(draw.rays, 1, low=0.0, high=1.0 - 2.0**-24))
    return *draw.pick((None, None), histogram(draw)), draw.pick(2, 3, 33), jitter, anneal, near, far


def interlevel(draw: Draw) -> Sequence[Any]:
    (s_prop, w_prop), (s_main, w_main) = histogram(draw, leaf=True), histogram(draw, draw.pick(1, 5, 32))
    return w_prop, s_prop, w_main, s_main, draw.pick(1e-6, 0.003, 0.03, 1.0), draw.pick(1e-7, 1e-5)


def on_tdist(draw: Draw, leaf: bool = True) -> tuple[Tensor, Tensor]:
    return draw.tdist(draw.rays, draw.bins), draw.weights(draw.rays, draw.bins, leaf=leaf)


def weighed(draw: Draw) -> Sequence[Any]:
    return draw.weights(draw.rays, draw.bins, leaf=True), *intervals(draw)


def similar(draw: Draw) -> Similarity:
    around = poses(draw, 1)[0, :, :3].double()
    return Similarity(torch.tensor(draw.pick(1e-3, 1.0, 1e3)).double(), around, torch.full((3,), 5.0).double())


def linspline(draw: Draw) -> tuple[Tensor, Tensor]:
    knots = draw.sdist(draw.rays, bins=draw.bins)
    return knots, draw.numbers(draw.rays, draw.bins + 1, low=-LARGE, high=LARGE, leaf=True)


def queries(draw: Draw, low: float = -2.0, high: float = 3.0) -> Tensor:
    return draw.numbers(draw.rays, 9, low=low, high=high).sort(dim=-1).values


def turns(draw: Draw) -> Sequence[Any]:
    """Rotation vectors of up to many turns, and what is turned."""
    rays = (draw.rays, 3)
    return draw.numbers(*rays, low=-1e3, high=1e3, leaf=True), draw.numbers(*rays, low=-WORLD, high=WORLD, leaf=True)


def cameras(draw: Draw) -> tuple[Tensor, Tensor]:
    """At least one, and where its pixels look."""
    count = max(draw.rays, 1)
    return poses(draw, count)[:, :, 3], draw.directions(count, draw.pick(1, 5))


def packed_cameras(draw: Draw) -> Tensor:
    """Cameras as ``cameras.rays.pack`` describes them, of any lens, also of such as none is."""
    count = max(draw.rays, 1)
    lens = draw.numbers(count, 6, low=-10.0, high=10.0) * draw.pick(0.0, 0.01, 1.0)
    focal = draw.numbers(count, 2, low=draw.pick(1e-3, 300.0), high=1e6)
    is_fisheye = (draw.uniform(count, 1) < 0.5).float()
    center = draw.numbers(count, 2, low=0.0, high=1e4)
    return torch.cat([poses(draw, count).flatten(1), focal, center, lens, is_fisheye, torch.zeros(count, 1)], dim=-1)


def pixels(draw: Draw) -> Tensor:
    """Camera, row and column."""
    return (draw.uniform(draw.rays, 3) * torch.tensor([max(draw.rays, 1), 1e4, 1e4])).long()


def drawn_pixels(draw: Draw) -> Sequence[Any]:
    """A store of images of two by three pixels, and numbers drawn from it."""
    images = max(draw.rays, 1)
    colors = (256.0 * draw.uniform(6 * images, draw.pick(3, 4))).to(torch.uint8)
    numbers, starts = (6.0 * images * draw.uniform(draw.rays)).long(), 6 * torch.arange(images)
    everywhere = torch.arange(6 * images).flip(0)
    allowed = draw.pick((None, False), (everywhere, False), (everywhere.int(), True))
    return packed_cameras(draw), numbers, colors, starts, torch.full((images,), 3), *allowed
