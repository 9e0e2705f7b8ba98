"""What a training takes of its device's memory, reckoned before it is tried, and what would fit instead."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from zipnerf_ns.data.memory import GIB, room_on
from zipnerf_ns.data.pixels import IN_MAIN_MEMORY, ON_DISK
from zipnerf_ns.encoding.moving import MotionConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.functional.frustum import NUM_MULTISAMPLES
from zipnerf_ns.functional.mlp import VIEW_DIM
from zipnerf_ns.model_config import ZipNerfModelConfig, look_ups, named_grids, rendered_channels, table_values
from zipnerf_ns.ops import Ops, resolve_ops, resolve_precision

TRAINING_BYTES_PER_VALUE = 16
"""What a value of a hash table takes in training: itself, gradient and Adam's two moments, float32."""
NUMBERS_PER_INTERVAL = 9
"""Numbers in float32: two fenceposts, turn, density, weight, a loss's slope, the cotangents of the last three."""
COLOR_NUMBERS = 9
"""Further ones in the rendered round: color and its cotangent, twice where gradients are scaled, and their factor."""
NUMBERS_PER_SAMPLE = 40
"""What autograd keeps of a multisample's way from camera to cube, where poses are learned; a shift takes six."""
CORNER_BYTES = 8 * (4 + 8 + 4 + 4 + 4)
"""What a multisample takes while the torch twin works at a level: eight corners' row (twice), two weights, product."""
COTANGENT_ROWS = 1 << 18
"""Intervals for which the kernels hold the color layers' cotangents at a time (``kernels.mlp.tuning``)."""
GPU_BYTES = 144 * 2**20
"""Workspaces of libraries, and what torch rounds up: docs/measurements.md, "Memory before the first step"."""
OUTSIDE_BYTES = 2**27
"""What torch does not count: the code of kernels that are yet to be loaded, and what the driver makes of a graph."""
FEWEST_RAYS, SMALLEST_TABLE = 256, 12
"""Fewer rays a step, and smaller tables (log2), are not proposed."""


class TrainingMemory(NamedTuple):
    """Bytes that a training holds on its device at the same time, as the tensors' sizes say before they exist.

    Of a GPU all that torch takes from the driver, which the driver's own, some half a GiB, comes on top of.
    """

    tables: int
    """Hash tables with gradients, moments, and copies in half precision."""
    step: int
    """What a step keeps from its forward pass and makes in its backward pass."""
    pixels: int
    """The training images'."""

    def __str__(self) -> str:
        parts = {"hash tables": self.tables, "a step": self.step, "pixels": self.pixels}
        return ", ".join(f"{name} {part / GIB:.1f}" for name, part in parts.items() if part)


def training_memory(model: ZipNerfModelConfig, num_rays: int, pixels: int, device: torch.device) -> TrainingMemory:
    """What a training with these settings needs on a device.

    Args:
        model: its configuration.
        num_rays: of a step.
        pixels: bytes of the images on the device.
        device: where it will run.
    """
    ops, grids = resolve_ops(model.implementation, device), named_grids(model)
    tables = sum(
        values * (TRAINING_BYTES_PER_VALUE + 2 * ops.reads_half(grids[name].features_per_level))
        for name, values in table_values(model).items()
    )
    return TrainingMemory(tables, _step_memory(model, num_rays, ops, device), pixels)


