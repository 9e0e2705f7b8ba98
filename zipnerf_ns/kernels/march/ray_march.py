"""What is computed along each ray in Triton: one launch an operation, behind the signatures of its torch twin.

``functional.ray_march`` defines the operations and describes their arguments. The kernels read float32 rows with any
step between rays, also none (expanded near and far), and write contiguous ones. They agree with the twins evaluated in
float64 to float32 rounding, and are deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from zipnerf_ns.kernels import support
from zipnerf_ns.kernels.launching import launching
from zipnerf_ns.kernels.march.histogram_kernels import draw_kernel, interlevel_kernel
from zipnerf_ns.kernels.march.ray_kernels import (
    distances_kernel,
    distortion_kernel,
    march_backward_kernel,
    march_kernel,
)
from zipnerf_ns.kernels.march.rows import ALIKE

PROGRAM_LANES = 128
"""Intervals a program, several rays of them where they are short: four a thread keep enough loads under way."""
NUM_WARPS = 1
"""Warps a program, but no more than rays: sums along a ray need no barrier, and 32 programs fit a multiprocessor."""
SEARCH_NUM_WARPS = 1
"""Warps of the programs that look up histograms. Not to be tuned: Triton 3.6 fails to compile a search by several warps
in a row that is shorter than the one it is for."""
MIN_BLOCK = 16
"""Lanes of the shortest row, so that few intervals do not each mean another compilation."""


def draw_intervals(
    sdist: Float[Tensor, "rays edges"] | None,
    weights: Float[Tensor, "rays bins"] | None,
    num_samples: int,
    jitter: Float[Tensor, "rays 1"] | None,
    anneal: float | Float[Tensor, ""],
    near: Float[Tensor, "rays 1"],
    far: Float[Tensor, "rays 1"],
) -> tuple[Float[Tensor, "rays {num_samples}+1"], Float[Tensor, "rays {num_samples}+1"]]:
    """Fenceposts of intervals drawn from a histogram; see ``functional.ray_march.draw_intervals``."""
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}.")
    if (sdist is None) != (weights is None):
        raise ValueError("a histogram is both sdist and weights: give both, or neither for an even one.")
    support.require(near.device)
    near, far = near.float(), far.float()
    offset = near if jitter is None else jitter.float()
    # An absent tensor's pointer is never followed.
    knots, masses, bins, widest = near, near, 1, num_samples
    if weights is not None:
        knots, masses, bins = _rows(sdist), _rows(weights), weights.shape[1]
        widest = max(bins, num_samples)
        _check_shape("sdist", knots, len(near), bins + 1)
    drawn, tdist = near.new_empty(len(near), num_samples + 1), near.new_empty(len(near), num_samples + 1)
    grid, options = _programs(len(near), widest, SEARCH_NUM_WARPS)
    if len(near):
        with launching("draw_intervals", near):
            draw_kernel[grid](
                knots, masses, offset, near, far, drawn, tdist, len(near), bins, num_samples, knots.stride(0),
                masses.stride(0), offset.stride(0), near.stride(0), far.stride(0), _exponent(anneal, near.device),
                HAS_HISTOGRAM=weights is not None, HAS_JITTER=jitter is not None,
                N=_block(num_samples), M=_block(bins), **options,
            )  # fmt: skip
    return drawn, tdist


def density_to_weights(
    density: Float[Tensor, "rays n"], tdist: Float[Tensor, "rays n+1"], valid: Bool[Tensor, "rays 1"]
) -> Float[Tensor, "rays n"]:
    """Share of each ray's color that its intervals contribute; see ``functional.ray_march.density_to_weights``."""
    support.require(density.device)
    _check_shape("tdist", tdist, density.shape[0], density.shape[1] + 1)
    return _March.apply(_rows(density), _rows(tdist), valid, None)


def render(
    density: Float[Tensor, "rays n"],
    tdist: Float[Tensor, "rays n+1"],
    valid: Bool[Tensor, "rays 1"],
    colors: Float[Tensor, "rays n 3"],
) -> tuple[Float[Tensor, "rays n"], Float[Tensor, "rays 3"], Float[Tensor, "rays 1"]]:
    """Weights, color without a background, and accumulation; see ``functional.ray_march.render``.

    Colors are read as they lie, in any floating dtype, and get their gradient in the same dtype.
    """
    support.require(density.device)
    _check_shape("tdist", tdist, density.shape[0], density.shape[1] + 1)
    _check_shape("colors", colors, *density.shape, 3)
    return _March.apply(_rows(density), _rows(tdist), valid, colors)


