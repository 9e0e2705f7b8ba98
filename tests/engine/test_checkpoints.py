"""Checkpoints are written beside the training: of the state as it was, in order, and never silently in vain."""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import assert_clear, checkpoint, load, start, tiny_config, write_scene

from zipnerf_ns.engine import checkpoints
from zipnerf_ns.engine.checkpoints import BackgroundWriter, Snapshot
from zipnerf_ns.errors import InputError

PATIENCE = 20.0
"""Seconds after which a test that waits for another thread fails."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("checkpoints") / "scene")


def test_a_snapshot_is_of_the_state_as_it_was(tmp_path):
    table = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    state = {"step": 3, "tensors": OrderedDict(table=table, view=table.detach()[:, 1]), "groups": [{"lr": 0.5}, (1, 2)]}
    state["tensors"]._metadata = {"": {"version": 2}}
    snapshot = Snapshot(state)
    with torch.no_grad():
        table.zero_()
    state["groups"][0]["lr"] = 7.0
    state["tensors"]["table"] = None
    snapshot.write(tmp_path / "state.ckpt", tmp_path / "unfinished")
    assert [path.name for path in tmp_path.iterdir()] == ["state.ckpt"]
    found = torch.load(tmp_path / "state.ckpt", weights_only=True)
    assert torch.equal(found["tensors"]["table"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(found["tensors"]["view"], torch.tensor([1.0, 4.0]))
    assert found["step"] == 3 and found["groups"] == [{"lr": 0.5}, (1, 2)]
    assert found["tensors"]._metadata == {"": {"version": 2}} and not found["tensors"]["table"].requires_grad


@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["where they are", "in main memory"])
def test_copies_share_nothing_with_what_they_were_made_of(device):
    state = {"a": torch.ones(3), "b": [torch.ones(2, 2).t()]}
    copied = checkpoints._copy(state, device)
    state["a"].zero_(), state["b"][0].zero_(), state["b"].append(None)
    assert torch.equal(copied["a"], torch.ones(3)) and len(copied["b"]) == 1
    assert torch.equal(copied["b"][0], torch.ones(2, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fits", [True, False], ids=["copied on the GPU", "copied to main memory"])
def test_a_snapshot_of_a_gpu_is_of_the_state_as_it_was(tmp_path, monkeypatch, fits):
    monkeypatch.setattr(checkpoints, "_fits_twice", lambda *_: fits)
    table = torch.arange(2.0**22, device="cuda")
    snapshot = Snapshot({"table": table, "step": torch.tensor(3.0)})
    assert snapshot.state["table"].is_cuda == fits
    for _ in range(50):
        table.mul_(0.5)
    writer = BackgroundWriter()
    writer.submit(lambda: snapshot.write(tmp_path / "state.ckpt", tmp_path / "unfinished"))
    # Written meanwhile, and by a stream of its own.
    for _ in range(200):
        table.add_(1.0)
    writer.wait()
    found = torch.load(tmp_path / "state.ckpt", weights_only=True, map_location="cpu")
    assert torch.equal(found["table"], torch.arange(2.0**22)) and float(found["step"]) == 3.0


class OnFullDevice(torch.Tensor):
    """A tensor that says it is on a GPU, where there is no memory for a copy of it."""

    is_cuda = True

    def clone(self, **_: Any) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def full_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of which 1000 bytes may be taken."""
    monkeypatch.setattr(checkpoints, "room_on", lambda device: 1000)


@pytest.mark.parametrize(("numbers", "fits"), [(100, True), (125, True), (126, False), (1000, False)])
def test_a_copy_may_take_half_of_the_room(full_device, numbers, fits):
    state = {"table": torch.zeros(numbers).as_subclass(OnFullDevice)}
    assert checkpoints._fits_twice(state, torch.device("cuda")) == fits


def test_a_copy_that_does_not_fit_after_all_is_made_in_main_memory(full_device):
    table = torch.arange(5.0).as_subclass(OnFullDevice)
    snapshot = Snapshot({"table": table, "step": 3})
    assert table.zero_().sum() == 0.0
    assert snapshot.state["table"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0] and snapshot.state["step"] == 3


@pytest.mark.parametrize("absent", ["step", "schedulers", "scalers", "rng"])
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, absent):
    """As another trainer's does: what would resume from it would not be what was saved."""
    torch.save({part: {} for part in checkpoints.PARTS if part != absent}, tmp_path / "step-1.ckpt")
    with pytest.raises(InputError, match=f"lacks {absent}: "):
        checkpoints.load_checkpoint_file(tmp_path / "step-1.ckpt")


def test_files_are_written_one_at_a_time_and_in_order():
    writer, written, may_end = BackgroundWriter(), [], threading.Event()

    def slow() -> None:
        assert may_end.wait(PATIENCE)
        written.append("first")

    writer.submit(slow)
    writer.check()
    assert written == []
    threading.Timer(0.05, may_end.set).start()
    # Does not return before the first file is done, so no second snapshot need wait for its turn.
    writer.submit(lambda: written.append("second"))
    assert written[0] == "first"
    writer.wait()
    assert written == ["first", "second"]


@pytest.mark.parametrize("meet", ["check", "wait", "submit"])
def test_an_error_is_raised_once_where_the_training_next_looks(meet):
    writer, done = BackgroundWriter(), threading.Event()

    def fail() -> None:
        done.set()
        raise OSError(28, "No space left on device")

    writer.submit(fail)
    assert done.wait(PATIENCE)
    with pytest.raises(OSError, match="No space left"):
        if meet == "check":
            for _ in range(10_000):
                writer.check()
        writer.wait() if meet == "wait" else writer.submit(lambda: None)
    writer.check()
    writer.wait()


