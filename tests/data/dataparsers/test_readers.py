"""NeRF-synthetic scenes and instant-ngp's files: what they say is honoured in numbers."""

from __future__ import annotations

import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from _scenes import (
    assert_clear,
    make_datamanager,
    pose,
    read_meta,
    write_blender_scene,
    write_meta,
)
from _statements import (
    ANGLE,
    COUNT,
    NINE,
    TRUTH,
    Change,
    assert_true_cameras,
    changed,
    frames,
    renamed,
    top,
)
from PIL import Image

from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.errors import InputError

BLENDER_FOCAL = 8 / math.tan(0.35)
BLENDER: dict[str, tuple[Change, dict[str, Any]]] = {
    "as published": (lambda meta, folder: None, {}),
    "extension": (renamed(lambda name: f"{name}.png"), {}),
    "shift": (top(cx=10.0, cy=6.0, w=16, h=16, fl_x=BLENDER_FOCAL), {"cx": 10.0, "cy": 6.0}),
    "focal length": (top(("camera_angle_x",), fl_x=20.0, fl_y=21.0), {"fx": 20.0, "fy": 21.0}),
    "lens": (top(k1=0.1), {"distortion": [0.1, 0, 0, 0, 0, 0]}),
    "fisheye": (
        top(("camera_angle_x",), fl_x=20.0, is_fisheye=True), {"fx": 20.0, "fy": 20.0, "type": CameraType.FISHEYE}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLENDER)
@pytest.mark.parametrize("held_out", ["val", "test", "both"])
def test_blender_scenes(tmp_path, name, held_out):
    change, expected = BLENDER[name]
    scene = write_blender_scene(tmp_path / "scene")
    for split in ("train", "val", "test"):
        meta = read_meta(scene, f"transforms_{split}.json")
        change(meta, scene)
        write_meta(scene, meta, f"transforms_{split}.json")
        if held_out not in (split, "both") and split != "train":
            (scene / f"transforms_{split}.json").unlink()
            shutil.rmtree(scene / split)
    truth = {"fx": BLENDER_FOCAL, "fy": BLENDER_FOCAL, "cx": 8.0, "cy": 8.0, "width": 16, "height": 16, **expected}
    for split in ("val", "test"):
        manager = make_datamanager(scene, BlenderDataParserConfig(), test_mode=split)
        folder = split if held_out == "both" else held_out
        assert manager.eval_dataset.image_filenames == [scene / folder / f"r_{index}.png" for index in range(6)]
        for dataset in (manager.train_dataset, manager.eval_dataset):
            for key in TRUTH:
                values = getattr(dataset.cameras, key).float()
                torch.testing.assert_close(values, torch.full((6, 1), float(truth[key])), rtol=1e-6, atol=0.0)
            assert dataset.cameras.camera_type.unique().item() == truth.get("type", CameraType.PERSPECTIVE).value
            if "distortion" in truth:
                assert dataset.cameras.distortion_params.tolist() == torch.tensor([truth["distortion"]] * 6).tolist()
            expected_poses = torch.tensor([pose(index, 6, 4.0) for index in range(6)])[:, :3].float()
            torch.testing.assert_close(dataset.cameras.camera_to_worlds, expected_poses)


def test_blender_scenes_of_jpegs(tmp_path):
    scene = write_blender_scene(tmp_path / "scene")
    for path in scene.glob("*/*.png"):
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
        path.unlink()
    for ending in (".jpg", ""):
        for split in ("train", "val", "test"):
            meta = read_meta(scene, f"transforms_{split}.json")
            renamed(lambda name, ending=ending: name.removesuffix(".jpg") + ending)(meta, scene)
            write_meta(scene, meta, f"transforms_{split}.json")
        manager = make_datamanager(scene, BlenderDataParserConfig())
        assert manager.train_dataset.image_filenames[2] == scene / "train/r_2.jpg"


def test_blender_scenes_that_hold_nothing_out(tmp_path):
    scene = write_blender_scene(tmp_path / "scene")
    (scene / "transforms_val.json").unlink()
    (scene / "transforms_test.json").unlink()
    with pytest.raises(InputError, match="neither transforms_val.json nor transforms_test.json.*held out"):
        make_datamanager(scene, BlenderDataParserConfig())


def test_an_image_of_two_files_is_told(tmp_path):
    scene = write_blender_scene(tmp_path / "scene")
    meta = read_meta(scene, "transforms_test.json")
    meta["frames"][1]["file_path"] = "train/r_3.png"
    write_meta(scene, meta, "transforms_test.json")
    with CONSOLE.capture() as said:
        make_datamanager(scene, BlenderDataParserConfig())
    assert "transforms_test.json: train/r_3.png is held out and trained on" in said.get()


@pytest.mark.parametrize("parser", [InstantNGPDataParserConfig(), BlenderDataParserConfig(scale_factor=0.5)])
def test_the_way_back_to_the_data_s_frame(tmp_path, parser):
    """What was applied to the data before is undone in exports, for formats whose own parsers drop it."""
    applied = [[0.0, 1.0, 0.0, 5.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]]
    scene = changed(tmp_path / "scene", top(applied_transform=applied, applied_scale=2.0))
    for split in ("train", "test"):
        shutil.copy(scene / "transforms.json", scene / f"transforms_{split}.json")
    outputs = make_datamanager(scene, parser).train_dataparser_outputs
    found = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")
    there = np.linalg.inv(np.array([*applied, [0.0, 0.0, 0.0, 1.0]]))
    for index in range(len(found)):
        given = np.array(pose(int(outputs.image_filenames[index].stem), COUNT))
        given[:3, 3] /= 2.0
        np.testing.assert_allclose(found[index], (there @ given)[:3], atol=1e-5)


INSTANT_NGP: dict[str, tuple[Change, dict[str, Any]]] = {
    "one held out": (top(("fl_x", "fl_y"), camera_angle_x=ANGLE), {}),
    "fl_y": (top(fl_y=30.0, cx=11.0), {"fy": 30.0, "cx": 11.0}),
    "frames": (frames(fl_x=40.0), {"fx": 40.0, "fy": 40.0}),
    "fisheye": (top(("camera_model",), is_fisheye=True, k2=0.1),
                {"type": CameraType.FISHEYE, "distortion": [0, 0.1, 0, 0, 0, 0]}),
    "no extension": (renamed(lambda name: name[:-4]), {}),
    "lists": (top(train_filenames=NINE), {"held_out": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", INSTANT_NGP)
def test_instant_ngp(tmp_path, name):
    change, expected = INSTANT_NGP[name]
    scene = changed(tmp_path / "scene", lambda meta, folder: (change(meta, folder), meta.update(aabb_scale=4)))
    manager = make_datamanager(scene, InstantNGPDataParserConfig())
    assert_true_cameras(manager, {**TRUTH, **expected}, scale=InstantNGPDataParserConfig.scene_scale)
    assert len(manager.eval_dataset) == expected.get("held_out", 1)
    assert manager.train_dataparser_outputs.scene_box.aabb.tolist() == [[-2.0] * 3, [2.0] * 3]
    assert len(make_datamanager(scene, InstantNGPDataParserConfig(eval_mode="interval")).eval_dataset) in (2, 3)


def test_what_another_parser_raises_is_one_line(tmp_path):
    """Parsers that have no reader here, too."""
    from nerfstudio.data.dataparsers.scannet_dataparser import ScanNetDataParserConfig

    (tmp_path / "scene").mkdir()
    with pytest.raises(InputError) as caught:
        make_datamanager(tmp_path / "scene", ScanNetDataParserConfig())
    assert_clear(str(caught.value), (str(tmp_path / "scene"), "cannot be read", "ScanNetDataParserConfig"))


