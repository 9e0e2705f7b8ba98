"""Which functions compute what: the operations that have kernels, and the one place that chooses who computes them.

Only :func:`resolve_ops` imports the kernels, and only where they can run: configurations load without Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from zipnerf_ns.errors import InputError, LaunchFailed, say, say_once
from zipnerf_ns.functional import adam, cones, mlp, ray_march, signatures
from zipnerf_ns.functional.mlp import Precision
from zipnerf_ns.rays import CameraRays

Implementation = Literal["auto", "triton", "torch", "tcnn"]
Result = TypeVar("Result")


class CameraOps(NamedTuple):
    """Rays of perspective and fisheye cameras, packed by ``cameras.rays.pack``; see ``kernels.camera.camera_rays``."""

    camera_rays: Callable[[Tensor, Tensor], CameraRays]
    """Rays of cameras, from each pixel's camera, row and column."""
    image_rays: Callable[[Tensor, int, int, int], CameraRays]
    """Rays of one camera, from its picture's width, the first pixel and the one after the last, row by row."""
    drawn_rays: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor, CameraRays]
    ]
    """Indices, colors and rays of cameras and numbers drawn from a store of pixels."""


class Ops(NamedTuple):
    """The operations of one implementation; each is described where its torch twin is defined."""

    name: str
    """Name of the implementation: "torch" or "triton"."""
    cone_encode: signatures.ConeEncode
    join_channels: signatures.JoinChannels
    density_mlp: signatures.DensityMlp
    radiance_mlp: signatures.RadianceMlp
    encode_directions: signatures.EncodeDirections
    draw_intervals: signatures.DrawIntervals
    density_to_weights: signatures.DensityToWeights
    group_channels: signatures.GroupChannels
    render: signatures.Render
    interlevel: signatures.Interlevel
    distortion: signatures.Distortion
    median_and_mean_distance: signatures.MedianAndMeanDistance
    summarize: signatures.Summarize
    decayed_adam_: signatures.DecayedAdam
    cameras: CameraOps | None
    """None: Nerfstudio's generator makes the rays."""
    reads_half: Callable[[int], bool]
    """Whether a half-precision copy of a table with so many features a level is worth keeping."""
    why_density_unsupported: Callable[..., str | None]
    """Why ``density_mlp`` cannot compute a network of these sizes, as a sentence for the user; None if it can."""
    why_radiance_unsupported: Callable[..., str | None]
    """The same of ``radiance_mlp``."""


def _any_size(*sizes: Any) -> None:
    return None


TORCH_OPS = Ops(
    name="torch",
    cone_encode=cones.cone_encode,
    join_channels=cones.join_channels,
    density_mlp=mlp.density_mlp,
    radiance_mlp=mlp.radiance_mlp,
    encode_directions=mlp.encode_directions,
    draw_intervals=ray_march.draw_intervals,
    density_to_weights=ray_march.density_to_weights,
    group_channels=ray_march.group_channels,
    render=ray_march.render,
    interlevel=ray_march.interlevel,
    distortion=ray_march.distortion,
    median_and_mean_distance=ray_march.median_and_mean_distance,
    summarize=adam.summarize,
    decayed_adam_=adam.decayed_adam_,
    cameras=None,
    reads_half=lambda features_per_level: False,
    why_density_unsupported=_any_size,
    why_radiance_unsupported=_any_size,
)


@lru_cache(maxsize=1)
def triton_ops() -> Ops:
    """The kernels; importing them imports triton."""
    from zipnerf_ns.kernels.adam import table_adam
    from zipnerf_ns.kernels.camera import camera_rays
    from zipnerf_ns.kernels.encode import cone_encode, join, tuning
    from zipnerf_ns.kernels.march import groups, ray_march
    from zipnerf_ns.kernels.mlp import networks

    return Ops(
        name="triton",
        cone_encode=cone_encode.cone_encode,
        join_channels=join.join_channels,
        density_mlp=networks.density_mlp,
        radiance_mlp=networks.radiance_mlp,
        encode_directions=networks.encode_directions,
        draw_intervals=ray_march.draw_intervals,
        density_to_weights=ray_march.density_to_weights,
        group_channels=groups.group_channels,
        render=ray_march.render,
        interlevel=ray_march.interlevel,
        distortion=ray_march.distortion,
        median_and_mean_distance=ray_march.median_and_mean_distance,
        summarize=table_adam.summarize,
        decayed_adam_=table_adam.decayed_adam_,
        cameras=CameraOps(camera_rays.camera_rays, camera_rays.image_rays, camera_rays.drawn_rays),
        reads_half=tuning.reads_half,
        why_density_unsupported=networks.why_density_unsupported,
        why_radiance_unsupported=networks.why_radiance_unsupported,
    )


