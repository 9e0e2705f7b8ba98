"""Whatever ends a training, and wherever: what resumes from its files ends with the same bits as without."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import checkpoint, load, start, tiny_config, train, write_scene

from zipnerf_ns.engine import checkpoints
from zipnerf_ns.engine.checkpoints import checkpoints_in

pytestmark = pytest.mark.usefixtures("fresh_writers")

STEPS, SAVED = 9, 3
"""Of the whole training, and between two checkpoints; a picture is evaluated every 4 steps."""


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def make_config(scene: Path, output: Path, **changes: Any) -> Any:
    config = tiny_config(scene, output, STEPS, steps_per_save=SAVED, steps_per_eval_image=4, **changes)
    config.pipeline.model.use_appearance = True
    config.pipeline.model.camera_optimizer.mode = "SO3xR3"
    config.pipeline.model.optimize_lens = True
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted training."""
    folder = tmp_path_factory.mktemp("exact")
    config = make_config(write_scene(folder / "scene", 12, [(36, 32)] * 12), folder)
    _, losses = train(config)
    return config, losses, load(checkpoint(config, STEPS - 1))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list, tuple)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(entry, f"{path}/{key}")
    else:
        yield path, value


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in ("step", "pipeline", "optimizers", "schedulers", "scalers", "rng"):
        first, second = dict(leaves(found[part])), dict(leaves(expected[part]))
        assert first.keys() == second.keys()
        for path, value in first.items():
            other = second[path]
            same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
            assert same, f"{part}{path}"


def interrupt(trainer: Any, at: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a fault happen at a step."""
    iterate, update, write = trainer.train_iteration, trainer.optimizers.optimizer_scaler_step_some, None

    def iteration(step: int) -> Any:
        if step == at and how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if step == at and how == "killed before":
            raise Killed
        return iterate(step)

    def updates(*arguments: Any) -> None:
        if trainer.step == at and how == "killed in the update":
            # Of the networks, without the tables.
            trainer.optimizers.optimizers["networks"].step()
            raise Killed
        update(*arguments)

    write = checkpoints.write_whole

    def writes(state: Any, path: Path, unfinished: Path) -> None:
        if path.name == f"step-{at:09d}.ckpt" and how == "killed in the write":
            unfinished.write_bytes(b"PK")
            raise Killed
        write(state, path, unfinished)

    trainer.train_iteration, trainer.optimizers.optimizer_scaler_step_some = iteration, updates
    monkeypatch.setattr(checkpoints, "write_whole", writes)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are Unix's")
@pytest.mark.parametrize(
    ("how", "at"),
    [
        *(("signal", step) for step in range(STEPS)), *(("killed before", step) for step in range(4, STEPS)),
        ("killed in the update", 5), ("killed in the write", 6), ("damaged", 8), ("twice", 5),
    ],
)  # fmt: skip
def test_a_training_that_was_interrupted_ends_with_the_same_bits(whole, tmp_path, monkeypatch, how, at):
    config, losses, expected = whole
    scene = config.pipeline.datamanager.data
    config = make_config(scene, tmp_path)
    trainer = start(config)
    kind = {"damaged": "killed before", "twice": "signal"}.get(how, how)
    interrupt(trainer, at, kind, monkeypatch)
    with pytest.raises((SystemExit, Killed)):
        trainer.train()
    monkeypatch.undo()
    folder = config.get_checkpoint_dir()
    assert checkpoints_in(folder), "the test would compare a training from its beginning"
    if how == "damaged":
        last = checkpoint(config, 6)
        last.write_bytes(last.read_bytes()[:-5000])
    if how == "twice":
        trainer = start(make_config(scene, tmp_path, load_dir=folder), seed=5)
        interrupt(trainer, at + 2, "signal", monkeypatch)
        with pytest.raises(SystemExit):
            trainer.train()
        monkeypatch.undo()
    first = {"signal": at + 1, "damaged": 4, "twice": at + 3}.get(how, (at - 1) // SAVED * SAVED + 1)
    _, continued = train(make_config(scene, tmp_path, load_dir=folder), seed=99)
    assert continued == {step: losses[step] for step in range(first, STEPS)}
    assert_same_bits(load(checkpoint(config, STEPS - 1)), expected)
