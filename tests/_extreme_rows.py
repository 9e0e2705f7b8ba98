"""What each function of ``functional/`` may be given, one row a function: its documented domain to its ends.

Numbers are float32 unless a row says otherwise, as everywhere in a step. Bounds below float32's own have their reason
beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args
from unittest.mock import patch

import torch
from _extremes import LARGEST, Draw, Row, public_functions
from _networks import random_weights
from torch import Tensor
from torch.utils import _pytree as tree

from zipnerf_ns.functional import half_precision, mlp, normals
from zipnerf_ns.functional.adam import TableUpdate
from zipnerf_ns.functional.cones import Cones, HalfTable, Lookup
from zipnerf_ns.functional.hash_grid import HashGrid, Level, Prefilter, make_hash_grid
from zipnerf_ns.functional.numerics import MAX_EXPONENT
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
    )


def cone_encode(draw: Draw) -> Sequence[Any]:
    shape = grid(draw)
    scales = draw.numbers(len(shape.levels), low=0.0, high=1e6)
    values, half = table(draw, shape, 1e6, leaf=True), None
    if draw.pick(True, False):
        half = HalfTable(values.detach().clamp(-255.0, 255.0).mul(256.0).half(), 256.0)
    return values, cones(draw, leaf=draw.pick(True, False)), scales, lookup(draw, shape), half


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
    return draw.numbers(draw.rays, 3, low=-LARGEST / 1e3, high=LARGEST / 1e3, leaf=True)


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


def with_half(name: str) -> Callable[..., Any]:
    """A network with its products in half precision where that is asked for, on a CPU, too."""

    def call(*arguments: Any) -> Any:
        with patch.object(mlp, "_operand_dtype", lambda features, precision: mlp.HALF.get(precision)):
            return getattr(mlp, name)(*arguments)

    return call


def call_scaled(inputs: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    enter, leave = half_precision.scaled_cotangents(dtype)
    return leave(enter(inputs) * 1.0, enter(inputs) * 0.5)


def call_normals(positions: Tensor, scale: Tensor) -> Tensor:
    return normals.density_normals(lambda x: (x.square().sum(dim=-1) * scale).exp().clamp(max=LARGEST), positions)


def marched(draw: Draw, high: float = OPAQUE) -> Sequence[Any]:
    """Densities, fenceposts, and which rays see anything."""
    density = draw.numbers(draw.rays, draw.bins, low=0.0, high=high, leaf=True)
    return density, draw.tdist(draw.rays, draw.bins), draw.uniform(draw.rays, 1) < 0.8


def rendered(draw: Draw) -> Sequence[Any]:
    dtype = draw.pick(torch.float32, torch.bfloat16, torch.float16)
    return *marched(draw), draw.numbers(draw.rays, draw.bins, 3, low=-1.0, high=2.0, dtype=dtype, leaf=True)


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


ROWS: dict[str, Row] = {
    "adam.decayed_adam_": Row(lambda draw: (updates(draw), draw.pick(1e-2, 1e-4), (0.9, 0.99), 1e-15)),
    "adam.summarize": Row(lambda draw: (lambda one: (one.table, one.grid, one.half))(updates(draw)[1])),
    "adam.decay_coefficients": Row(lambda draw: (grid(draw), draw.pick(0.0, 0.1, 1e3))),
    "camera_motion.apply": Row(lambda draw: (
        draw.numbers(draw.rays, 6, 6, low=-LARGE, high=LARGE, leaf=True),
        draw.numbers(draw.rays, 6, low=-LARGE, high=LARGE, leaf=True),
    )),
    "camera_motion.rotate": Row(turns),
    "camera_motion.se3_shift": Row(turns),
    "camera_motion.precondition": Row(cameras),
    "camera_motion.motion_gram": Row(lambda draw: (
        cameras(draw)[1].double(), *draw.numbers(2, low=0.0, high=LARGE).double()
    )),
    "camera_motion.similarity_motions": Row(lambda draw: (draw.numbers(draw.rays, 3),)),
    "cones.cones_in_cube": Row(lambda draw: (cones(draw, leaf=True), draw.pick(False, True))),
    "cones.separate_intervals": Row(lambda draw: (cones(draw),)),
    "cones.channels": Row(lambda draw: (
        draw.numbers(draw.rays, 3, 4, low=-1e6, high=1e6, leaf=True),
        draw.numbers(draw.rays, 3, low=0.0, high=1.0, leaf=True),
        draw.numbers(3, low=0.0, high=1e6, leaf=True), lookup(draw, grid(draw)),
    )),
    "cones.cone_encode": Row(cone_encode),
    "contraction.contract": Row(lambda draw: (anywhere(draw),)),
    "contraction.contract_points": Row(lambda draw: (anywhere(draw), draw.numbers(draw.rays, low=0.0, leaf=True))),
    "contraction.contract_cone_gaussians": Row(lambda draw: gaussians(draw, WORLD)),
    "contraction.box_points": Row(lambda draw: (
        draw.numbers(draw.rays, 3, low=-WORLD, high=WORLD, leaf=True),
        draw.numbers(draw.rays, low=0.0, high=WORLD, leaf=True), aabb(draw),
    )),
    "contraction.box_cone_gaussians": Row(lambda draw: (*gaussians(draw, WORLD), aabb(draw))),
    "frustum.cone_radius": Row(lambda draw: (draw.numbers(draw.rays, low=0.0, leaf=True),)),
    "frustum.pinhole_cones": Row(pinhole),
    "frustum.gaussian_moments": Row(lambda draw: (*intervals(draw, True), radius(draw, True))),
    "frustum.cone_gaussians": Row(cone_gaussians),
    "frustum.multisample_distances": Row(lambda draw: intervals(draw, True)),
    "frustum.multisample_turns": Row(lambda draw: (torch.device("cpu"),)),
    "frustum.multisamples": Row(multisamples),
    "frustum.orthonormal_basis": Row(lambda draw: (draw.directions(draw.rays, leaf=True),)),
    "gradient_scaling.near_camera_scaling": Row(lambda draw: (*intervals(draw), draw.pick(1e-3, 1.0, 1e3))),
    "gradient_scaling.scale_gradient": Row(lambda draw: (
        draw.numbers(draw.rays, 3, leaf=True), draw.numbers(draw.rays, low=0.0, high=1.0)
    )),
    "half_precision.scaled_cotangents": Row(
        lambda draw: (draw.numbers(draw.rays, 4, leaf=True), draw.pick(torch.float16, torch.bfloat16)), call_scaled
    ),
    "half_precision.linear": Row(lambda draw: (
        features(draw, draw.rays), network(draw).hidden, draw.pick(None, network(draw).hidden_bias),
        draw.pick(None, torch.float16, torch.bfloat16),
    )),
    "half_precision.transposed_product": Row(lambda draw: (lambda dtype: tuple(
        draw.numbers(draw.rays, 4, low=-LARGE, high=LARGE, dtype=dtype) for _ in range(2)
    ))(draw.pick(torch.float32, torch.float16, torch.bfloat16))),
    "hash_grid.make_hash_grid": Row(lambda draw: (draw.pick(1, 16), 1, draw.pick(1, 2**15), draw.pick(4, 26), 1)),
    "hash_grid.prefilter_weights": Row(lambda draw: (
        samples(draw)[1], draw.pick(1, 2**15) * torch.ones(3), draw.pick(*get_args(Prefilter)),
        draw.pick(None, draw.numbers(3, low=1e-6, high=1e6)),
    )),
    "hash_grid.level_corners": Row(lambda draw: (
        samples(draw)[0].detach()[:, 0].requires_grad_(), draw.pick(Level(1, 0, 1, True), Level(2**15, 3, 32, False))
    )),
    "hash_grid.check_table": Row(lambda draw: (lambda shape: (table(draw, shape), shape))(grid(draw))),
    "hash_grid.count_active": Row(lambda draw: (grid(draw), draw.pick(None, -1, 0, 99))),
    "hash_grid.hash_encode": Row(lambda draw: (lambda shape: (
        table(draw, shape, 1e6, leaf=True), *samples(draw), *lookup(draw, shape)[:2], *lookup(draw, shape)[3:5]
    ))(grid(draw))),
    "hash_grid.mean_square_per_level": Row(lambda draw: (lambda shape: (table(draw, shape), shape))(grid(draw))),
    "linspline.integrate_linspline": Row(linspline),
    "linspline.interpolate_integral": Row(lambda draw: (queries(draw), *linspline(draw), linspline(draw)[1])),
    "linspline.blurred_resample": Row(lambda draw: (
        queries(draw), *histogram(draw, leaf=True), draw.pick(1e-6, 0.03, 1.0)
    )),
    "mlp.density_mlp": Row(density_mlp, with_half("density_mlp")),
    "mlp.radiance_mlp": Row(radiance_mlp, with_half("radiance_mlp")),
    "mlp.intervals_per_ray": Row(lambda draw: (draw.pick(0, 12), draw.pick(1, 3, 12))),
    "mlp.fold_bottleneck": Row(lambda draw: tuple(
        draw.numbers(*shape, low=-1e15, high=1e15, leaf=True) for shape in ((3, 4), (3,), (2, 5), (2,))
    )),
    "mlp.encode_directions": Row(lambda draw: (
        draw.directions(draw.rays, leaf=True), draw.pick(torch.float32, torch.bfloat16, torch.float16)
    )),
    "normals.density_normals": Row(
        lambda draw: (draw.numbers(draw.rays, 3, low=-LARGE, high=LARGE), torch.tensor(draw.pick(0.0, 1e-30, -1.0))),
        call_normals,
    ),
    "normals.unit_or_zero": Row(lambda draw: (draw.numbers(draw.rays, 3, leaf=True),)),
    "normals.ray_normals": Row(lambda draw: (
        draw.weights(draw.rays, draw.bins, leaf=True), draw.directions(draw.rays, draw.bins, leaf=True)
    )),
    "normals.normal_colors": Row(lambda draw: (draw.directions(draw.rays, leaf=True),)),
    "numerics.bounded_exp": Row(lambda draw: (draw.numbers(draw.rays, 9, leaf=True),)),
    "numerics.log_lerp": Row(lambda draw: (draw.pick(-1.0, 0.0, 0.5, 2.0), draw.pick(1e-30, 1.0), draw.pick(1e30, 1.0))),
    "ray_march.draw_intervals": Row(drawn),
    "ray_march.density_to_weights": Row(marched),
    "ray_march.render": Row(rendered),
    "ray_march.interlevel": Row(interlevel),
    "ray_march.distortion": Row(on_tdist),
    "ray_march.median_and_mean_distance": Row(lambda draw: on_tdist(draw)[::-1]),
    "similarity.align_cameras": Row(lambda draw: (poses(draw, 3), poses(draw, 3))),
    "similarity.move_cameras": Row(lambda draw: (similar(draw), poses(draw, draw.rays))),
    "similarity.move_rays": Row(lambda draw: (similar(draw), poses(draw, draw.rays)[:, :, 3], draw.directions(draw.rays))),
    "similarity.pose_errors": Row(lambda draw: (poses(draw, draw.rays), poses(draw, draw.rays))),
    "similarity.angle": Row(lambda draw: (poses(draw, 1)[0, :, :3],)),
    "spacing.power_ladder": Row(lambda draw: (draw.numbers(draw.rays, 4, low=0.0, high=1e38), draw.pick(-1.5, -0.25, 0.5))),
    "spacing.s_to_t": Row(lambda draw: (draw.sdist(draw.rays, bins=draw.bins), *drawn(draw)[-2:])),
    "spacing.distortion_distance": Row(lambda draw: (draw.tdist(draw.rays, draw.bins),)),
    "stepfun.sample_intervals": Row(lambda draw: (*histogram(draw), *drawn(draw)[2:5])),
    "stepfun.annealed": Row(lambda draw: (*histogram(draw, leaf=True), draw.pick(0.0, 0.5, 1.0))),
    "stepfun.invert_cdf": Row(lambda draw: (queries(draw, 0.0, 1.0), *histogram(draw))),
    "stepfun.resample": Row(lambda draw: (queries(draw), *histogram(draw, leaf=True))),
    "stepfun.distortion": Row(lambda draw: histogram(draw, leaf=True)),
    "volume.density_to_weights": Row(lambda draw: (marched(draw)[0], *intervals(draw))),
    "volume.expected_distance": Row(weighed),
    "volume.median_distance": Row(weighed),
}  # fmt: skip
"""By module.name."""


def kernels() -> dict[str, Callable[..., Any]]:
    """Kernels by the names of what they compute."""
    from zipnerf_ns.kernels.encode.hash_encode import hash_encode
    from zipnerf_ns.ops import TORCH_OPS, triton_ops

    names = {function: name for name, function in public_functions()}
    ops = triton_ops()
    found = {
        names[twin]: getattr(ops, field)
        for field, twin in TORCH_OPS._asdict().items() if twin in names
    }  # fmt: skip
    return {**found, "hash_grid.hash_encode": hash_encode}