_in_torch: set[str] = set()
"""Operations whose kernels cannot be launched here, which their torch twins compute instead."""


class _Guarded:
    """An operation's kernel, or what takes its place once it could not be launched."""

    def __init__(self, operation: str) -> None:
        self._operation = operation

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        while self._operation not in _in_torch:
            try:
                return getattr(triton_ops(), self._operation)(*args, **kwargs)
            except LaunchFailed as failed:
                _give_way(failed)
        return getattr(TORCH_OPS, self._operation)(*args, **kwargs)


@lru_cache(maxsize=1)
def guarded_ops() -> Ops:
    """The kernels, each of which gives way to a smaller launch and then to its twin where it cannot be launched."""
    first, end = 1, Ops._fields.index("cameras")
    return triton_ops()._replace(**{name: _Guarded(name) for name in Ops._fields[first:end]})


def _give_way(failed: LaunchFailed) -> None:
    """Goes one launch down, or else to the operation's twin, and says so."""
    from zipnerf_ns.kernels import launching

    if not launching.give_way(failed):
        _in_torch.add(failed.operation)
        say(f"{failed} Torch computes {failed.operation} instead.")


def with_fallbacks(implementation: str, compute: Callable[[], Result], undo: Callable[[], None]) -> Result:
    """The result of a computation with a backward pass, which begins anew when a launch of the latter has failed.

    Args:
        implementation: the model's; one that was asked for by name is not replaced.
        compute: the computation.
        undo: takes back what an attempt that failed has left.
    Raises:
        InputError: if implementation "triton" cannot compute it here; the message says what to choose.
    """
    while True:
        try:
            return compute()
        except LaunchFailed as failed:
            if implementation == "triton":
                raise InputError(
                    f"{failed} Implementation 'triton' was asked for: 'auto' takes a smaller launch or torch there."
                ) from failed
            _give_way(failed)
            undo()


def tcnn() -> ModuleType:
    """``kernels.tcnn``: what is known of tinycudann, which takes a table and its look-up over, not an operation."""
    from zipnerf_ns.kernels import tcnn

    return tcnn


def resolve_ops(implementation: str, device: torch.device, whose: str = "") -> Ops:
    """The operations that an implementation's name stands for on a device; what "auto" chooses is said once.

    Args:
        implementation: "triton" (the kernels), "torch" (anywhere), or "auto", the fastest that the device allows.
            "tcnn" is "auto" here: Tinycudann takes the encodings' place (``encoding``) and no other.
        device: where the tensors lie.
        whose: of what the implementation is, for the error's message; " of the optimizer".
    Raises:
        ValueError: for a name that is not an implementation.
        RuntimeError: if the implementation cannot run on ``device``; the message says what it needs.
    """
    if implementation == "torch":
        return TORCH_OPS
    if implementation not in ("auto", "triton", "tcnn"):
        raise ValueError(
            f"implementation={implementation!r} is unknown: choose 'auto', 'torch' or 'triton', "
            "or 'tcnn' where encodings are chosen."
        )
    is_asked_for, chose = implementation == "triton", f"Implementation '{implementation}' chose"
    if not is_asked_for and device.type != "cuda":
        say_once(f"{chose} 'torch' on {device.type}.")
        return TORCH_OPS
    from zipnerf_ns.kernels import support

    # That first, for whether they are available is found out by launching one.
    reason = None if is_asked_for else support.why_untried(device)
    reason = reason or support.why_unavailable(device)
    if is_asked_for:
        if reason is not None:
            raise RuntimeError(f"implementation='triton'{whose} cannot run: {reason}")
    else:
        say_once(f"{chose} 'triton' on cuda." if reason is None else f"{chose} 'torch' on cuda: {reason}")
    if reason is not None:
        return TORCH_OPS
    return triton_ops() if is_asked_for else guarded_ops()


BFLOAT16_FROM = (8, 0)
"""The first compute capability whose tensor cores multiply bfloat16; older ones (RTX 20, T4) multiply float16."""


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """The number format in which a device multiplies where this one was asked for; another one is said once.

    float32 on a CPU, which gains nothing from fewer digits; float16 for bfloat16 on GPUs that have no bfloat16.
    """
    from zipnerf_ns.kernels.device import describe, is_pretending

    if device.type != "cuda" and not is_pretending():
        return "float32"
    found = describe(device)
    if precision == "bfloat16" and found.backend == "cuda" and found.capability < BFLOAT16_FROM:
        name = found.name
        say_once(f"{name} has no bfloat16: matrix products are in float16, and their gradients scaled to its range.")
        return "float16"
    return precision


def compile_ahead(rehearse: Callable[[], object], device: torch.device) -> list[Future[None]]:
    """``kernels.ahead.prepare``, for a computation by kernels."""
    from zipnerf_ns.kernels import ahead

    return ahead.prepare(rehearse, device)
