"""Which functions compute what: the hot path's operations by implementation, resolved from its name in one place."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Callable, Literal, NamedTuple

import torch

from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.functional import cones, mlp, ray_march, table_state
from zipnerf_ns.kernels.adam import table_adam as adam_kernels
from zipnerf_ns.kernels.encode import cone_encode as cone_kernels
from zipnerf_ns.kernels.encode import hash_encode as hash_kernels
from zipnerf_ns.kernels.encode.tuning import default_tuning
from zipnerf_ns.kernels.march import ray_march as ray_kernels
from zipnerf_ns.kernels.mlp import networks as mlp_kernels

Implementation = Literal["auto", "triton", "torch", "tcnn"]


class Ops(NamedTuple):
    """The operations of the hot path; each is described where its torch twin is defined."""

    name: str
    """Of the implementation."""
    cone_encode: Callable[..., Any]
    """``functional.cones.cone_encode``."""
    density_mlp: Callable[..., Any]
    """``functional.mlp.density_mlp``."""
    radiance_mlp: Callable[..., Any]
    """``functional.mlp.radiance_mlp``."""
    spherical_harmonics: Callable[..., Any]
    """``functional.mlp.spherical_harmonics``."""
    draw_intervals: Callable[..., Any]
    """``functional.ray_march.draw_intervals``."""
    density_to_weights: Callable[..., Any]
    """``functional.ray_march.density_to_weights``."""
    render: Callable[..., Any]
    """``functional.ray_march.render``."""
    interlevel: Callable[..., Any]
    """``functional.ray_march.interlevel``."""
    distortion: Callable[..., Any]
    """``functional.ray_march.distortion``."""
    median_and_mean_distance: Callable[..., Any]
    """``functional.ray_march.median_and_mean_distance``."""
    summarise: Callable[..., Any]
    """``functional.table_state.summarise``."""
    reads_half: Callable[[int], bool]
    """Whether a half-precision copy of a table with so many features a level is worth keeping."""


TORCH_OPS = Ops(
    "torch", cones.cone_encode, mlp.density_mlp, mlp.radiance_mlp, mlp.spherical_harmonics, ray_march.draw_intervals,
    ray_march.density_to_weights, ray_march.render, ray_march.interlevel, ray_march.distortion,
    ray_march.median_and_mean_distance, table_state.summarise, lambda _: False,
)  # fmt: skip
TRITON_OPS = Ops(
    "triton", cone_kernels.cone_encode, mlp_kernels.density_mlp, mlp_kernels.radiance_mlp,
    mlp_kernels.spherical_harmonics, ray_kernels.draw_intervals, ray_kernels.density_to_weights, ray_kernels.render,
    ray_kernels.interlevel, ray_kernels.distortion, ray_kernels.median_and_mean_distance, adam_kernels.summarise,
    lambda features: default_tuning(features).half_table,
)  # fmt: skip


@lru_cache(maxsize=None)
def _announce_choice(implementation: str, choice: str, device_type: str) -> None:
    CONSOLE.log(f"Implementation '{implementation}' chose '{choice}' on {device_type}.")


def resolve_ops(implementation: str, device: torch.device) -> Ops:
    """The operations that an implementation's name stands for on a device.

    Raises:
        ValueError: for a name that is not an implementation.
        RuntimeError: if the implementation cannot run on ``device``; the message says what it needs.
    """
    if implementation in ("auto", "tcnn"):
        # Tinycudann takes the encodings' place (tcnn_encoding); everything else is as fast as the device allows.
        choice = "triton" if device.type == "cuda" and hash_kernels.is_available(device) else "torch"
        _announce_choice(implementation, choice, device.type)
        implementation = choice
    if implementation == "torch":
        return TORCH_OPS
    if implementation == "triton":
        reason = hash_kernels.why_unavailable(device)
        if reason is not None:
            raise RuntimeError(f"implementation='triton' cannot run: {reason}")
        return TRITON_OPS
    raise ValueError(f"implementation={implementation!r} is unknown: choose 'auto', 'triton', 'torch' or 'tcnn'.")
