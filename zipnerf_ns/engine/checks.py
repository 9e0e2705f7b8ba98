"""Checks of a run's settings against each other and against the machine, before any data is read."""

from __future__ import annotations

import copy
import importlib
import math
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from zipnerf_ns.data.memory import GIB, limit_memory, room_on
from zipnerf_ns.data.pixels import IN_MAIN_MEMORY, ON_DISK
from zipnerf_ns.engine.checkpoints import load_checkpoint_file, source_of
from zipnerf_ns.engine.optimizers import DecayingAdam, WarmupLogDecayConfig
from zipnerf_ns.errors import InputError, say
from zipnerf_ns.functional.frustum import NUM_MULTISAMPLES
from zipnerf_ns.functional.mlp import VIEW_DIM
from zipnerf_ns.model_config import (
    ZipNerfModelConfig,
    check_config,
    explain_implementation,
    look_ups,
    named_grids,
    rendered_channels,
    table_values,
)
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
SAVED_BYTES_PER_VALUE = 12
"""What a value takes in a checkpoint: itself and Adam's two moments, float32. Networks are small beside tables."""
COTANGENT_ROWS = 1 << 18
"""Intervals for which the kernels hold the color layers' cotangents at a time (``kernels.mlp.tuning``)."""
GPU_BYTES = 2**26
"""Workspaces of libraries, and what torch rounds up."""
OUTSIDE_BYTES = 2**27
"""What torch does not count: the code of kernels that are yet to be loaded, and what the driver makes of a graph."""
FEWEST_RAYS, SMALLEST_TABLE = 256, 12
"""Fewer rays a step, and smaller tables (log2), are not proposed."""


def check_run(config: Any) -> int:
    """Refuses settings of a training that cannot work together, or not here; gives what :func:`check_memory` does.

    Args:
        config: the trainer's.
    Raises:
        InputError: naming the options and the mend.
    """
    _check_steps(config)
    _check_sources(config)
    _check_schedules(config)
    _check_decay(config)
    check_devices(config.machine)
    device = torch.device(config.machine.device_type)
    if device.type != "cuda":
        _check_without_cuda(config, device)
    # Again: a config.yml that was edited by hand has not been through __post_init__.
    check_config(config.pipeline.model)
    explain_implementation(config.pipeline.model, device)
    _check_share(config.pipeline.gpu_memory, device)
    _check_tracker(config)
    _warn_of_disk(config)
    return check_memory(config, device)


def check_devices(machine: Any) -> None:
    """Refuses a seed that is none, and more devices than there are, before Nerfstudio starts a process for each.

    Args:
        machine: its part of the trainer's configuration.
    Raises:
        InputError: naming the option and the mend.
    """
    wanted, device = machine.num_devices, machine.device_type
    if not 0 <= machine.seed < 2**31:
        raise InputError(f"--machine.seed is {machine.seed}: it must be from 0 to {2**31 - 1}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--machine.device-type cuda: torch finds no CUDA device. Install its driver or a torch built for CUDA "
            "(python -m zipnerf_ns.tools.system_check), or choose --machine.device-type cpu."
        )
    found = max(torch.cuda.device_count(), 1) if device == "cuda" else 1
    if not 1 <= wanted <= found:
        hidden = " (CUDA_VISIBLE_DEVICES says which are seen)" if device == "cuda" else ""
        raise InputError(
            f"--machine.num-devices is {wanted}: of {device} devices there can be 1 to {found} here{hidden}. "
            f"Give --machine.num-devices {found}."
        )
    if machine.num_machines > 1 and machine.dist_url == "auto":
        raise InputError(
            f"--machine.num-machines is {machine.num_machines}: they must know where to meet. Give all of them "
            "--machine.dist-url tcp://ADDRESS:PORT of the first."
        )


def _check_steps(config: Any) -> None:
    if config.max_num_iterations < 1:
        raise InputError(f"--max-num-iterations is {config.max_num_iterations}: it must be at least 1.")
    names = ("steps_per_save", "steps_per_eval_batch", "steps_per_eval_image", "steps_per_eval_all_images")
    for name in names:
        if getattr(config, name) < 0:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(config, name)}: it must be 0 (never) or more.")
    for name, steps in config.gradient_accumulation_steps.items():
        if name not in config.optimizers:
            raise InputError(
                f"--gradient-accumulation-steps names {name!r}: the groups are {', '.join(config.optimizers)}."
            )
        if steps < 1:
            raise InputError(f"--gradient-accumulation-steps {name} is {steps}: it must be at least 1.")


def _check_sources(config: Any) -> None:
    if config.load_dir is not None and config.load_checkpoint is not None:
        raise InputError("--load-dir and --load-checkpoint both name a checkpoint. Give one of them.")
    if config.load_step is not None and config.load_dir is None:
        raise InputError(f"--load-step {config.load_step} is of a folder. Give it with --load-dir.")
    source = source_of(config)
    if source is not None:
        load_checkpoint_file(source, mapped=True)


def _check_schedules(config: Any) -> None:
    for name, group in config.optimizers.items():
        prefix = f"--optimizers.{name.replace('_', '-')}"
        # A rate of 0 has no logarithm, by which the schedule goes.
        rates = {f"{prefix}.optimizer.lr": group["optimizer"].lr}
        if isinstance(group["scheduler"], WarmupLogDecayConfig):
            schedule = group["scheduler"]
            rates[f"{prefix}.scheduler.lr-final"] = schedule.lr_final
            for share in ("hold_fraction", "warmup_fraction", "warmup_start"):
                value = getattr(schedule, share)
                if not 0.0 <= value <= 1.0:
                    option = f"{prefix}.scheduler.{share.replace('_', '-')}"
                    raise InputError(f"{option} is {value}: it must be between 0 and 1.")
        for option, rate in rates.items():
            if not 0.0 < rate < math.inf:
                raise InputError(f"{option} is {rate}: it must be positive and finite.")