def interlevel(
    w_prop: Float[Tensor, "rays n"],
    sdist_prop: Float[Tensor, "rays n+1"],
    w_main: Float[Tensor, "rays m"],
    sdist_main: Float[Tensor, "rays m+1"],
    halfwidth: float,
    eps: float,
) -> Float[Tensor, "rays"]:
    """Anti-aliased interlevel loss of each ray; see ``functional.ray_march.interlevel``."""
    if not halfwidth > 0.0:
        raise ValueError(f"halfwidth must be positive, got {halfwidth}.")
    support.require(w_prop.device)
    (rays, n), m = w_prop.shape, w_main.shape[1]
    _check_shape("sdist_prop", sdist_prop, rays, n + 1)
    _check_shape("sdist_main", sdist_main, rays, m + 1)
    w_prop, w_main, sdist_prop, sdist_main = _rows(w_prop), _rows(w_main), _rows(sdist_prop), _rows(sdist_main)

    def launch(loss: Tensor, slopes: Tensor | None) -> None:
        grid, options = _programs(rays, max(n, m), SEARCH_NUM_WARPS)
        interlevel_kernel[grid](
            w_prop, sdist_prop, w_main, sdist_main, loss, loss if slopes is None else slopes, rays, n, m,
            w_prop.stride(0), sdist_prop.stride(0), w_main.stride(0), sdist_main.stride(0),
            float(halfwidth), float(eps), HAS_SLOPES=slopes is not None, N=_block(n), M=_block(m), **options,
        )  # fmt: skip

    return _loss_of_weights("interlevel", w_prop, launch)


def distortion(tdist: Float[Tensor, "rays edges"], weights: Float[Tensor, "rays edges-1"]) -> Float[Tensor, "rays"]:
    """Distortion of each ray; see ``functional.ray_march.distortion``."""
    support.require(weights.device)
    rays, n = weights.shape
    _check_shape("tdist", tdist, rays, n + 1)
    tdist, weights = _rows(tdist), _rows(weights)

    def launch(loss: Tensor, slopes: Tensor | None) -> None:
        grid, options = _programs(rays, n, NUM_WARPS)
        distortion_kernel[grid](
            tdist, weights, loss, loss if slopes is None else slopes, rays, n, tdist.stride(0), weights.stride(0),
            HAS_SLOPES=slopes is not None, N=_block(n), **options,
        )  # fmt: skip

    return _loss_of_weights("distortion", weights, launch)


def median_and_mean_distance(
    weights: Float[Tensor, "rays n"], tdist: Float[Tensor, "rays n+1"]
) -> tuple[Float[Tensor, "rays 1"], Float[Tensor, "rays 1"]]:
    """Median and geometric mean distance along each ray; see ``functional.ray_march.median_and_mean_distance``."""
    support.require(weights.device)
    rays, n = weights.shape
    _check_shape("tdist", tdist, rays, n + 1)
    weights, tdist = _rows(weights.detach()), _rows(tdist.detach())
    median, mean = weights.new_empty(rays, 1), weights.new_empty(rays, 1)
    grid, options = _programs(rays, n, NUM_WARPS)
    if rays:
        with launching("median_and_mean_distance", weights):
            distances_kernel[grid](
                weights, tdist, median, mean, rays, n, weights.stride(0), tdist.stride(0),
                N=_block(n), **options, **ALIKE,
            )  # fmt: skip
    return median, mean


