"""Pictures reach TensorBoard's file with Nerfstudio's tags and pixels, beside the training."""

from __future__ import annotations

import errno
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _scenes import checkpoint, load, start, tiny_config, write_scene
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zipnerf_ns.engine import progress
from zipnerf_ns.engine.progress import take_pictures

writer = progress.writer


def images_of(folder: Path) -> dict[str, list[Any]]:
    """Tags with steps and pixels of all pictures in a folder's event file."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()

    def pixels(event: Any) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))

    return {tag: [(event.step, pixels(event)) for event in events.Images(tag)] for tag in events.Tags()["images"]}


def test_tensorboard_gets_what_nerfstudio_would_write(tmp_path, monkeypatch, fresh_writers):
    scene = write_scene(tmp_path / "scene", sizes=[(36, 32)] * 8)
    found = {}
    for name in ("ours", "theirs"):
        if name == "theirs":
            monkeypatch.setattr(progress, "take_pictures", lambda: [])
        config = tiny_config(scene, tmp_path, steps=5, timestamp=name, steps_per_eval_image=2)
        trainer = start(config)
        trainer.train()
        for event_writer in writer.EVENT_WRITERS:
            event_writer.tb_writer.close()
        writer.EVENT_WRITERS.clear()
        found[name] = images_of(config.get_base_dir())
    assert set(found["ours"]) == set(found["theirs"]) > {"Eval Images/img", "Eval Images/depth"}
    for tag, expected in found["theirs"].items():
        assert [step for step, _ in found["ours"][tag]] == [step for step, _ in expected] == [2, 4]
        for (_, first), (_, second) in zip(found["ours"][tag], expected, strict=True):
            assert np.array_equal(first, second), tag


def test_training_does_not_wait_for_pictures_but_its_end_does(tmp_path, monkeypatch, fresh_writers):
    scene = write_scene(tmp_path / "scene", sizes=[(36, 32)] * 8)
    config = tiny_config(scene, tmp_path, steps=5, steps_per_eval_image=2)
    trainer = start(config)
    may_end, written, steps = threading.Event(), [], []
    iterate = trainer.train_iteration

    def iteration(step: int) -> Any:
        if step == 4:
            assert written == []
            may_end.set()
        steps.append(step)
        return iterate(step)

    def write(pictures: list[Any]) -> None:
        assert may_end.wait(20.0)
        written.append({event["step"] for event in pictures})

    monkeypatch.setattr(progress, "write_pictures", write)
    trainer.train_iteration = iteration
    trainer.train()
    assert steps == list(range(5)) and written == [{2}, {4}]


def test_writers_that_want_events_in_order_get_them_in_order(monkeypatch):
    """Pictures are taken from TensorBoard's and the local writer's events only; scalars never."""
    picture = {"write_type": writer.EventType.IMAGE, "name": "a", "event": torch.rand(2, 2, 3), "step": 1}
    scalar = {"write_type": writer.EventType.SCALAR, "name": "b", "event": 1.0, "step": 1}
    second = {**picture, "name": "c"}

    class Other(writer.Writer):
        pass

    tensorboard = object.__new__(writer.TensorboardWriter)
    for others, taken in (([], ["a", "c"]), ([Other()], [])):
        monkeypatch.setattr(writer, "EVENT_WRITERS", [tensorboard, *others])
        monkeypatch.setattr(writer, "EVENT_STORAGE", [picture, scalar, second])
        assert [event["name"] for event in take_pictures()] == taken
        assert [event["name"] for event in writer.EVENT_STORAGE] == [n for n in "abc" if n not in taken]


def raise_full(record: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_takes_no_events_costs_the_curves_alone(tmp_path, monkeypatch, capsys, fresh_writers):
    """TensorBoard's thread dies of it, and whoever hands it the next event is told."""
    config = tiny_config(write_scene(tmp_path / "scene", sizes=[(36, 32)] * 8), tmp_path, steps=6)
    config.logging.steps_per_log, config.steps_per_eval_image = 1, 2
    trainer = start(config)
    (tensorboard,) = writer.EVENT_WRITERS
    file = tensorboard.tb_writer.file_writer.event_writer._async_writer._writer._writer

    iterate, steps = trainer.train_iteration, []

    def iteration(step: int) -> Any:
        if step == 1:
            monkeypatch.setattr(file, "write", raise_full)
        elif step == 3:
            tensorboard.tb_writer.file_writer.event_writer._async_writer._worker.join(20.0)
        steps.append(step)
        return iterate(step)

    trainer.train_iteration = iteration
    trainer.train()
    assert steps == list(range(6)) and load(checkpoint(config, 5))["step"] == 5
    assert capsys.readouterr().out.count("Warning: no more events are written") == 1


def test_the_last_events_that_a_disk_does_not_take_are_told_of(tmp_path, monkeypatch, fresh_writers):
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path, steps=1)
    start(config)
    said, (tensorboard,) = [], writer.EVENT_WRITERS
    log = progress.EventLog(said.append)
    file = tensorboard.tb_writer.file_writer.event_writer._async_writer._writer._writer
    monkeypatch.setattr(file, "write", raise_full)
    tensorboard.write_scalar("loss", 1.0, 0)
    log.finish()
    assert len(said) == 1 and "no more events are written" in said[0]
