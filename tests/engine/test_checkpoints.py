"""Checkpoints are written beside the training: of the state as it was, in order, and never silently in vain."""

from __future__ import annotations

import errno
import threading
import zipfile
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import assert_clear, checkpoint, load, start, tiny_config, train

from nerfstudio.utils.eval_utils import eval_setup

from zipnerf_ns.engine import checkpoints
from zipnerf_ns.engine.checkpoints import BackgroundWriter, Snapshot
from zipnerf_ns.engine.safety import files
from zipnerf_ns.errors import InputError

PATIENCE = 20.0
"""Seconds after which a test that waits for another thread fails."""


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


def saved_steps(config: Any) -> list[int]:
    """Of the checkpoints in a run's folder, which holds nothing else."""
    found = checkpoints.checkpoints_in(config.get_checkpoint_dir())
    assert len(found) == len(list(config.get_checkpoint_dir().iterdir()))
    return sorted(found)


def test_the_older_checkpoint_goes_only_when_the_new_one_is_whole(scene, tmp_path, monkeypatch, fresh_writers):
    config = tiny_config(scene, tmp_path, steps=6)
    trainer = start(config)
    trainer.save_checkpoint(1)
    held = HeldWrites(monkeypatch)
    trainer.begin_checkpoint(2)
    assert [path.name for path in config.get_checkpoint_dir().iterdir()] == ["step-000000001.ckpt"]
    held.may_end.set()
    trainer.checkpoints.wait()
    assert saved_steps(config) == [1, 2]
    trainer.save_checkpoint(3)
    assert saved_steps(config) == [2, 3]


def test_what_others_left_among_checkpoints_is_no_earlier_run_and_stays(scene, tmp_path):
    config = tiny_config(scene, tmp_path, steps=6)
    folder, others = config.get_checkpoint_dir(), {"best.ckpt", "._step-000000001.ckpt"}
    folder.mkdir(parents=True)
    for name in others:
        (folder / name).write_bytes(b"?")
    trainer = start(config)
    for step in (1, 2, 3):
        trainer.save_checkpoint(step)
    assert {path.name for path in folder.iterdir()} == {"step-000000002.ckpt", "step-000000003.ckpt", *others}


needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that takes nothing")


