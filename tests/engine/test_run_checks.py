"""Settings that contradict each other, or the machine, end in one line before any data is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import assert_clear, said_when_started, tiny_config

from nerfstudio.engine.optimizers import AdamOptimizerConfig

from zipnerf_ns.data.datamanager import ZipNerfDataManager
from zipnerf_ns.engine.checks import check_run
from zipnerf_ns.engine.optimizers import DecayingAdamConfig
from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig
from zipnerf_ns.errors import InputError


def set_on(path: str, value: Any) -> Callable[[ZipNerfTrainerConfig], None]:
    """Sets a field by its dotted name; dictionaries' keys are names, too."""

    def change(config: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            config = config[name] if isinstance(config, dict) else getattr(config, name)
        if isinstance(config, dict):
            config[last] = value
            return
        assert hasattr(config, last)
        setattr(config, last, value)

    return change


FAULTS: dict[str, tuple[tuple[Callable[[ZipNerfTrainerConfig], None], ...], tuple[str, ...]]] = {
    "no steps": ((set_on("max_num_iterations", 0),), ("--max-num-iterations", "0", "at least 1")),
    "negative interval": ((set_on("steps_per_save", -1),), ("--steps-per-save", "-1", "0 (never)")),
    "unknown group": (
        (set_on("gradient_accumulation_steps", {"fields": 2}),),
        ("--gradient-accumulation-steps", "'fields'", "hash_tables, networks"),
    ),
    "no accumulation": (
        (set_on("gradient_accumulation_steps", {"networks": 0}),),
        ("--gradient-accumulation-steps networks", "0", "at least 1"),
    ),
    "two checkpoints": (
        (set_on("load_dir", Path("run")), set_on("load_checkpoint", Path("run/step-000000001.ckpt"))),
        ("--load-dir", "--load-checkpoint", "one of them"),
    ),
    "step of no folder": ((set_on("load_step", 7),), ("--load-step 7", "--load-dir")),
    "device that is not there": (
        (set_on("machine.device_type", "cuda"),), ("--machine.device-type cuda", "no CUDA device", "cpu"),
    ),
    "graphs on a CPU": ((set_on("use_cuda_graphs", "on"),), ("--use-cuda-graphs on", "cpu", "auto")),
    "kernels on a CPU": (
        (set_on("pipeline.model.implementation", "triton"),), ("--pipeline.model.implementation", "CUDA"),
    ),
    "ray kernels on a CPU": (
        (set_on("pipeline.datamanager.ray_implementation", "triton"),),
        ("--pipeline.datamanager.ray-implementation triton", "CUDA", "auto or torch"),
    ),
    "optimizer's kernels on a CPU": (
        (set_on("optimizers.hash_tables.optimizer.implementation", "triton"),),
        ("--optimizers.hash-tables.optimizer.implementation triton", "CUDA", "auto or torch"),
    ),
    "no learning rate": (
        (set_on("optimizers.networks.optimizer.lr", 0.0),), ("--optimizers.networks.optimizer.lr", "0.0", "positive"),
    ),
    "a decay that no optimizer applies": (
        (set_on("optimizers.hash_tables.optimizer", AdamOptimizerConfig()),),
        ("--optimizers.hash-tables.optimizer", "AdamOptimizerConfig", "--pipeline.model.hash-decay-mult 0"),
    ),
    "a decay that another class does not apply": (
        (set_on("optimizers.hash_tables.optimizer", DecayingAdamConfig(_target=torch.optim.Adam)),),
        ("--optimizers.hash-tables.optimizer", "whose Adam", "--pipeline.model.hash-decay-mult 0"),
    ),
    "no last learning rate": (
        (set_on("optimizers.hash_tables.scheduler.lr_final", float("nan")),),
        ("--optimizers.hash-tables.scheduler.lr-final", "nan", "positive"),
    ),
    "no warm-up's start": (
        (set_on("optimizers.networks.scheduler.warmup_start", -0.1),),
        ("--optimizers.networks.scheduler.warmup-start", "-0.1", "between 0 and 1"),
    ),
    "warm-up longer than the training": (
        (set_on("optimizers.networks.scheduler.warmup_fraction", 1.5),),
        ("--optimizers.networks.scheduler.warmup-fraction", "1.5", "between 0 and 1"),
    ),
    "a share of no GPU": ((set_on("pipeline.gpu_memory", 6.0),), ("--pipeline.gpu-memory 6.0", "cpu", "Leave it out")),
    "model's settings": ((set_on("pipeline.model.near_plane", -1.0),), ("near_plane", "positive")),
}  # fmt: skip


def prepare(folder: Path, name: str) -> tuple[ZipNerfTrainerConfig, tuple[str, ...]]:
    changes, expected = FAULTS[name]
    config = tiny_config(folder / "scene", folder)
    for change in changes:
        change(config)
    return config, expected


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_with_its_mend(tmp_path, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, expected = prepare(tmp_path, name)
    with pytest.raises(InputError) as caught:
        check_run(config)
    assert_clear(str(caught.value), expected)


@pytest.mark.parametrize("name", ["no steps", "optimizer's kernels on a CPU", "model's settings"])
def test_the_trainer_ends_before_data_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(ZipNerfDataManager, "__init__", lambda *_, **__: pytest.fail("data was read"))
    config, expected = prepare(tmp_path, name)
    assert_clear(said_when_started(config), expected)


def test_what_can_run_passes(tmp_path):
    config = tiny_config(tmp_path, tmp_path, gradient_accumulation_steps={"networks": 2}, load_dir=tmp_path)
    config.load_step, config.steps_per_eval_image, config.use_cuda_graphs = 3, 0, "auto"
    config.pipeline.datamanager.ray_implementation = config.pipeline.model.implementation = "torch"
    check_run(config)
