"""Checkpoints survive kills, resumed runs equal uninterrupted ones, and training ends where it should."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from _scenes import (
    checkpoint,
    folder_bytes,
    free_port,
    load,
    start,
    tiny_config,
    train,
    write_blender_scene,
    write_scene,
)

from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.engine import checkpoints
from zipnerf_ns.engine.checkpoints import capture_rng, checkpoints_in, restore_rng

pytestmark = pytest.mark.usefixtures("fresh_writers")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that are large enough for every metric."""
    return write_scene(tmp_path_factory.mktemp("trainer") / "scene", sizes=[(36, 32)] * 8)


def largest_difference(first: Any, second: Any) -> float:
    """Largest absolute difference of two states' numbers; their structure must be the same."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return max((largest_difference(first[key], second[key]) for key in first), default=0.0)
    if isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        return max((largest_difference(a, b) for a, b in zip(first, second, strict=True)), default=0.0)
    if isinstance(first, torch.Tensor):
        assert first.shape == second.shape and first.dtype == second.dtype
        # Nerfstudio's eval_setup takes a GPU where there is one.
        return float((first.double().cpu() - second.double().cpu()).abs().max()) if first.numel() else 0.0
    if isinstance(first, (int, float)):
        return abs(first - second)
    assert first == second
    return 0.0


@pytest.mark.parametrize("prefilter", ["ipe", "multisample"])
def test_a_resumed_run_equals_the_uninterrupted_one(scene, tmp_path, prefilter):
    """Parameters and optimizer state after all steps within 1e-6, with held-out images rendered in between."""
    options = dict(steps=14, steps_per_save=6, steps_per_eval_image=4, save_only_latest_checkpoint=False)
    whole = tiny_config(scene, tmp_path, timestamp="whole", **options)
    whole.pipeline.model.prefilter = prefilter
    _, losses = train(whole, seed=1)
    assert sorted(losses) == list(range(14))
    resumed = tiny_config(scene, tmp_path, timestamp="resumed", load_checkpoint=checkpoint(whole, 6), **options)
    resumed.pipeline.model.prefilter = prefilter
    # Another seed: what comes out may depend on the checkpoint alone.
    trainer, continued = train(resumed, seed=99)
    assert continued == pytest.approx({step: losses[step] for step in range(7, 14)}, abs=1e-6)
    assert trainer.step == 13 and checkpoint(resumed, 13).is_file()
    first, second = load(checkpoint(whole, 13)), load(checkpoint(resumed, 13))
    for key in ("step", "pipeline", "optimizers", "schedulers", "rng"):
        assert largest_difference(first[key], second[key]) <= 1e-6, key
    # The comparison could not fail if nothing had been trained.
    assert largest_difference(load(checkpoint(whole, 6))["pipeline"], first["pipeline"]) > 1e-3


def test_resume_by_folder_takes_the_latest_and_by_step_the_named(scene, tmp_path):
    options = dict(steps=9, steps_per_save=3, save_only_latest_checkpoint=False)
    config = tiny_config(scene, tmp_path, **options)
    train(config)
    folder = config.get_checkpoint_dir()
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:09d}.ckpt" for step in (3, 6, 8)]
    longer = dict(options, steps=11, load_dir=folder)
    _, losses = train(tiny_config(scene, tmp_path, timestamp="latest", **longer))
    assert sorted(losses) == [9, 10]
    _, losses = train(tiny_config(scene, tmp_path, timestamp="named", load_step=3, **longer))
    assert sorted(losses) == list(range(4, 11))


def test_the_configured_number_of_steps_is_the_total(scene, tmp_path):
    config = tiny_config(scene, tmp_path, steps=7, steps_per_save=2)
    trainer, losses = train(config)
    assert sorted(losses) == list(range(7)) and trainer.config.max_num_iterations == 7
    assert sorted(checkpoints_in(config.get_checkpoint_dir())) == [4, 6]
    state = load(checkpoint(config, 6))
    assert state["step"] == 6
    steps = {float(entry["step"]) for group in state["optimizers"].values() for entry in group["state"].values()}
    assert steps == {7.0}


def test_resuming_a_finished_run_says_so_and_leaves_its_files(scene, tmp_path):
    config = tiny_config(scene, tmp_path, steps=4)
    train(config)
    before = folder_bytes(config.get_checkpoint_dir())
    again = tiny_config(scene, tmp_path, steps=4, load_dir=config.get_checkpoint_dir())
    with CONSOLE.capture() as said:
        _, losses = train(again)
    assert losses == {}
    assert "all 4 steps already" in said.get() and "--max-num-iterations" in said.get()
    assert folder_bytes(config.get_checkpoint_dir()) == before


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def die_while_writing(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """torch.save writes the first part of the file and never comes back."""
    whole_save = torch.save

    def save(state: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        whole_save(state, file, *args, **kwargs)
        file.flush() if hasattr(file, "flush") else None
        target = Path(getattr(file, "name", file))
        target.write_bytes(target.read_bytes()[: int(share * target.stat().st_size)])
        raise Killed

    monkeypatch.setattr(torch, "save", save)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_kill_at_a_checkpoints_write_leaves_the_one_before(scene, tmp_path, monkeypatch, share):
    config = tiny_config(scene, tmp_path, steps=9, steps_per_save=4)
    trainer = start(config)
    iterate = trainer.train_iteration

    def until_step_8(step: int) -> Any:
        if step == 8:
            die_while_writing(monkeypatch, share)
        return iterate(step)

    trainer.train_iteration = until_step_8
    with pytest.raises(Killed):
        trainer.train()
    monkeypatch.undo()
    assert [path.name for path in config.get_checkpoint_dir().iterdir()] == ["step-000000004.ckpt"]
    assert load(checkpoint(config, 4))["step"] == 4
    # What ns-eval and ns-render do with the run: list the folder, take the highest step, load it strictly.
    loaded, pipeline, path, step = eval_setup(config.get_base_dir() / "config.yml")
    assert (path.name, step) == ("step-000000004.ckpt", 4)
    assert largest_difference(dict(pipeline.state_dict()), load(path)["pipeline"]) == 0.0
    _, losses = train(tiny_config(scene, tmp_path, steps=9, load_dir=config.get_checkpoint_dir()))
    assert sorted(losses) == [5, 6, 7, 8]
    assert sorted(checkpoints_in(config.get_checkpoint_dir())) == [4, 8]


def test_a_full_disk_at_a_checkpoints_write_keeps_the_one_before(scene, tmp_path, monkeypatch):
    config = tiny_config(scene, tmp_path, steps=2)
    trainer, _ = train(config)
    before = folder_bytes(config.get_checkpoint_dir())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_checkpoint(1)
    assert folder_bytes(config.get_checkpoint_dir()) == before


def test_the_last_two_checkpoints_are_kept_or_all(scene, tmp_path):
    config = tiny_config(scene, tmp_path, steps=1)
    trainer, _ = train(config)
    for step in (1, 2):
        trainer.save_checkpoint(step)
        assert sorted(checkpoints_in(config.get_checkpoint_dir())) == [step - 1, step]
    trainer.config.save_only_latest_checkpoint = False
    trainer.save_checkpoint(3)
    assert len(list(config.get_checkpoint_dir().iterdir())) == 3


def plain(value: Any) -> Iterator[Any]:
    """All leaves of a nested state."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from plain(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from plain(entry)
    else:
        yield value