@needs_full_device
def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path):
    (tmp_path / "unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpoints.write_whole({"table": torch.zeros(1 << 16)}, tmp_path / "step.ckpt", tmp_path / "unfinished")
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []


class FullDisk:
    """A disk that takes no checkpoint, until it is said that it does; counts what was tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full, self.tries, self.write = True, 0, checkpoints.write_whole
        monkeypatch.setattr(checkpoints, "write_whole", self)
        monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)

    def __call__(self, state: dict, path: Path, unfinished: Path) -> None:
        self.tries += 1
        if self.is_full:
            unfinished.symlink_to("/dev/full")
        self.write(state, path, unfinished)


@needs_full_device
@pytest.mark.parametrize("ends", ["with room", "in vain"])
def test_a_disk_that_is_full_for_a_while_costs_nothing(scene, tmp_path, monkeypatch, fresh_writers, capsys, ends):
    """It is said once; what was whole before stays; the last checkpoint is tried for a while, and its loss is told."""
    config = tiny_config(scene, tmp_path, steps=9, steps_per_save=2)
    trainer = start(config)
    trainer.save_checkpoint(0)
    disk = FullDisk(monkeypatch)

    def make_room(step: int) -> None:
        if step == 8 and ends == "with room":
            trainer.checkpoints.wait()
            disk.is_full = False

    steps = before_steps(trainer, make_room)
    if ends == "with room":
        trainer.train()
        assert disk.tries == 5 and saved_steps(config) == [0, 8] and load(checkpoint(config, 8))["step"] == 8
    else:
        with pytest.raises(SystemExit) as left:
            trainer.train()
        assert left.value.code == 1 and disk.tries == 4 + checkpoints.LAST_TRIES and saved_steps(config) == [0]
    assert steps == list(range(9)) and not list(trainer.base_dir.glob("*.unfinished"))
    said = capsys.readouterr().out
    assert said.count("Warning: the checkpoint of step 2 cannot be written") == said.count("Warning:") == 1
    errors = [line for line in said.splitlines() if line.startswith("Error:")]
    assert len(errors) == (ends == "in vain")
    for error in errors:
        assert_clear(error, ("No space left on device", "step-000000000.ckpt", "--load-dir", "once there is room"))


@pytest.mark.parametrize("returns", [True, False])
def test_a_folder_that_is_gone_for_a_while_costs_nothing(scene, tmp_path, monkeypatch, fresh_writers, capsys, returns):
    """As a network's may be; a file stands in its place."""
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    config = tiny_config(scene, tmp_path, steps=7, steps_per_save=2)
    trainer, folder = start(config), config.get_checkpoint_dir()

    def go_and_return(step: int) -> None:
        if step == 1:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.write_text("")
        elif step == 5 and returns:
            trainer.checkpoints.wait()
            folder.unlink()

    steps = before_steps(trainer, go_and_return)
    with nullcontext() if returns else pytest.raises(SystemExit) as left:
        trainer.train()
    said = capsys.readouterr().out
    assert steps == list(range(7)) and said.count("Warning: the checkpoint of step 2 cannot be written") == 1
    if returns:
        assert saved_steps(config) == [6]
    else:
        (error,) = [line for line in said.splitlines() if line.startswith("Error:")]
        assert left.value.code == 1 and "exists in" in error and "No checkpoint had been written yet" in error


def test_a_disk_with_room_for_fewer_gives_up_the_oldest(scene, tmp_path, monkeypatch, fresh_writers, capsys):
    config = tiny_config(scene, tmp_path)
    trainer, whole = start(config), checkpoints.write_whole
    trainer.save_checkpoint(1), trainer.save_checkpoint(2)

    def write(state: Any, path: Path, unfinished: Path) -> None:
        if len(saved_steps(config)) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(state, path, unfinished)

    monkeypatch.setattr(checkpoints, "write_whole", write)
    trainer.save_checkpoint(3)
    assert saved_steps(config) == [2, 3] and "Warning" not in capsys.readouterr().out


def test_a_training_that_goes_back_leaves_what_came_later(scene, tmp_path, fresh_writers):
    """Whoever looks for the last checkpoint would take it for this training's."""
    config = tiny_config(scene, tmp_path)
    trainer = start(config)
    trainer.config.save_only_latest_checkpoint = False
    for step in (1, 5, 9):
        trainer.save_checkpoint(step)
    trainer.config.save_only_latest_checkpoint = True
    trainer.save_checkpoint(6)
    assert saved_steps(config) == [5, 6]


def test_a_checkpoint_that_is_altered_anywhere_is_noticed(tmp_path):
    """A bit of any byte: in the file's lists, its values, or what tells where they lie; and the one in all of its bits
    that makes a folder of a tensor, of which torch reads nothing."""
    path = tmp_path / "step-1.ckpt"
    state = {**dict.fromkeys(checkpoints.PARTS, 0), "pipeline": {"table": torch.arange(40.0)}}
    torch.save(state, path)
    content, noticed = path.read_bytes(), 0
    entry = content.rindex(b"step-1/data/0") - 46
    for position, bit in [*((position, position % 8) for position in range(len(content))), (entry + 38, 4)]:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
        files._is_whole.cache_clear()
        try:
            found = checkpoints.load_checkpoint_file(path)
        except InputError:
            noticed += 1
            continue
        # What fills up between the parts, and their dates, bear on nothing.
        assert torch.equal(found.pop("pipeline")["table"], state["pipeline"]["table"])
        assert found == {part: 0 for part in checkpoints.PARTS if part != "pipeline"}
    assert noticed > 600


def test_a_file_that_would_fill_the_memory_is_not_read(tmp_path):
    path = tmp_path / "step-1.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 24))
    assert path.stat().st_size < 1 << 16 and not files.is_whole(path)


@pytest.mark.parametrize("fault", ["cut", "altered"])
def test_the_checkpoint_before_a_damaged_one_is_used(scene, tmp_path, fresh_writers, capsys, fault):
    config = tiny_config(scene, tmp_path, steps=5, steps_per_save=2)
    start(config).train()
    last, content = checkpoint(config, 4), bytearray(checkpoint(config, 4).read_bytes())
    assert saved_steps(config) == [2, 4]
    content[len(content) // 2] ^= 1
    last.write_bytes(content[: -1000 if fault == "cut" else None])
    capsys.readouterr()
    _, _, path, step = eval_setup(config.get_base_dir() / "config.yml")
    assert (path, step) == (checkpoint(config, 2), 2)
    again = tiny_config(scene, tmp_path, steps=6, load_dir=config.get_checkpoint_dir())
    _, losses = train(again)
    assert sorted(losses) == [3, 4, 5] and saved_steps(config) == [2, 5]
    said = "".join(capsys.readouterr().out.split())
    assert said.count(f"{last}iscutshortoraltered:theonebeforeitisused.") == 1
    for path in config.get_checkpoint_dir().iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="every checkpoint in"):
        checkpoints.source_of(again)


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
