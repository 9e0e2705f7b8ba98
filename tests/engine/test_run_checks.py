"""Settings that contradict each other, or the machine, end in one line before any data is read."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _scenes import assert_clear, said_when_started, tiny_config, train, write_scene

from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.data.datamanager import ZipNerfDataManager
from zipnerf_ns.engine.checkpoints import PARTS
from zipnerf_ns.engine.checks import check_run
from zipnerf_ns.engine.optimizers import DecayingAdamConfig
from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.model_config import table_values


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
    "a checkpoint that is not there": (
        (set_on("load_checkpoint", Path("nowhere/step-000000001.ckpt")),),
        ("nowhere/step-000000001.ckpt", "does not exist", "nerfstudio_models"),
    ),
    "a folder without checkpoints": (
        (set_on("load_dir", Path("nowhere")),), ("nowhere holds no checkpoint", "nerfstudio_models"),
    ),
    "a step that was not saved": (
        (set_on("load_dir", Path("nowhere")), set_on("load_step", 7)), ("step-000000007.ckpt", "does not exist"),
    ),
    "a checkpoint of something else": (
        (set_on("load_checkpoint", Path(__file__)),), (Path(__file__).name, "cannot be read", "--load-checkpoint"),
    ),
    "more devices than a CPU": (
        (set_on("machine.num_devices", 2),), ("--machine.num-devices is 2", "cpu", "Give --machine.num-devices 1"),
    ),
    "no device at all": ((set_on("machine.num_devices", 0),), ("--machine.num-devices is 0", "1 to 1")),
    "a seed that is none": ((set_on("machine.seed", -1),), ("--machine.seed is -1", "from 0")),
    "machines that do not meet": (
        (set_on("machine.num_machines", 2),), ("--machine.num-machines is 2", "--machine.dist-url tcp://"),
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


@pytest.mark.parametrize(
    "name",
    [
        "no steps",
        "optimizer's kernels on a CPU",
        "model's settings",
        "a folder without checkpoints",
        "more devices than a CPU",
    ],
)
def test_the_trainer_ends_before_data_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(ZipNerfDataManager, "__init__", lambda *_, **__: pytest.fail("data was read"))
    config, expected = prepare(tmp_path, name)
    assert_clear(said_when_started(config), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_folder_whose_name_is_no_utf_8_is_read_and_a_run_in_one_is_refused(tmp_path, fresh_writers):
    """As old archives leave them; TensorBoard could not write there."""
    scene = write_scene(tmp_path / os.fsdecode(b"sc\xff"))
    config = tiny_config(scene, tmp_path, steps=1, experiment_name=None)
    config.set_experiment_name()
    assert_clear(said_when_started(config), ("no name in UTF-8", "--experiment-name"))
    train(tiny_config(scene, tmp_path, steps=1, experiment_name="other"))


def test_names_that_the_log_cannot_hold_are_escaped(scene, tmp_path, monkeypatch):
    """Also the picture in Nerfstudio's last line, for which Windows has no letter where it writes to a file."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    tiny_config(scene, tmp_path).set_timestamp()
    print("ü\N{PARTY POPPER}", flush=True)
    assert written.getvalue().split() == ["ü\\U0001f389".encode("cp1252")]


def test_more_devices_than_gpus(tmp_path, monkeypatch):
    """Before Nerfstudio starts a process for each of them, and before config.yml is written."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = tiny_config(tmp_path, tmp_path)
    config.machine.device_type, config.machine.num_devices = "cuda", 2
    with CONSOLE.capture() as capture, pytest.raises(SystemExit):
        config.save_config()
    expected = ("--machine.num-devices is 2", "1 to 1", "CUDA_VISIBLE_DEVICES", "Give --machine.num-devices 1")
    assert_clear(" ".join(capture.get().split()), expected)
    assert not config.get_base_dir().exists()
    config.machine.num_devices = 1
    config.save_config()


class Unauthorized(Exception):
    """What wandb raises without a key."""


def trackers(has_key: bool) -> dict[str, SimpleNamespace]:
    """Stand-ins of wandb and Comet."""

    def login() -> None:
        if not has_key:
            raise Unauthorized("No API key configured. Use `wandb login` to log in.")

    key = "key" if has_key else None
    return {
        "wandb": SimpleNamespace(login=login, Error=Unauthorized),
        "comet_ml": SimpleNamespace(get_config=lambda name: {"comet.api_key": key}[name]),
    }


@pytest.mark.parametrize(
    ("vis", "name", "key"),
    [
        ("wandb", "wandb", "WANDB_API_KEY"),
        ("viewer+wandb", "wandb", "WANDB_MODE"),
        ("comet", "comet_ml", "COMET_API_KEY"),
    ],
)
def test_trackers_are_asked_for_their_key_before_data_is_read(tmp_path, monkeypatch, vis, name, key):
    monkeypatch.setattr(ZipNerfDataManager, "__init__", lambda *_, **__: pytest.fail("data was read"))
    config = tiny_config(tmp_path, tmp_path, vis=vis)
    monkeypatch.setitem(sys.modules, name, trackers(has_key=False)[name])
    assert_clear(said_when_started(config), (f"--vis {vis}", key, "key", "--vis tensorboard"))
    # As of a package that is not installed.
    monkeypatch.setitem(sys.modules, name, None)
    assert_clear(said_when_started(config), (f"--vis {vis}", f"pip install {name}", "--vis tensorboard"))
    monkeypatch.setitem(sys.modules, name, trackers(has_key=True)[name])
    check_run(config)


def test_wandb_without_a_key_says_what_our_stand_in_says(tmp_path):
    pytest.importorskip("wandb")
    program = "import wandb\ntry: wandb.login()\nexcept wandb.Error as error: print(error)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    command, streams = [sys.executable, "-c", program], {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    told = subprocess.run(command, env=environment, **streams, text=True, timeout=60, check=True)
    assert "No API key configured" in told.stdout


@pytest.mark.parametrize(
    ("saves", "only_latest", "number"), [(5, True, 3), (5, False, 6), (1, True, 2), (0, True, 1), (100, True, 1)]
)
def test_a_disk_too_small_for_the_checkpoints_is_warned_of(tmp_path, monkeypatch, capsys, saves, only_latest, number):
    config = tiny_config(tmp_path, tmp_path / "new" / "out", steps=10, save_only_latest_checkpoint=only_latest)
    config.steps_per_save = 10 // saves if 0 < saves <= 10 else saves
    needed = number * 12 * sum(table_values(config.pipeline.model).values())
    for free, warns in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        check_run(config)
        said = capsys.readouterr().out
        assert ("Warning:" in said) == warns
        if warns:
            # Broken into lines as wide as the console.
            said = "".join(said.split())
            assert f"{number}checkpointsneed" in said and str(config.get_checkpoint_dir()) in said
            assert "--output-dir" in said


def test_what_can_run_passes(tmp_path):
    config = tiny_config(tmp_path, tmp_path, gradient_accumulation_steps={"networks": 2}, load_dir=tmp_path)
    torch.save(dict.fromkeys(PARTS, 0), tmp_path / "step-000000003.ckpt")
    config.load_step, config.steps_per_eval_image, config.use_cuda_graphs = 3, 0, "auto"
    config.pipeline.datamanager.ray_implementation = config.pipeline.model.implementation = "torch"
    check_run(config)