def test_checkpoints_hold_tensors_and_plain_python_only(scene, tmp_path):
    """torch >= 2.6 loads nothing else; numpy's learning rates are what breaks Nerfstudio's own checkpoints."""
    config = tiny_config(scene, tmp_path, steps=3)
    trainer, _ = train(config)
    state = torch.load(checkpoint(config, 2), weights_only=True)
    kinds = {type(leaf) for leaf in plain(state)}
    assert kinds <= {torch.Tensor, int, float, bool, str, type(None)}, kinds
    for name, optimizer in trainer.optimizers.optimizers.items():
        for group in optimizer.param_groups:
            assert type(group["lr"]) is float and 0.0 < group["lr"] < 1.0
        assert all(type(rate) is float for rate in trainer.optimizers.schedulers[name].get_last_lr())


def draws() -> list[Any]:
    """Numbers from every generator."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(()).item()]


def test_random_state_survives_a_file(tmp_path):
    random.gauss(0, 1), np.random.normal()  # Leaves a second normal number cached in both generators.
    torch.save(capture_rng(), tmp_path / "rng.pt")
    truth = draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert draws() != truth
    restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draws() == truth


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": {"hash_tables": 2, "networks": 3}},
        {"mixed_precision": True},
        {"use_grad_scaler": True},
        {"log_gradients": True},
        {"steps_per_eval_batch": 2, "steps_per_eval_all_images": 3},
        {"vis": "viewer"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_trainer_options_do_not_break_training(scene, tmp_path, changes):
    config = tiny_config(scene, tmp_path, steps=7, **changes)
    config.viewer.websocket_port, config.viewer.quit_on_train_completion = free_port(), True
    trainer, losses = train(config)
    trainer.shutdown()
    assert np.isfinite(list(losses.values())).all() and sorted(losses) == list(range(7))
    steps = {
        name: {float(entry["step"]) for entry in optimizer.state.values()}
        for name, optimizer in trainer.optimizers.optimizers.items()
    }
    per_update = changes.get("gradient_accumulation_steps", {"hash_tables": 1, "networks": 1})
    assert steps == {name: {float(7 // every)} for name, every in per_update.items()}


def test_schedules_end_with_the_training(scene, tmp_path):
    config = tiny_config(scene, tmp_path, steps=5)
    given = copy.deepcopy(config.optimizers)
    trainer, _ = train(config)
    for name, scheduler in trainer.optimizers.schedulers.items():
        # A training as short as this ends at a thousandth of its first rate, where the last one depends on its length.
        config_of = given[name]["scheduler"]
        last = config_of.lr_final if config_of.full_steps is None else given[name]["optimizer"].lr / 1000
        assert scheduler.get_last_lr() == [pytest.approx(last)]
    assert config.optimizers == given


def test_evaluation_of_a_transparent_scene_from_its_files_alone(tmp_path):
    """The background of training comes back from the checkpoint, also where no image is read."""
    scene = write_blender_scene(tmp_path / "scene")
    config = tiny_config(scene, tmp_path, steps=2, dataparser=BlenderDataParserConfig())
    train(config)
    saved = yaml.load((config.get_base_dir() / "config.yml").read_text(), Loader=yaml.Loader)
    assert saved.pipeline.datamanager.dataparser.alpha_color == "white"
    for mode in ("test", "inference"):
        _, pipeline, _, step = eval_setup(config.get_base_dir() / "config.yml", test_mode=mode)
        assert step == 1 and torch.equal(pipeline.model.background.cpu(), torch.ones(3))
        assert torch.equal(pipeline.model.zipnerf.aabb.cpu(), torch.tensor([[-1.5] * 3, [1.5] * 3]))
