"""What is said when the device's memory does not suffice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import assert_clear, start, tiny_config, write_scene

from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.messages import out_of_memory
from zipnerf_ns.trainer import ZipNerfTrainer

pytestmark = pytest.mark.usefixtures("fresh_writers")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("messages") / "scene")


@pytest.mark.parametrize("when", ["set-up", "step"])
def test_out_of_memory_names_the_settings_to_lower(scene, tmp_path, monkeypatch, when):
    config = tiny_config(scene, tmp_path, steps=5)

    def fail(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with CONSOLE.capture() as said, pytest.raises(SystemExit) as ended:
        if when == "set-up":
            monkeypatch.setattr(ZipNerfTrainer, "setup_optimizers", fail)
            start(config)
        else:
            trainer = start(config)
            iterate = trainer.train_iteration
            trainer.train_iteration = lambda step: fail() if step == 3 else iterate(step)
            trainer.train()
    assert ended.value.code == 1
    (line,) = [line for line in said.get().splitlines() if line.startswith("Error:")]
    assert_clear(line, (
        "memory", "--pipeline.datamanager.train-num-rays-per-batch (now 64)",
        "--pipeline.model.grid.log2-hashmap-size (now 10)", "--pipeline.datamanager.images-on-gpu False (now True)",
    ))  # fmt: skip
    assert "zipnerf-lite" not in line, "that is the method that is being trained"


def test_out_of_memory_offers_only_what_is_left(scene, tmp_path):
    config = tiny_config(scene, tmp_path)
    config.method_name = "zipnerf-big"
    assert "train the smaller method zipnerf-lite (now zipnerf-big)." in str(out_of_memory(config))
    config.pipeline.datamanager.images_on_gpu = False
    assert "images-on-gpu" not in str(out_of_memory(config))
