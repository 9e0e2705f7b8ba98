"""Scenes in the format of Nerfies and DyCheck: cameras, moments and splits are the files'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _scenes import HEIGHT, WIDTH, assert_clear, make_datamanager, named_pixels, pose
from PIL import Image

from nerfstudio.cameras.camera_utils import radial_and_tangential_undistort
from nerfstudio.data.dataparsers.dycheck_dataparser import DycheckDataParserConfig

from zipnerf_ns.cameras.rays import PixelRays
from zipnerf_ns.data.datamanager import SCENE_HINTS
from zipnerf_ns.errors import InputError

COUNT = 8
CENTER = [0.3, -0.2, 0.5]
UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


def write(path: Path, content: Any) -> None:
    """A JSON file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_dycheck(folder: Path, has_splits: bool = True, **camera: Any) -> Path:
    """A scene whose second camera, of every fourth photo, is held out; ``camera`` are changes of each camera."""
    names = [f"{index % 4 == 3:d}_{index:05d}" for index in range(COUNT)]
    moments = {name: {"warp_id": 3 * index, "camera_id": index % 4 == 3} for index, name in enumerate(names)}
    trained, held_out = [names[index] for index in (0, 1, 2, 4, 5, 6)], [names[3], names[7]]
    for index, name in enumerate(names):
        matrix = np.array(pose(index, COUNT))
        whole = {
            "orientation": (matrix[:3, :3] * [1, -1, -1]).T.tolist(), "position": matrix[:3, 3].tolist(),
            "focal_length": 30.0, "pixel_aspect_ratio": 1.1, "principal_point": [13.0, 7.0], "skew": 0.0,
            "radial_distortion": [0.1, -0.02, 0.01], "tangential_distortion": [0.002, -0.001],
            "image_size": [WIDTH, HEIGHT],
        }  # fmt: skip
        write(folder / f"camera/{name}.json", whole | camera)
        (folder / "rgb/1x").mkdir(parents=True, exist_ok=True)
        Image.fromarray(named_pixels(index)).save(folder / f"rgb/1x/{name}.png")
    write(folder / "scene.json", {"center": CENTER, "scale": 0.1, "near": 0.1, "far": 0.9})
    write(folder / "metadata.json", moments)
    write(folder / "dataset.json", {"ids": names, "train_ids": trained, "val_ids": held_out})
    if has_splits:
        write(folder / "splits/train.json", {"frame_names": trained, "time_ids": []})
        write(folder / "splits/val.json", {"frame_names": held_out, "time_ids": []})
    return folder


@pytest.mark.parametrize("has_splits", [True, False], ids=["dycheck", "nerfies"])
def test_cameras_are_the_files(tmp_path, has_splits):
    scene = write_dycheck(tmp_path / "scene", has_splits)
    manager = make_datamanager(scene, DycheckDataParserConfig(), uses_time=True)
    reach = 0.0
    for dataset, numbers in ((manager.train_dataset, [0, 1, 2, 4, 5, 6]), (manager.eval_dataset, [3, 7])):
        cameras, outputs = dataset.cameras, dataset._dataparser_outputs
        assert cameras.times[:, 0].tolist() == pytest.approx([number / 7 for number in numbers])
        torch.testing.assert_close(cameras.fx, torch.full((len(numbers), 1), 30.0))
        torch.testing.assert_close(cameras.fy, torch.full((len(numbers), 1), 33.0))
        torch.testing.assert_close(cameras.distortion_params[0], torch.tensor([0.1, -0.02, 0.01, 0, 0.002, -0.001]))
        for index, number in enumerate(numbers):
            assert int(dataset.get_numpy_image(index)[0, 0, 0]) == number
            truth = np.array(pose(number, COUNT))
            found = cameras.camera_to_worlds[index].double().numpy()
            np.testing.assert_allclose(found[:, :3], UP @ truth[:3, :3], atol=1e-6)
            position = outputs.dataparser_scale * (UP @ (truth[:3, 3] - CENTER))
            np.testing.assert_allclose(found[:, 3], position, atol=1e-6)
        back = outputs.transform_poses_to_original_space(cameras.camera_to_worlds, "opengl")
        np.testing.assert_allclose(back[0, :, 3], np.array(pose(numbers[0], COUNT))[:3, 3], atol=1e-5)
        reach = max(reach, float(cameras.camera_to_worlds[:, :, 3].abs().max()) if len(numbers) == 6 else 0.0)
    assert reach == pytest.approx(1.0)
    assert manager.train_dataset.metadata[SCENE_HINTS].time_step == pytest.approx(1 / 7)


def test_rays_follow_the_lens(tmp_path):
    manager = make_datamanager(write_dycheck(tmp_path / "scene"), DycheckDataParserConfig(), uses_time=True)
    cameras = manager.train_dataset.cameras
    ray = PixelRays(cameras, "cpu")(torch.tensor([[2, 3, 20]])).directions[0]
    lens = torch.tensor([[0.1, -0.02, 0.01, 0.0, 0.002, -0.001]])
    x, y = radial_and_tangential_undistort(torch.tensor([[(20.5 - 13) / 30, (3.5 - 7) / 33]]), lens)[0]
    expected = cameras.camera_to_worlds[2, :, :3] @ torch.tensor([x, -y, -1.0])
    torch.testing.assert_close(ray, expected / expected.norm())


BROKEN = {
    "camera": ("camera/0_00001.json", None, ("0_00001.json is missing", "fetch")),
    "photo": ("rgb/1x/0_00002.png", None, ("0_00002.png", "missing")),
    "held out": ("rgb/1x/1_00003.png", None, ("1_00003.png", "missing")),
    "no JSON": ("scene.json", "{", ("scene.json is not valid JSON", "again")),
    "a list": ("dataset.json", "[]", ("dataset.json is not a JSON object",)),
    "no moments": ("metadata.json", "{}", ("DyCheck", "KeyError", "metadata.json")),
    "no numbers": ("camera/0_00000.json", '{"focal_length": 9, "image_size": [24, 16], "orientation": ["x"]}', (
        "DyCheck", "ValueError", "camera/"
    )),
    "no orientation": ("camera/0_00000.json", "{}", ("DyCheck", "KeyError", "focal_length")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_missing_or_broken_is_named(tmp_path, name):
    file, content, expected = BROKEN[name]
    scene = write_dycheck(tmp_path / "scene")
    (scene / file).unlink() if content is None else (scene / file).write_text(content)
    with pytest.raises(InputError) as refused:
        make_datamanager(scene, DycheckDataParserConfig(), uses_time=True)
    assert_clear(str(refused.value), (str(scene), *expected))


@pytest.mark.parametrize(("change", "expected"), [
    ({"principal_point": [float("nan"), 7.0]}, "0_00000.png: principal point cx is nan"),
    ({"focal_length": 10**400}, "OverflowError"),
    ({"radial_distortion": [0.1, float("inf"), 0.0]}, "no lens distorts as is said of"),
])
def test_numbers_that_no_lens_has_are_refused(tmp_path, change, expected):
    scene = write_dycheck(tmp_path / "scene")
    file = scene / "camera/0_00000.json"
    write(file, {**json.loads(file.read_text()), **change})
    with pytest.raises(InputError, match=expected):
        make_datamanager(scene, DycheckDataParserConfig(), uses_time=True)


def test_a_skewed_lens_is_refused(tmp_path):
    scene = write_dycheck(tmp_path / "scene", skew=0.5)
    with pytest.raises(InputError, match="0_00000.json: 'skew' is 0.5"):
        make_datamanager(scene, DycheckDataParserConfig())
