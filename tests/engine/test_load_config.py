"""What ``ns-train`` makes of a run's configuration: its name, and what is said beside ``--load-config``."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from _scenes import assert_clear, said_when_started, tiny_config, train, write_scene

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.scripts import train as program

from zipnerf_ns.config import zipnerf_lite
from zipnerf_ns.engine.runs import RunConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.settings import ProposalConfig


@pytest.fixture
def launched(monkeypatch) -> list[RunConfig]:
    """What ``ns-train`` would have trained."""
    found: list[RunConfig] = []
    monkeypatch.setattr(program, "launch", lambda config, **others: found.append(config))
    return found


def test_settings_of_earlier_runs_are_read():
    """Under the names of the modules in which they were when their config.yml was written."""
    read = yaml.load("!!python/object:zipnerf_ns.zipnerf.ProposalConfig {num_samples: 7}", Loader=yaml.Loader)
    assert isinstance(read, ProposalConfig) and read.num_samples == 7


def command(**changes: Any) -> RunConfig:
    """What is made of ``ns-train zipnerf-lite`` with these options."""
    config = copy.deepcopy(zipnerf_lite.config)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def test_what_the_command_says_is_taken_and_named(tmp_path: Path, launched, capsys):
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path / "out", steps=2)
    train(config)
    saved = config.get_base_dir() / "config.yml"
    given = command(load_config=saved, data=tmp_path / "other", max_num_iterations=9, timestamp="again")
    given.pipeline.model.grid.log2_hashmap_size = 11
    given.pipeline.datamanager.dataparser.downscale_factor = 2
    capsys.readouterr()
    program.main(given)
    (found,) = launched
    assert found.pipeline.datamanager.data == tmp_path / "other" and found.max_num_iterations == 9
    assert found.get_base_dir() == tmp_path / "out/scene/zipnerf-lite/again" and found.load_config is None
    # The rest is the file's: one from before centers were chosen has none chosen now.
    assert found.pipeline.datamanager.dataparser == NerfstudioDataParserConfig(downscale_factor=2)
    assert found.pipeline.model.grid.log2_hashmap_size == 11 and found.pipeline.model.grid.num_levels == 4
    assert found.pipeline.datamanager.train_num_rays_per_batch == 64
    said = " ".join(capsys.readouterr().out.split())
    assert "(method zipnerf-lite); besides, the command's --" in said
    for option in ("--data", "--max-num-iterations", "--timestamp", "--pipeline.model.grid.log2-hashmap-size"):
        assert option in said
    assert "--load-config," not in said and "--machine" not in said


def test_a_command_that_says_nothing_changes_nothing(tmp_path: Path, launched, capsys):
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path / "out")
    config.save_config()
    program.main(command(load_config=config.get_base_dir() / "config.yml"))
    assert launched == [config]
    assert "all of the command is as usual" in " ".join(capsys.readouterr().out.split())


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="--load-config .*gone.yml does not exist. Give the config.yml of a run."):
        dataclasses.replace(command(), load_config=tmp_path / "gone.yml")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    said = said_when_started(tiny_config(write_scene(tmp_path / "scene"), tmp_path / "file/out"))
    assert_clear(said, (f"{tmp_path}/file/out/scene", "cannot be written (Not a directory)", "--output-dir"))


def test_an_experiment_is_named_like_its_folder(tmp_path):
    scene = write_scene(tmp_path / "scene.v2")
    for data in (scene, scene / "transforms.json", Path(os.path.relpath(scene))):
        config = tiny_config(data, tmp_path, experiment_name=None)
        assert config.get_base_dir() == tmp_path / "scene.v2/zipnerf-lite/run"
