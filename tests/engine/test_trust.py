"""Files cannot run code: checkpoints, config.yml, and what a scene names."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from _scenes import assert_clear, checkpoint, read_meta, said_when_started, tiny_config, train, write_meta, write_scene
from PIL import Image, PngImagePlugin

from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.utils.eval_utils import eval_setup

from zipnerf_ns.engine.safety.configs import check_config_file
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.programs import load_run

pytestmark = pytest.mark.usefixtures("fresh_writers")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("trust")
    config = tiny_config(write_scene(folder / "scene"), folder / "out", steps=2)
    train(config)
    return config


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return shutil.copytree(trained.get_base_dir(), tmp_path / "run")


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("where", ["resume", "evaluation", "ours"])
def test_a_checkpoint_runs_nothing(trained, run, tmp_path, capsys, how, where):
    path, made = run / "nerfstudio_models" / checkpoint(trained, 1).name, tmp_path / "made"
    state = {**torch.load(path, weights_only=True), "scalers": Payload(made)}
    if how == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps({"pipeline": Payload(made)}))
    if where == "resume":
        config = tiny_config(trained.data or trained.pipeline.datamanager.data, tmp_path / "new", steps=3)
        config.load_checkpoint = path
        assert_clear(said_when_started(config), (str(path), "cannot be read", "not a checkpoint"))
    else:
        with pytest.raises(SystemExit):
            eval_setup(run / "config.yml") if where == "evaluation" else load_run(run / "config.yml")
        said = "".join(capsys.readouterr().out.split())
        assert "iscutshort" in said and "Error:" in said
    assert not made.exists()


def test_configurations_of_every_method_are_known(tmp_path):
    path = tmp_path / "config.yml"
    changed = copy.deepcopy(all_methods["zipnerf"])
    changed.pipeline.datamanager.dataparser = ColmapDataParserConfig()
    changed.optimizers["networks"]["optimizer"] = AdamOptimizerConfig(lr=0.1)
    ours = [config for name, config in all_methods.items() if name.startswith("zipnerf")]
    assert len(ours) >= 5
    for config in (*ours, changed):
        path.write_text(yaml.dump(config))
        check_config_file(path)
    # As written on another system.
    path.write_text(path.read_text().replace("pathlib.PosixPath", "pathlib.WindowsPath"))
    check_config_file(path)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [MADE]",
        "!!python/object/new:os.mkdir [MADE]",
        "!!python/object/apply:subprocess.run {args: [mkdir, MADE]}",
        "!!python/name:os.mkdir ''",
        "!!python/name:nerfstudio.utils.scripts.run_command ''",
        "!!python/name:nerfstudio.utils.scripts.subprocess ''",
        "!!python/name:pathlib.os ''",
        "!!python/module:antigravity ''",
        "!!python/object:subprocess.Popen {}",
        "!!python/object:nerfstudio.engine.trainer.Trainer {}",
        "!!python/object/apply:nerfstudio.engine.trainer.TrainerConfig []",
        "!!python/object/apply:zipnerf_ns.tools.colmap.main []",
        "!!python/object:zipnerf_ns.nowhere.Thing {}",
        "!!python/object:nerfstudio_evil.Thing {}",
        "!unknown {}",
    ],
)
def test_a_configuration_that_asks_for_more_is_refused(run, tmp_path, value):
    config, made = run / "config.yml", tmp_path / "made"
    text = config.read_text()
    config.write_text(text.replace("prompt: null", f"prompt: [{value.replace('MADE', str(made))}]"))
    assert config.read_text() != text
    with pytest.raises(InputError, match=r"config.yml, line \d+: .* is no part of a run's configuration"):
        load_run(config)
    assert not made.exists()


@pytest.mark.parametrize("content", [
    b"\xff\xfe\x00", b"a: [", b"[" * 100_000, b"a: &a [*b]", b"", b"1", b"a: 1",
    b"!!python/object:nerfstudio.cameras.camera_optimizers.CameraOptimizerConfig {}",
])
def test_what_is_no_configuration_is_refused(run, content):
    (run / "config.yml").write_bytes(content)
    with pytest.raises(InputError, match="is not the config.yml of a run"):
        load_run(run / "config.yml")


def test_a_viewer_is_this_machines_own():
    ours = [config for name, config in all_methods.items() if name.startswith("zipnerf")]
    assert {config.viewer.websocket_host for config in ours} == {"127.0.0.1"}


def refused(scene: Path, tmp_path: Path) -> str:
    return said_when_started(tiny_config(scene, tmp_path / "out"))


def test_a_picture_that_is_larger_than_the_memory_is_refused_by_its_header(tmp_path):
    """A few bytes that claim ten gigapixels, with a camera that agrees."""
    scene = write_scene(tmp_path / "scene")
    meta = read_meta(scene)
    bomb = scene / meta["frames"][0]["file_path"]
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    content = bomb.read_bytes()
    checksum = PngImagePlugin.zlib.crc32(header).to_bytes(4, "big")
    bomb.write_bytes(content[:12] + header + checksum + content[33:])
    assert Image.open(bomb).size == (100_000, 100_000)
    assert_clear(refused(scene, tmp_path), (str(bomb), "100000x100000 pixels", "its camera"))
    for frame in meta["frames"]:
        (scene / frame["file_path"]).write_bytes(bomb.read_bytes())
        frame.update(w=100_000, h=100_000, fl_x=1e5, fl_y=1e5, cx=5e4, cy=5e4)
    write_meta(scene, meta)
    assert_clear(refused(scene, tmp_path), ("GiB",))


def test_text_in_a_picture_that_unpacks_to_gigabytes_is_refused(tmp_path):
    scene = write_scene(tmp_path / "scene")
    bomb = scene / read_meta(scene)["frames"][0]["file_path"]
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.open(bomb).save(bomb, pnginfo=text)
    assert bomb.stat().st_size < 10_000
    assert_clear(refused(scene, tmp_path), (str(bomb), "Replace it"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are Unix's")
@pytest.mark.parametrize("place", ["/dev/zero", "pipe"])
def test_what_is_no_plain_file_is_not_opened(tmp_path, place):
    scene = write_scene(tmp_path / "scene")
    if place == "pipe":
        os.mkfifo(scene / "pipe")
    meta = read_meta(scene)
    meta["frames"][1]["file_path"] = place
    write_meta(scene, meta)
    assert_clear(refused(scene, tmp_path), (place, "is missing"))


def test_pictures_outside_of_the_scene_are_said(tmp_path, capsys):
    scene = write_scene(tmp_path / "scene")
    meta = read_meta(scene)
    name = meta["frames"][1]["file_path"]
    shutil.move(scene / name, tmp_path / "elsewhere.png")
    (scene / "transforms.json").write_text(json.dumps(meta).replace(name, "../elsewhere.png"))
    train(tiny_config(scene, tmp_path / "out", steps=1))
    said = "".join(capsys.readouterr().out.split())
    assert said.count("1pictureslieoutsideof") == 1