def _check_decay(config: Any) -> None:
    """The decay is the optimizer's, in its pass over the tables; as a loss it would cost a gradient of all values."""
    optimizer = config.optimizers["hash_tables"]["optimizer"]
    if config.pipeline.model.hash_decay_mult > 0.0 and not issubclass(optimizer._target, DecayingAdam):
        raise InputError(
            f"--optimizers.hash-tables.optimizer is {type(optimizer).__name__}, whose {optimizer._target.__name__} "
            "does not apply the hash decay: choose DecayingAdamConfig, or give --pipeline.model.hash-decay-mult 0."
        )


def _check_without_cuda(config: Any, device: torch.device) -> None:
    if config.use_cuda_graphs == "on":
        raise InputError(f"--use-cuda-graphs on: there are none on {device}. Choose auto or off.")
    kernels = {"pipeline.datamanager.ray-implementation": config.pipeline.datamanager.ray_implementation}
    for name, group in config.optimizers.items():
        option = f"optimizers.{name.replace('_', '-')}.optimizer.implementation"
        kernels[option] = getattr(group["optimizer"], "implementation", None)
    for option, implementation in kernels.items():
        if implementation == "triton":
            raise InputError(f"--{option} triton needs a CUDA device, this is {device}. Choose auto or torch.")


def _check_share(gib: float | None, device: torch.device) -> None:
    if gib is not None and device.type != "cuda":
        raise InputError(f"--pipeline.gpu-memory {gib} is of a GPU, this is {device}. Leave it out.")
    limit_memory(device, gib)


def _check_tracker(config: Any) -> None:
    """Nerfstudio reports to wandb and Comet only after everything is loaded, and only then would a key be missed."""
    name = "wandb" if config.is_wandb_enabled() else "comet_ml" if config.is_comet_enabled() else None
    if name is None:
        return
    mend = "choose --vis tensorboard"
    try:
        tracker = importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"--vis {config.vis}: {error}. Give pip install {name}, or {mend}.") from error
    if name == "comet_ml":
        if tracker.get_config("comet.api_key") is None:
            raise InputError(f"--vis {config.vis}: there is no key. Set COMET_API_KEY (or comet login), or {mend}.")
        return
    try:
        # On a terminal it asks for a key; where it keeps its notes to itself (WANDB_MODE) it needs none.
        tracker.login()
    except tracker.Error as error:
        raise InputError(
            f"--vis {config.vis}: {error} Set WANDB_API_KEY, or WANDB_MODE=offline to keep its files here, or {mend}."
        ) from error


def _warn_of_disk(config: Any) -> None:
    """Says so where checkpoints will not find room: the oldest goes only when the newest is whole."""
    saves = config.max_num_iterations // max(config.steps_per_save, 1) if config.steps_per_save else 0
    number = min(saves + 1, 3) if config.save_only_latest_checkpoint else saves + 1
    needed = number * SAVED_BYTES_PER_VALUE * sum(table_values(config.pipeline.model).values())
    folder = config.get_checkpoint_dir().absolute()
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if needed > free:
        say(
            f"Warning: {number} checkpoints need {needed / GIB:.1f} GiB in {folder}, where {free / GIB:.1f} GiB are "
            "free. Free some, or give another --output-dir."
        )


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
    layers = model.color_layers * model.color_dim
    if ops.name == "triton" and lack is None:
        # Each layer's input, with the view direction and a column of ones beside it.
        colors = colored * (layers + model.hidden_dim + model.color_layers * VIEW_DIM) * number
        briefly = min(colored, COTANGENT_ROWS) * (layers + model.hidden_dim) * number
        # Gradients of tables come when colors have given back their memory, which is theirs then if it is large enough.
        values = table_values(model).values()
        briefly -= 4 * (sum(values) if colors > 4 * max(values) else sum(values) - max(values))
    else:
        unfolded = 3 * model.bottleneck_dim if model.color_layers == 1 else 0
        colors, briefly = colored * (layers + unfolded) * number, colored * 3 * model.color_dim * number
    kept += rows * 4 * COLOR_NUMBERS
    return max(kept + colors + briefly, kept + corners) + (GPU_BYTES if device.type == "cuda" else 0)


def check_memory(config: Any, device: torch.device, held: int = 0, pixels: int = 0) -> int:
    """Refuses a training that the device has no memory for, with what would fit; else gives what it needs.

    Args:
        config: the trainer's.
        device: where it will run.
        held: bytes of what is counted here and lies on the device already.
        pixels: bytes of the training images there; 0 while none is read.
    Raises:
        InputError: naming what is needed, what may be taken, and the settings to change.
    """
    model, num_rays = config.pipeline.model, config.pipeline.datamanager.train_num_rays_per_batch
    needed, room = training_memory(model, num_rays, pixels, device), room_on(device) + held
    room -= OUTSIDE_BYTES * (device.type == "cuda")
    if sum(needed) <= room:
        return sum(needed)
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
    check_memory(trainer.config, device, held + pixels, pixels)


def _with_table(model: ZipNerfModelConfig, name: str, log2: int) -> ZipNerfModelConfig:
    changed = copy.deepcopy(model)
    named_grids(changed)[name].log2_hashmap_size = log2
    return changed


def _first(option: str, now: int, values: Any, fits: Callable[[int], bool]) -> str | None:
    """An option with the first of some values that fits."""
    return next((f"{option} {value} (now {now})" for value in values if fits(value)), None)
