"""Checks of a run's settings against each other and against the machine, before any data is read."""

from __future__ import annotations

import importlib
import math
import shutil
from typing import Any

import torch

from zipnerf_ns.data.memory import GIB, limit_memory
from zipnerf_ns.engine.checkpoints import load_checkpoint_file, source_of
from zipnerf_ns.engine.optimizers import DecayingAdam, WarmupLogDecayConfig
from zipnerf_ns.engine.safety.room import check_memory
from zipnerf_ns.errors import InputError, say
from zipnerf_ns.model_config import check_config, explain_implementation, table_values

SAVED_BYTES_PER_VALUE = 12
"""What a value takes in a checkpoint: itself and Adam's two moments, float32. Networks are small beside tables."""


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