class _March(torch.autograd.Function):
    """Joins ``march_kernel`` to autograd; without colors the weights are its only result."""

    @staticmethod
    def forward(ctx: Any, density: Tensor, tdist: Tensor, valid: Tensor, colors: Tensor | None) -> Any:
        ctx.save_for_backward(density, tdist, valid, colors)
        # An absent cotangent must not become a tensor of zeros to be read.
        ctx.set_materialize_grads(False)
        rays, n = density.shape
        weights = density.new_empty(rays, n)
        results = () if colors is None else (density.new_empty(rays, 3), density.new_empty(rays, 1))
        rgb, accumulation = results or (weights, weights)
        grid, options = _programs(rays, n, NUM_WARPS)
        if rays:
            with launching(_march_operation(colors), density):
                march_kernel[grid](
                    density, tdist, valid, density if colors is None else colors, weights, rgb, accumulation, rays, n,
                    *_strides(density, tdist, valid, colors),
                    HAS_COLORS=colors is not None, N=_block(n), **options, **ALIKE,
                )  # fmt: skip
        return (weights, *results) if results else weights

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        v_weights: Tensor | None,
        v_rgb: Tensor | None = None,
        v_accumulation: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        density, tdist, valid, colors = ctx.saved_tensors
        if v_weights is None and v_rgb is None and v_accumulation is None:
            return None, None, None, None
        rays, n = density.shape
        v_density, v_colors = density.new_empty(rays, n), None
        if v_rgb is not None and ctx.needs_input_grad[3]:
            v_colors = colors.new_empty(rays, n, 3)
        w = density if v_weights is None else _rows(v_weights)
        c, a = density if v_rgb is None else v_rgb, density if v_accumulation is None else v_accumulation
        grid, options = _programs(rays, n, NUM_WARPS)
        if rays:
            with launching(_march_operation(colors), density):
                march_backward_kernel[grid](
                    density, tdist, valid, density if colors is None else colors, w, c, a,
                    v_density, v_density if v_colors is None else v_colors, rays, n,
                    *_strides(density, tdist, valid, colors), w.stride(0), c.stride(0), c.stride(1), a.stride(0),
                    HAS_WEIGHTS=v_weights is not None, HAS_RGB=v_rgb is not None,
                    HAS_ACCUMULATION=v_accumulation is not None, NEEDS_COLORS=v_colors is not None,
                    N=_block(n), **options,
                )  # fmt: skip
        return v_density, None, None, v_colors


class _LossOfWeights(torch.autograd.Function):
    """Joins a loss a ray to autograd, whose kernel writes the derivatives beside the values."""

    @staticmethod
    def forward(
        ctx: Any, operation: str, weights: Tensor, launch: Callable[[Tensor, Tensor | None], None]
    ) -> Tensor:
        loss, slopes = weights.new_empty(len(weights)), weights.new_empty(weights.shape)
        if len(weights):
            with launching(operation, weights):
                launch(loss, slopes)
        ctx.save_for_backward(slopes)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_loss: Tensor) -> tuple[None, Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return None, v_loss[:, None] * slopes, None


def _loss_of_weights(
    operation: str, weights: Tensor, launch: Callable[[Tensor, Tensor | None], None]
) -> Float[Tensor, "rays"]:
    """The loss that ``launch(loss, slopes)`` writes, with its derivatives only where they are wanted."""
    if torch.is_grad_enabled() and weights.requires_grad:
        return _LossOfWeights.apply(operation, weights, launch)
    loss = weights.new_empty(len(weights))
    if len(weights):
        with launching(operation, weights):
            launch(loss, None)
    return loss


def _march_operation(colors: Tensor | None) -> str:
    """Name of the operation that ``_March`` is."""
    return "density_to_weights" if colors is None else "render"


def _exponent(anneal: float | Tensor, device: torch.device) -> Tensor:
    """The annealing exponent in the device's memory, where a captured graph can find another one at every replay."""
    return anneal if isinstance(anneal, Tensor) else _constant(float(anneal), device)


@lru_cache(maxsize=16)
def _constant(value: float, device: torch.device) -> Tensor:
    return torch.full((), value, device=device)


def _rows(values: Tensor) -> Float[Tensor, "rays _"]:
    """Values as the kernels read them: float32, neighbors along a ray side by side."""
    values = values.float()
    return values if values.stride(1) == 1 or values.shape[1] == 1 else values.contiguous()


def _strides(density: Tensor, tdist: Tensor, valid: Tensor, colors: Tensor | None) -> tuple[int, ...]:
    steps = (0, 0, 0) if colors is None else colors.stride()
    return density.stride(0), tdist.stride(0), valid.stride(0), *steps


def _block(width: int) -> int:
    """Lanes of a row of ``width`` intervals: a power of two."""
    return max(MIN_BLOCK, 1 << (width - 1).bit_length())


def _programs(rays: int, width: int, num_warps: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid of a launch over rays of up to ``width`` intervals, and the options that fit it."""
    per_program = max(1, PROGRAM_LANES // _block(width))
    return (-(-rays // per_program),), {"RAYS": per_program, "num_warps": min(num_warps, per_program)}


def _check_shape(name: str, values: Tensor, *shape: int) -> None:
    """Kernels do not check bounds: a row too short would be read into the next one."""
    if tuple(values.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(values.shape)}.")
