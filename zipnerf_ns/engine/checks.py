"""Checks of a run's settings against each other and against the machine, before any data is read."""

from __future__ import annotations

import math
from typing import Any

import torch

from zipnerf_ns.engine.optimizers import DecayingAdam, WarmupLogDecayConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.model_config import check_config, check_table_memory, explain_implementation


def check_run(config: Any) -> None:
    """Refuses settings of a training that cannot work together, or not here.

    Args:
        config: the trainer's.
    Raises:
        InputError: naming the options and the mend.
    """
    _check_steps(config)
    _check_sources(config)
    _check_schedules(config)
    _check_decay(config)
    device = torch.device(config.machine.device_type)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--machine.device-type cuda: torch finds no CUDA device. Install its driver or a torch built for CUDA "
            "(python -m zipnerf_ns.tools.system_check), or choose --machine.device-type cpu."
        )
    if device.type != "cuda":
        _check_without_cuda(config, device)
    # Again: a config.yml that was edited by hand has not been through __post_init__.
    check_config(config.pipeline.model)
    explain_implementation(config.pipeline.model, device)
    check_table_memory(config.pipeline.model, device, is_trained=True)


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


def _check_schedules(config: Any) -> None:
    for name, group in config.optimizers.items():
        prefix = f"--optimizers.{name.replace('_', '-')}"
        # A rate of 0 has no logarithm, by which the schedule goes.
        rates = {f"{prefix}.optimizer.lr": group["optimizer"].lr}
        if isinstance(group["scheduler"], WarmupLogDecayConfig):
            schedule = group["scheduler"]
            rates[f"{prefix}.scheduler.lr-final"] = schedule.lr_final
            for share in ("warmup_fraction", "warmup_start"):
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