def _step_memory(model: ZipNerfModelConfig, num_rays: int, ops: Ops, device: torch.device) -> int:
    """Bytes of one step, the tables' gradients not among them: what every round keeps, and the larger of what colors
    and look-ups need for a while."""
    precision = resolve_precision(model.precision, device)
    number = 4 if precision == "float32" else 2
    has_kernels = ops.name == "triton" and model.implementation != "tcnn"
    # What moves is there by itself, behind the mask, and behind what stands still.
    copies, kept, corners = 2 if model.motion.kind == "none" else 4, 0, 0
    for intervals, grid, hidden, prefilter in look_ups(model):
        samples = NUM_MULTISAMPLES if prefilter == "multisample" else 1
        channels = grid.num_levels * (grid.features_per_level + 1)
        each = copies * channels * number
        if not has_kernels:
            each = channels * number + samples * (3 + grid.num_levels) * 4 + hidden * (number + 4)
            corners = max(corners, num_rays * intervals * samples * CORNER_BYTES)
        kept += num_rays * intervals * (4 * NUMBERS_PER_INTERVAL + each)
    rows = num_rays * model.num_samples
    colored = num_rays * -(-model.num_samples // model.color_group)
    kept += model.motion.is_deformed * rows * NUM_MULTISAMPLES * 4 * NUMBERS_PER_SAMPLE
    if model.camera_optimizer.mode != "off" or model.optimize_lens:
        kept += rows * samples * 4 * NUMBERS_PER_SAMPLE
    lack = ops.why_radiance_unsupported(
        rendered_channels(model), model.hidden_dim, model.color_layers, model.color_dim, VIEW_DIM, precision
    )
    layers, values = model.color_layers * model.color_dim, table_values(model).values()
    if ops.name == "triton" and lack is None:
        # Each layer's input, with the view direction and a column of ones beside it.
        colors = colored * (layers + model.hidden_dim + model.color_layers * VIEW_DIM) * number
        briefly = min(colored, COTANGENT_ROWS) * (layers + model.hidden_dim) * number
        # Gradients of tables come when colors have given back their memory, which is theirs then if it is large enough.
        briefly -= 4 * (sum(values) if colors > 4 * max(values) else sum(values) - max(values))
    else:
        unfolded = 3 * model.bottleneck_dim if model.color_layers == 1 else 0
        colors, briefly = colored * (layers + unfolded) * number, colored * 3 * model.color_dim * number
        # What close multisamples, looked up as one, give the table comes by itself before it is added.
        corners += 4 * max(values)
    kept += rows * 4 * COLOR_NUMBERS
    return max(kept + colors + briefly, kept + corners) + (GPU_BYTES if device.type == "cuda" else 0)


def check_memory(
    config: Any, device: torch.device, held: int = 0, pixels: int = 0, motion: MotionConfig | None = None
) -> int:
    """Refuses a training that the device has no memory for, with what would fit; else gives what it needs, and
    what torch does not count of it.

    Args:
        config: the trainer's.
        device: where it will run.
        held: bytes of what is counted here and lies on the device already.
        pixels: bytes of the training images there; 0 while none is read.
        motion: what the scene moves by, once photos have told; before, motion.kind auto is refused for the least that
            it may come to, and what it may need at the most is given.
    Raises:
        InputError: naming what is needed, what may be taken, and the settings to change.
    """
    asked, num_rays = config.pipeline.model, config.pipeline.datamanager.train_num_rays_per_batch
    model = dataclasses.replace(asked, motion=motion or asked.motion.settled(1, None))
    needed, room = training_memory(model, num_rays, pixels, device), room_on(device) + held
    outside = OUTSIDE_BYTES * (device.type == "cuda")
    room -= outside
    if sum(needed) <= room:
        return sum(training_memory(asked, num_rays, pixels, device)) + outside
    values = table_values(model)
    largest = max(values, key=lambda name: values[name])
    log2 = named_grids(model)[largest].log2_hashmap_size

    def fits(rays: int, smaller: int, pixels: int) -> bool:
        return sum(training_memory(_with_table(model, largest, smaller), rays, pixels, device)) <= room

    fewer = [num_rays >> k for k in range(1, 20) if num_rays >> k >= FEWEST_RAYS]
    smaller = range(log2 - 1, SMALLEST_TABLE - 1, -1)
    mends = [
        _first("--pipeline.datamanager.train-num-rays-per-batch", num_rays, fewer, lambda n: fits(n, log2, pixels)),
        _first(f"--pipeline.model.{largest}.log2-hashmap-size", log2, smaller, lambda n: fits(num_rays, n, pixels)),
        f"{ON_DISK}, or {IN_MAIN_MEMORY} False (now True)" if pixels and fits(num_rays, log2, 0) else None,
    ]
    if mends == [None] * 3:
        both = [pair for pair in zip(fewer, smaller, strict=False) if fits(*pair, 0)][:1]
        mends = [
            f"--pipeline.datamanager.train-num-rays-per-batch {rays} with --pipeline.model.{largest}.log2-hashmap-size "
            f"{size}{f' and {IN_MAIN_MEMORY} False' if pixels else ''}"
            for rays, size in both
        ]
    if config.method_name != "zipnerf-lite":
        mends.append("the smaller method zipnerf-lite")
    raise InputError(
        f"the training needs {sum(needed) / GIB:.1f} GiB of memory ({needed}), of {device} it may take "
        f"{room / GIB:.1f} GiB. Choose {', or '.join(filter(None, mends)) or 'a device with more memory'}."
    )


def check_room_to_train(trainer: Any) -> None:
    """:func:`check_memory` once a trainer is set up: it is then known how many pixels there are, and what is held.

    Args:
        trainer: with its pipeline and optimizers.
    Raises:
        InputError: as there.
    """
    device, store = torch.device(trainer.device), getattr(trainer.pipeline.datamanager, "pixels", None)
    pixels = 0 if store is None or store.colors.device.type != device.type else store.num_bytes
    states = [state for optimizer in trainer.optimizers.optimizers.values() for state in optimizer.state.values()]
    tensors = [*trainer.pipeline.parameters(), *(value for state in states for value in state.values())]
    held = sum(tensor.nbytes for tensor in tensors if tensor.device.type == device.type)
    check_memory(trainer.config, device, held + pixels, pixels, trainer.pipeline.model.config.motion)


def _with_table(model: ZipNerfModelConfig, name: str, log2: int) -> ZipNerfModelConfig:
    changed = copy.deepcopy(model)
    named_grids(changed)[name].log2_hashmap_size = log2
    return changed


def _first(option: str, now: int, values: Any, fits: Callable[[int], bool]) -> str | None:
    """An option with the first of some values that fits."""
    return next((f"{option} {value} (now {now})" for value in values if fits(value)), None)