class HeldWrites:
    """Files are written when the test lets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_end, self.begun, self.ended = threading.Event(), [], []
        whole = checkpoints.write_whole

        def write(state: Any, path: Path, unfinished: Path) -> None:
            self.begun.append(path.name)
            assert self.may_end.wait(PATIENCE)
            whole(state, path, unfinished)
            self.ended.append(path.name)

        monkeypatch.setattr(checkpoints, "write_whole", write)


def before_steps(trainer: Any, act: Any) -> list[int]:
    """Has the trainer call ``act`` with every step before it trains it; returns the steps trained so far."""
    iterate, steps = trainer.train_iteration, []

    def iteration(step: int) -> Any:
        act(step)
        steps.append(step)
        return iterate(step)

    trainer.train_iteration = iteration
    return steps


def test_training_goes_on_while_a_checkpoint_of_its_step_is_written(scene, tmp_path, monkeypatch, fresh_writers):
    options = dict(steps=7, steps_per_save=3, save_only_latest_checkpoint=False)
    plain = tiny_config(scene, tmp_path, timestamp="plain", **options)
    start(plain).train()
    held = HeldWrites(monkeypatch)
    config = tiny_config(scene, tmp_path, timestamp="held", **options)
    trainer = start(config)
    folder = config.get_checkpoint_dir()

    def let_it_end(step: int) -> None:
        if step == 5:
            assert held.ended == [] and not list(folder.glob("*.ckpt"))
            held.may_end.set()

    steps = before_steps(trainer, let_it_end)
    trainer.train()
    assert steps == list(range(7))
    assert held.begun == held.ended == [f"step-{step:09d}.ckpt" for step in (3, 6, 6)]
    # What lies there is the state of step 3, though steps 4 and 5 were trained before it was written.
    first, second = load(checkpoint(plain, 3)), load(checkpoint(config, 3))
    for name, value in first["pipeline"].items():
        assert torch.equal(value, second["pipeline"][name]), name
    for group in first["optimizers"]:
        for index, entry in first["optimizers"][group]["state"].items():
            assert all(torch.equal(entry[key], second["optimizers"][group]["state"][index][key]) for key in entry)
    assert torch.equal(first["rng"]["torch"], second["rng"]["torch"]) and first["schedulers"] == second["schedulers"]
    later = load(checkpoint(config, 6))["pipeline"]
    assert any(not torch.equal(value, later[name]) for name, value in second["pipeline"].items())


def test_the_older_checkpoint_goes_only_when_the_new_one_is_whole(scene, tmp_path, monkeypatch, fresh_writers):
    config = tiny_config(scene, tmp_path, steps=6)
    trainer = start(config)
    trainer.save_checkpoint(1)
    held = HeldWrites(monkeypatch)
    trainer.begin_checkpoint(2)
    assert [path.name for path in config.get_checkpoint_dir().iterdir()] == ["step-000000001.ckpt"]
    held.may_end.set()
    trainer.checkpoints.wait()
    assert [path.name for path in config.get_checkpoint_dir().iterdir()] == ["step-000000002.ckpt"]


needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that takes nothing")


@needs_full_device
def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path):
    (tmp_path / "unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpoints.write_whole({"table": torch.zeros(1 << 16)}, tmp_path / "step.ckpt", tmp_path / "unfinished")
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []


@needs_full_device
@pytest.mark.parametrize("when", ["between", "at the end"])
def test_a_disk_that_fills_up_ends_the_training(scene, tmp_path, monkeypatch, fresh_writers, capsys, when):
    """Soon, with one line, and what was whole before it stays."""
    each = 2 if when == "between" else 0
    trainer = start(tiny_config(scene, tmp_path, steps=9, steps_per_save=each))
    trainer.save_checkpoint(0)
    failed, write = threading.Event(), checkpoints.write_whole

    def write_in_vain(state: dict, path: Path, unfinished: Path) -> None:
        unfinished.symlink_to("/dev/full")
        failed.set()
        write(state, path, unfinished)

    monkeypatch.setattr(checkpoints, "write_whole", write_in_vain)
    steps = before_steps(trainer, lambda step: each == 0 or step != 3 or failed.wait(PATIENCE))
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == 1
    assert steps in ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]) if each else steps == list(range(9))
    whole = trainer.checkpoint_dir / "step-000000000.ckpt"
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Error:")]
    assert len(said) == 1
    assert_clear(said[0], ("No space left on device", str(whole), "--load-dir", "once there is room"))
    assert list(trainer.checkpoint_dir.iterdir()) == [whole] and load(whole)["step"] == 0
    assert not [path for path in trainer.base_dir.iterdir() if path.name.endswith(".unfinished")]


def test_an_interrupted_training_still_finishes_its_checkpoint(scene, tmp_path, monkeypatch, fresh_writers, capsys):
    config = tiny_config(scene, tmp_path, steps=9, steps_per_save=2)
    trainer = start(config)
    held = HeldWrites(monkeypatch)

    def interrupt(step: int) -> None:
        if step == 3:
            threading.Timer(0.05, held.may_end.set).start()
            raise KeyboardInterrupt

    steps = before_steps(trainer, interrupt)
    with pytest.raises(SystemExit):
        trainer.train()
    assert steps == [0, 1, 2]
    assert "step-000000002.ckpt" in capsys.readouterr().out, "the checkpoint to go on from is the finished one"
    assert [path.name for path in config.get_checkpoint_dir().iterdir()] == ["step-000000002.ckpt"]
    assert load(checkpoint(config, 2))["step"] == 2
