"""The prefiltered hash encoding in Triton, behind the signature of ``functional.hash_grid.hash_encode``.

Nothing of size [intervals, samples, levels] exists in either direction. The gradient to the table is summed by atomics
in an order that varies; under ``torch.use_deterministic_algorithms`` these add integers, whose sum has no order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from zipnerf_ns.functional import hash_grid
from zipnerf_ns.functional.hash_grid import HashGrid, Prefilter
from zipnerf_ns.kernels import support
from zipnerf_ns.kernels.encode import launch
from zipnerf_ns.kernels.encode.launch import Options, Samples
from zipnerf_ns.kernels.encode.tuning import Tuning, default_tuning
from zipnerf_ns.kernels.launching import launching

FEATURES = (1, 2, 4, 8)
"""Features a level that the kernels read: powers of two, so that a row is a vector."""


def hash_encode(
    table: Float[Tensor, "entries features"],
    positions: Float[Tensor, "intervals samples 3"],
    stds: Float[Tensor, "intervals samples"],
    grid: HashGrid,
    prefilter: Prefilter = "multisample",
    bandwidths: Float[Tensor, "levels"] | None = None,
    num_active: int | None = None,
    times: Float[Tensor, "intervals"] | None = None,
    shutter: float = 0.0,
) -> tuple[Float[Tensor, "intervals levels features"], Float[Tensor, "intervals levels"]]:
    """Prefiltered features: per level the mean over samples of weight * trilinear(position) (Zip-NeRF, eq. 4-5).

    Computes what ``functional.hash_grid.hash_encode`` defines, to float32 rounding, with erf within 2e-7; see there
    for the arguments. Positions and stds receive gradients if they require them, bandwidths never do.

    Raises:
        ValueError: if the table's shape is not the grid's, or is one that the kernels cannot read.
        RuntimeError: if the kernels cannot run on the table's device; the message says what to install.
    """
    tuning = default_tuning(grid.features_per_level)
    return tuned_hash_encode(table, positions, stds, grid, prefilter, bandwidths, num_active, tuning, times, shutter)


def tuned_hash_encode(
    table: Float[Tensor, "entries features"],
    positions: Float[Tensor, "intervals samples 3"],
    stds: Float[Tensor, "intervals samples"],
    grid: HashGrid,
    prefilter: Prefilter,
    bandwidths: Float[Tensor, "levels"] | None,
    num_active: int | None,
    tuning: Tuning,
    times: Float[Tensor, "intervals"] | None = None,
    shutter: float = 0.0,
) -> tuple[Float[Tensor, "intervals levels features"], Float[Tensor, "intervals levels"]]:
    """:func:`hash_encode` with its launches chosen by the caller, for benchmarks and tests."""
    _check(table, grid, prefilter)
    active = hash_grid.count_active(grid, num_active)
    if bandwidths is None:
        bandwidths = _unit_bandwidths(len(grid.levels), table.device)
    # Under autocast positions may come in half precision, in which fine levels have no cells to tell apart.
    samples = positions.float(), stds.float(), bandwidths.float(), None if times is None else times.float()
    hash_grid.check_times(times, grid)
    return _HashEncode.apply(table, *samples, shutter, Options(grid, prefilter, active, tuning))


def _check(table: Tensor, grid: HashGrid, prefilter: str) -> None:
    support.require(table.device)
    features = grid.features_per_level
    hash_grid.check_table(table, grid)
    if table.dtype != torch.float32:
        raise ValueError(f"the kernels read float32 tables, got {table.dtype}.")
    if features not in FEATURES:
        raise ValueError(f"the kernels read {FEATURES} features a level, got {features}: use implementation 'torch'.")
    if prefilter not in get_args(Prefilter):
        raise ValueError(f"prefilter must be one of {get_args(Prefilter)}, got {prefilter!r}.")


@lru_cache(maxsize=64)
def _unit_bandwidths(num_levels: int, device: torch.device) -> Float[Tensor, "levels"]:
    return torch.ones(num_levels, device=device)


class _HashEncode(torch.autograd.Function):
    """Joins the kernels to autograd. Nothing in it is of a kind that autocast would lower, in either direction."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, positions: Tensor, stds: Tensor, bandwidths: Tensor, times: Tensor | None,
        shutter: float, options: Options,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        table = table.contiguous()
        tensors = (None if each is None else each.contiguous() for each in (positions, stds, bandwidths, times))
        samples = Samples(*tensors, shutter)
        with launching("cone_encode", table):
            features, weights = launch.forward(table, samples, options)
        ctx.save_for_backward(table, *samples[:4])
        ctx.options, ctx.shutter = options, shutter
        # An absent cotangent must not become a tensor of zeros to be read and scattered.
        ctx.set_materialize_grads(False)
        if options.prefilter == "none" or not ctx.needs_input_grad[2]:
            ctx.mark_non_differentiable(weights)
        return features, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_features: Tensor | None, v_weights: Tensor | None) -> tuple[Tensor | None, ...]:
        table, *saved = ctx.saved_tensors
        samples, needed = Samples(*saved, ctx.shutter), ctx.needs_input_grad
        v_table, v_samples = None, (None, None)
        with launching("cone_encode", table):
            if needed[0] and v_features is not None:
                v_table = launch.table_gradient(table, samples, v_features, ctx.options)
            if any(needed[1:3]) and not (v_features is None and v_weights is None):
                v_samples = launch.sample_gradients(table, samples, v_features, v_weights, ctx.options)
        return v_table, *(v if need else None for v, need in zip(v_samples, needed[1:3], strict=True)), *[None] * 4
