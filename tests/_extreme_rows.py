"""What each function of ``functional/`` may be given, one row a function: its documented domain to its ends.

The kernels are given the same as their twins; the camera's, whose twin is Nerfstudio's, have rows of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args
from unittest.mock import patch

import torch
from _extreme_inputs import (
    LARGE,
    WORLD,
    aabb,
    anywhere,
    cameras,
    cone_encode,
    cone_gaussians,
    cones,
    density_mlp,
    drawn,
    drawn_pixels,
    features,
    gaussians,
    grid,
    grid_over_time,
    grouped,
    histogram,
    interlevel,
    intervals,
    joined,
    linspline,
    lookup,
    marched,
    moments,
    multisamples,
    network,
    on_tdist,
    packed_cameras,
    pinhole,
    pixels,
    poses,
    queries,
    radiance_mlp,
    radius,
    rendered,
    samples,
    seen_by_photos,
    similar,
    table,
    timed,
    turns,
    updates,
    weighed,
)
from _extremes import LARGEST, Row, public_functions
from torch import Tensor

from zipnerf_ns.functional import half_precision, mlp, normals
from zipnerf_ns.functional.hash_grid import Level, Prefilter
from zipnerf_ns.ops import TORCH_OPS, triton_ops


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
    "camera_motion.inverse_roots": Row(lambda draw: (
        (lambda half: half @ half.mT)(draw.numbers(draw.rays, 7, 7, low=-1e6, high=1e6).double()),
    )),
    "camera_motion.motion_gram": Row(lambda draw: (
        cameras(draw)[1].double(), *draw.numbers(2, low=0.0, high=LARGE).double()
    )),
    "camera_motion.similarity_motions": Row(lambda draw: (draw.numbers(draw.rays, 3),)),
    "cones.cones_in_cube": Row(lambda draw: (cones(draw, leaf=True), draw.pick(False, True))),
    "cones.separate_intervals": Row(lambda draw: (cones(draw),)),
    "cones.middles_in_cube": Row(lambda draw: (cones(draw),)),
    "cones.interval_times": Row(timed),
    "cones.looks_up_close_ones_once": Row(lambda draw: (cones(draw), lookup(draw, grid(draw)))),
    "cones.channels": Row(lambda draw: (
        draw.numbers(draw.rays, 3, 4, low=-1e6, high=1e6, leaf=True),
        draw.numbers(draw.rays, 3, low=0.0, high=1.0, leaf=True),
        draw.numbers(3, low=0.0, high=1e6, leaf=True), lookup(draw, grid(draw)),
        draw.pick(None, draw.numbers(draw.rays, 1, low=0.0, high=1.0)),
    )),
    "cones.cone_encode": Row(cone_encode),
    "cones.by_interval": Row(lambda draw: (draw.numbers(draw.rays, 1), draw.rays * draw.bins)),
    "cones.known_share": Row(seen_by_photos),
    "cones.join_channels": Row(joined),
    "contraction.contract": Row(lambda draw: (anywhere(draw),)),
    "contraction.contract_points": Row(lambda draw: (
        anywhere(draw), draw.numbers(draw.rays, low=0.0, high=LARGEST / 1e4, leaf=True)
    )),
    "contraction.contract_cone_gaussians": Row(lambda draw: gaussians(draw, WORLD)),
    "contraction.points_in_cube": Row(lambda draw: (
        draw.numbers(draw.rays, 3, low=-WORLD, high=WORLD, leaf=True),
        draw.numbers(draw.rays, low=0.0, high=WORLD, leaf=True), draw.pick(None, aabb(draw)),
    )),
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
    "hash_grid.check_times": Row(moments),
    "hash_grid.shutter_weights": Row(lambda draw: (draw.pick(0.0, 1e-30, 1.0), grid_over_time(draw))),
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
    "numerics.log_lerp": Row(lambda draw: (draw.pick(-1.0, 0.0, 0.5, 2.0), draw.pick(1e-30, 1.0), 1e30)),
    "ray_march.draw_intervals": Row(drawn),
    "ray_march.density_to_weights": Row(marched),
    "ray_march.render": Row(rendered),
    "ray_march.group_channels": Row(grouped),
    "ray_march.interlevel": Row(interlevel),
    "ray_march.distortion": Row(on_tdist),
    "ray_march.median_and_mean_distance": Row(lambda draw: on_tdist(draw)[::-1]),
    "similarity.align_cameras": Row(lambda draw: (poses(draw, 3), poses(draw, 3))),
    "similarity.move_cameras": Row(lambda draw: (similar(draw), poses(draw, draw.rays))),
    "similarity.move_rays": Row(lambda draw: (
        similar(draw), poses(draw, draw.rays)[:, :, 3], draw.directions(draw.rays)
    )),
    "similarity.pose_errors": Row(lambda draw: (poses(draw, draw.rays), poses(draw, draw.rays))),
    "similarity.angle": Row(lambda draw: (poses(draw, 1)[0, :, :3],)),
    "spacing.power_ladder": Row(lambda draw: (
        draw.numbers(draw.rays, 4, low=0.0, high=1e38), draw.pick(-1.5, -0.25, 0.5)
    )),
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

NAMES = {function: name for name, function in public_functions()}
OPERATIONS = {NAMES[twin]: field for field, twin in TORCH_OPS._asdict().items() if twin in NAMES}
"""Fields of ``Ops`` by the names of their rows: whatever has a kernel besides the camera and the look-up of points."""
KERNEL_ROWS: dict[str, Row] = {
    **{name: ROWS[name] for name in (*OPERATIONS, "hash_grid.hash_encode")},
    "camera.camera_rays": Row(lambda draw: (packed_cameras(draw), pixels(draw))),
    "camera.image_rays": Row(lambda draw: (packed_cameras(draw)[:1], draw.pick(1, 10**4), 5, draw.pick(5, 140))),
    "camera.drawn_rays": Row(drawn_pixels),
}


def kernels() -> dict[str, Callable[..., Any]]:
    """All kernels by the names of their rows; imports triton."""
    from zipnerf_ns.kernels.encode.hash_encode import hash_encode

    ops = triton_ops()
    found = {name: getattr(ops, field) for name, field in OPERATIONS.items()}
    cameras = {f"camera.{name}": kernel for name, kernel in ops.cameras._asdict().items()}
    return {**found, "hash_grid.hash_encode": hash_encode, **cameras}
