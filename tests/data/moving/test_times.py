"""Photos' times reach the rays from every format; what cannot be a time ends in one line where it is needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _cameras import make_cameras
from _scenes import (
    assert_clear,
    make_datamanager,
    named_pixels,
    read_meta,
    write_blender_scene,
    write_meta,
    write_scene,
)
from PIL import Image

from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.dnerf_dataparser import DNeRFDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns import errors
from zipnerf_ns.data.datamanager import SCENE_HINTS
from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig
from zipnerf_ns.data.moving.times import cameras_at_once
from zipnerf_ns.data.trained import TrainedData
from zipnerf_ns.errors import InputError

COUNT = 8
TRAINED = [0, 1, 2, 4, 5, 6]


@pytest.fixture(autouse=True)
def said_anew():
    """What is said once is said again in each test."""
    errors.say_once.cache_clear()


def timed(folder: Path, key: str, values: list[Any], name: str = "transforms.json") -> Path:
    """The scene with an entry in each frame but where the value is None."""
    meta = read_meta(folder, name)
    for frame, value in zip(meta["frames"], values, strict=True):
        frame |= {} if value is None else {key: value}
    # In no order: a time belongs to its frame.
    meta["frames"].reverse()
    write_meta(folder, meta, name)
    return folder


def found(folder: Path, parser: DataParserConfig | None = None) -> list[float]:
    """Times of the images by their numbers, from the rays that are drawn of them and the cameras that are held out."""
    manager = make_datamanager(folder, parser, uses_time=True)
    times: dict[int, float] = {}
    for step in range(6):
        bundle, batch = manager.next_train(step)
        assert bundle.times.shape == (64, 1)
        images = (255 * batch["image"][:, 0]).round().int().tolist()
        times |= dict(zip(images, bundle.times[:, 0].tolist(), strict=True))
    for camera, batch in manager.fixed_indices_eval_dataloader:
        assert camera.times.shape == (1, 1)
        times[round(255 * float(batch["image"][0, 0, 0]))] = float(camera.times)
    return [times[number] for number in sorted(times)]


TAKEN = [0.0, 0.5, 0.25, 0.9, 0.25, 0.75, 1.0, 0.1]
SAID = {
    "time": ("time", TAKEN),
    "frames": ("timestamp", [round(100 * time) for time in TAKEN]),
    "nanoseconds": ("timestamp", [1_700_000_000_000_000_000 + round(1e12 * time) for time in TAKEN]),
    "words": ("timestamp", [f"{-3 + 2 * time}" for time in TAKEN]),
}


@pytest.mark.parametrize("said", SAID)
def test_each_photos_time_reaches_its_rays(tmp_path, said):
    scene = timed(write_scene(tmp_path / "scene", COUNT), *SAID[said])
    assert found(scene) == pytest.approx(TAKEN, abs=1e-6)
    manager = make_datamanager(scene, uses_time=True)
    assert manager.includes_time
    # 0, 0.25, 0.25, 0.5, 0.75, 1 are trained on.
    assert manager.train_dataset.metadata[SCENE_HINTS].time_step == pytest.approx(0.25)


def test_reduced_photos_have_their_originals_times(tmp_path):
    scene = timed(write_scene(tmp_path / "scene", COUNT, sizes=[(48, 32)] * COUNT), "time", TAKEN)
    (scene / "images_2").mkdir()
    for index in range(COUNT):
        Image.fromarray(named_pixels(index)).save(scene / f"images_2/{index:03d}.png")
    assert found(scene, NerfstudioDataParserConfig(downscale_factor=2)) == pytest.approx(TAKEN)
    assert found(scene, MultiscaleDataParserConfig(scales=(1, 2))) == pytest.approx(TAKEN)


@pytest.mark.parametrize("parser", [BlenderDataParserConfig(), DNeRFDataParserConfig()], ids=["blender", "dnerf"])
def test_files_by_split_have_times(tmp_path, parser):
    scene = write_blender_scene(tmp_path / "scene", 3)
    for split, times in (("train", [0.0, 0.5, 1.0]), ("val", [0.3] * 3), ("test", [0.2] * 3)):
        timed(scene, "time", times, f"transforms_{split}.json")
    manager = make_datamanager(scene, parser, uses_time=True)
    assert manager.train_dataset.cameras.times[:, 0].tolist() == [1.0, 0.5, 0.0]
    assert manager.eval_dataset.cameras.times[:, 0].tolist() == pytest.approx([0.3] * 3)
    hints = manager.train_dataset.metadata[SCENE_HINTS]
    assert (hints.bounded, hints.background, hints.time_step) == (True, "white", 0.5)


def test_instant_ngps_files_have_times(tmp_path):
    scene = timed(write_scene(tmp_path / "scene", COUNT, fl_x=26.0), "time", TAKEN)
    assert found(scene, InstantNGPDataParserConfig()) == pytest.approx(TAKEN)


FAULTS: dict[str, tuple[str, list[Any], tuple[str, ...]]] = {
    "missing": ("time", [0.0, None, 0.5, *[1.0] * 4, None], ("'time' is missing", "images/007.png", "images/001.png")),
    "late": ("time", [0.0, 3.5, *[1.0] * 6], ("frame 6", "images/001.png", "3.5", "'timestamp'")),
    "early": ("time", [-0.1, *[1.0] * 7], ("frame 7", "-0.1", "from 0 to 1")),
    "no number": ("time", [math.nan, *[1.0] * 7], ("frame 7", "nan", "finite")),
    "text": ("timestamp", ["noon", *[1.0] * 7], ("frame 7", "'timestamp'", "noon", "a number")),
    "infinite": ("timestamp", [math.inf, *[1.0] * 7], ("frame 7", "'timestamp'", "inf")),
    "list": ("timestamp", [[1.0], *[1.0] * 7], ("frame 7", "'timestamp'", "number")),
    "equal": ("time", [0.5] * COUNT, ("at one time (0.5)", "'time'")),
    "one moment": ("timestamp", [7] * COUNT, ("at one time (0)", "'timestamp'")),
    "none": ("time", [None] * COUNT, ("does not say when photos were taken", "'time'", "zipnerf")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_can_be_no_time_is_refused_in_one_line_where_it_is_needed(tmp_path, capsys, name):
    key, values, expected = FAULTS[name]
    scene = timed(write_scene(tmp_path / "scene", COUNT), key, values)
    with pytest.raises(InputError) as refused:
        make_datamanager(scene, uses_time=True)
    assert_clear(str(refused.value), (str(scene), *expected))
    # Who knows no time trains as before.
    manager = make_datamanager(scene)
    assert not manager.includes_time and manager.train_dataset.metadata[SCENE_HINTS].time_step is None
    assert "zipnerf-dynamic" not in capsys.readouterr().out


def test_held_out_photos_need_times_too(tmp_path):
    scene = write_blender_scene(tmp_path / "scene", 3)
    timed(scene, "time", [0.0, 0.5, 1.0], "transforms_train.json")
    with pytest.raises(InputError, match="does not say when photos were taken"):
        make_datamanager(scene, DNeRFDataParserConfig(), uses_time=True)


def test_timestamps_of_several_files_are_not_comparable(tmp_path):
    scene = timed(write_blender_scene(tmp_path / "scene", 3), "timestamp", [0, 1, 2], "transforms_train.json")
    with pytest.raises(InputError, match="transforms_train.json: 'timestamp' of one file alone"):
        make_datamanager(scene, DNeRFDataParserConfig(), uses_time=True)


def test_a_method_without_time_says_once_that_it_ignores_it(tmp_path, capsys):
    scene = timed(write_scene(tmp_path / "scene", COUNT), "time", TAKEN)
    for _ in range(2):
        assert not make_datamanager(scene).includes_time
    assert capsys.readouterr().out.count("zipnerf-dynamic") == 1


@pytest.mark.parametrize("places,times,expected", [
    ((0, 1, 2, 3), (0.0, 0.2, 0.7, 1.0), 1),
    # One camera, each of whose photos there is in two sizes.
    ((0, 0, 1, 1), (0.0, 0.0, 1.0, 1.0), 1),
    ((0, 1, 0, 1), (0.0, 0.0, 1.0, 1.0), 2),
    ((0, 1, 2, 0, 1), (0.0, 0.0, 0.0, 1.0, 1.0), 2),
    ((0, 1), None, 1),
])  # fmt: skip
def test_cameras_that_see_a_moment_are_counted(places, times, expected):
    cameras = make_cameras([CameraType.PERSPECTIVE.value] * len(places))
    cameras.camera_to_worlds[:, 0, 3] = torch.tensor(places, dtype=torch.float32)
    cameras.camera_to_worlds[:, 1:, 3] = 0.0
    cameras.times = None if times is None else torch.tensor(times)[:, None]
    assert cameras_at_once(cameras) == expected


def test_a_checkpoint_keeps_times_and_older_ones_have_none(tmp_path):
    manager = make_datamanager(timed(write_scene(tmp_path / "scene", COUNT), "time", TAKEN), uses_time=True)
    state = manager.describe().state()
    kept = TrainedData.from_state(state)
    assert kept.train.cameras.times[:, 0].tolist() == pytest.approx([TAKEN[index] for index in TRAINED])
    assert kept.hints.time_step == pytest.approx(0.25) and kept.hints.cameras_at_once == 1
    del state["train"]["times"], state["hints"]["time_step"]
    old = TrainedData.from_state(state)
    assert old.train.cameras.times is None and old.hints.time_step is None
    torch.testing.assert_close(old.held_out.cameras.times, kept.held_out.cameras.times)
