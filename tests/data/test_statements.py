"""Whatever a scene's files say is honoured in numbers, or refused in one line that names file and field."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import (
    HEIGHT,
    WIDTH,
    assert_clear,
    folder_bytes,
    make_datamanager,
    read_meta,
    write_meta,
)
from _statements import (
    ANGLE,
    FOCAL,
    NINE,
    OWN_FRAME,
    TRUTH,
    Change,
    assert_true_cameras,
    changed,
    flat_reduced,
    frames,
    in_subfolders,
    names,
    renamed,
    repeated,
    top,
    write_plain,
)
from PIL import Image

from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.data.metadata import find_scales
from zipnerf_ns.errors import InputError

TWELVE = [0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.001, 0.0, 0.0, 0.0, 0.0, 0.0]
HONOURED: dict[str, tuple[Change, dict[str, Any]]] = {
    "frame over top": (frames(fl_x=40.0, fl_y=41.0, cx=11.0), {"fx": 40.0, "fy": 41.0, "cx": 11.0}),
    "frame in x alone": (frames(fl_x=40.0), {"fx": 40.0, "fy": 40.0}),
    "null in the frame": (frames(fl_x=None, w=None, k1=None), {}),
    "distortion of frames": (lambda meta, folder: (top(k1=0.1, k4=0.3)(meta, folder), frames(k1=0.2)(meta, folder)),
                             {"distortion": [0.2, 0, 0, 0.3, 0, 0]}),
    "k4 alone": (top(k4=0.3), {"distortion": [0, 0, 0, 0.3, 0, 0]}),
    "distortion twice": (top(k1=0.1, distortion_params=[0.1, 0, 0, 0, 0, 0]), {"distortion": [0.1, 0, 0, 0, 0, 0]}),
    "null distortion": (top(k1=None, k2=0.1, p1=None), {"distortion": [0, 0.1, 0, 0, 0, 0]}),
    "lens that says nothing": (top(k5=0, k6=0.0, rolling_shutter=[0, 0, 0, 0]), {}),
    "is_fisheye": (top(("camera_model",), is_fisheye=True, k1=0.05),
                   {"type": CameraType.FISHEYE, "distortion": [0.05, 0, 0, 0, 0, 0]}),
    "is_fisheye in frames": (lambda meta, folder: (meta.pop("camera_model"), frames(is_fisheye=1)(meta, folder)),
                             {"type": CameraType.FISHEYE}),
    "no fisheye": (top(is_fisheye=False), {}),
    "model in frames": (lambda meta, folder: (meta.pop("camera_model"),
                                              frames(camera_model="OPENCV_FISHEYE")(meta, folder)),
                        {"type": CameraType.FISHEYE}),
    "FISHEYE624": (top(camera_model="FISHEYE624", distortion_params=TWELVE),
                   {"type": CameraType.FISHEYE624, "distortion": TWELVE}),
    "no center": (top(("cx", "cy")), {}),
    "no cx": (top(("cx",), cy=7.0), {"cy": 7.0}),
    "no size": (top(("w", "h")), {}),
    "angle for focal length": (top(("fl_x", "fl_y"), camera_angle_x=ANGLE), {}),
    "angle alone": (top(("fl_x", "fl_y", "cx", "cy", "w", "h"), camera_angle_x=ANGLE, aabb_scale=4), {}),
    "two angles": (top(("fl_x", "fl_y"), camera_angle_x=ANGLE, camera_angle_y=0.5),
                   {"fy": HEIGHT / 2 / math.tan(0.25)}),
    "degrees": (top(("fl_x", "fl_y"), x_fov=math.degrees(ANGLE)), {}),
    "angle of frames": (lambda meta, folder: (top(camera_angle_x=ANGLE)(meta, folder),
                                              frames(camera_angle_x=0.5)(meta, folder)),
                        {"fx": WIDTH / 2 / math.tan(0.25), "fy": WIDTH / 2 / math.tan(0.25)}),
    "angle that agrees": (top(camera_angle_x=ANGLE), {}),
    "no fl_y": (top(("fl_y",)), {}),
    "numbers as words": (top(fl_x=f"{FOCAL}", w=f"{WIDTH}"), {}),
    "no extension": (renamed(lambda name: name[:-4]), {}),
    "backslash": (renamed(lambda name: name.replace("/", "\\")), {}),
    "backslash in lists": (lambda meta, folder: (
        renamed(lambda name: name.replace("/", "\\"))(meta, folder),
        top(train_filenames=[name.replace("/", "\\") for name in NINE])(meta, folder)),
                           {"train": NINE, "val": names(9, 10, 11), "test": names(9, 10, 11)}),
    "dot": (renamed(lambda name: f"./{name}"), {}),
    "poses 3x4": (lambda meta, folder: [frame["transform_matrix"].pop() for frame in meta["frames"]], {}),
    "applied 4x4": (top(applied_transform=[[0, 1, 0, 5], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]),
                    {"transform": [[0, 1, 0, 5], [1, 0, 0, 0], [0, 0, -1, 0]]}),
    "train alone": (top(train_filenames=NINE), {"train": NINE, "val": names(9, 10, 11), "test": names(9, 10, 11)}),
    "train and val": (top(train_filenames=NINE, val_filenames=names(9, 10)),
                      {"train": NINE, "val": names(9, 10), "test": names(9, 10)}),
    "train and test": (top(train_filenames=NINE, test_filenames=names(11)),
                       {"train": NINE, "val": names(11), "test": names(11)}),
    "val alone": (top(val_filenames=names(3)), {"train": names(0, 1, 2, *range(4, 12)), "val": names(3)}),
    "nothing held out": (top(train_filenames=NINE, val_filenames=[]), {"train": NINE, "val": names(9, 10, 11)}),
    "frames twice": (repeated(), {"train": names(*range(10), 11), "val": names(10)}),
    "equal names": (in_subfolders, {"fx": FOCAL / 2, "fy": FOCAL / 2, "cx": WIDTH / 4, "cy": HEIGHT / 4,
                                    "width": WIDTH // 2, "height": HEIGHT // 2, "factor": 2}),
}  # fmt: skip
TOLD: dict[str, tuple[str, ...]] = {
    "frames twice": ("images/000.png, images/001.png is there in several frames", "used once"),
    "train alone": ("'val_filenames' is missing", "train 9, val 3, test 3"),
    "train and val": ("'test_filenames' is missing", "images/011.png is in no list"),
}
"""What is said of some of them."""

REFUSED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "center of words": (top(cx="middle"), ("'cx' is middle", "number")),
    "NaN center": (top(cx=math.nan), ("'cx' is nan", "finite")),
    "infinite center of a frame": (lambda meta, folder: meta["frames"][3].update(cy=math.inf), ("frame 3", "'cy'")),
    "normalized center": (top(cx=0.5, cy=0.5), ("frame 0", "'cx' and 'cy' are 0.5 and 0.5", "24x16", "in pixels")),
    "far center": (top(cx=500), ("'cx' is 500", "far outside", "24 pixels")),
    "normalized focal length": (top(fl_x=1.1, fl_y=1.1), ("'fl_x' is 1.1 for 24 pixels", "in pixels")),
    "huge focal length": (top(fl_x=1e9), ("'fl_x' is 1e+09",)),
    "huge number": (top(fl_x=10**400), ("'fl_x'", "bits long", "positive")),
    "true for a number": (top(fl_y=True), ("'fl_y' is True", "positive")),
    "half a pixel": (top(w=24.5), ("'w' is 24.5", "whole number")),
    "degrees for radians": (top(("fl_x", "fl_y"), camera_angle_x=48.0), ("'camera_angle_x' is 48.0", "in radians")),
    "focal lengths that disagree": (
        top(camera_angle_x=0.5), ("'fl_x' 26.4 and 'camera_angle_x' 46.99", "contradict", "Remove")
    ),
    "angle of a fisheye": (
        top(("camera_model", "fl_x", "fl_y"), is_fisheye=True, camera_angle_x=1.0), ("'fl_x' is missing",)
    ),
    "fisheye or not": (top(is_fisheye=True), ("'is_fisheye' is True, but 'camera_model' is OPENCV", "Remove")),
    "fisheye of words": (top(is_fisheye="no"), ("'is_fisheye' is no", "true or false")),
    "model of numbers": (top(camera_model=[1]), ("'camera_model' is [1]", "must be one of")),
    "rational distortion": (top(k6=0.1), ("'k6' is 0.1", "Undistort")),
    "rolling shutter": (top(rolling_shutter=[0, 0, 0.5, 0]), ("'rolling_shutter'", "no ray follows")),
    "four coefficients": (top(distortion_params=[0, 0, 0, 0]), ("'distortion_params' has 4", "k1, k2, k3, k4, p1, p2")),
    "distortion twice": (
        top(k1=0.2, distortion_params=[0.1, 0, 0, 0, 0, 0]), ("'k1' is not what 'distortion_params' says",)
    ),
    "distortion of a pinhole": (
        top(camera_model="PINHOLE", k1=0.1), ("'camera_model' is PINHOLE", "no distortion", "'k1' is 0.1", "OPENCV")
    ),
    "lists of strangers": (
        top(train_filenames=["000.png", "images/001.png"]), ("'train_filenames' lists 000.png", "images/000.png")
    ),
    "a list of one name": (top(val_filenames="images/000.png"), ("'val_filenames'", "no list of names")),
    "all held out": (top(val_filenames=names(*range(12))), ("'train_filenames' is empty",)),
    "frames that contradict": (repeated(fl_x=30.0), ("frame 12 (images/000.png)", "frame 0", "Remove one")),
    "reduced images of one name": (flat_reduced, ("images_2/000.png", "several frames", "subfolders")),
    "applied 2x4": (top(applied_transform=[[1, 0, 0, 0]] * 2), ("'applied_transform'", "3x4")),
    "applied perspective": (top(applied_transform=[[1, 0, 0, 0]] * 4), ("'applied_transform'", "0 0 0 1")),
    "applied zero": (top(applied_transform=[[0] * 4] * 3), ("'applied_transform'", "inverted")),
    "applied scale": (top(applied_scale=0), ("'applied_scale' is 0", "positive")),
    "orientation": (top(orientation_override="east"), ("'orientation_override' is east", "pca, up")),
    "points": (top(ply_file_path=3), ("'ply_file_path' is 3",)),
    "mask of numbers": (frames(mask_path=7), ("frame 0", "'mask_path' is 7")),
    "name of numbers": (lambda meta, folder: meta["frames"][1].update(file_path=7), ("frame 1", "'file_path'")),
    "name too long": (lambda meta, folder: meta["frames"][1].update(file_path="x" * 5000), ("frame 1", "is missing")),
    "sizes under one angle": (
        lambda meta, folder: (top(("fl_x", "fl_y", "w", "h"), camera_angle_x=ANGLE)(meta, folder),
                              Image.new("RGB", (30, 20)).save(folder / "images/002.png")),
        ("images/002.png has 30x20", "24x16", "Give each its own"),
    ),
    "height of another image": (top(("w",), h=17), ("'h' is 17", "has 16")),
    "crop radii": (
        lambda meta, folder: (top(camera_model="OPENCV_FISHEYE")(meta, folder),
                              meta["frames"][1].update(fisheye_crop_radius=5)),
        ("'fisheye_crop_radius' differs",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HONOURED)
def test_a_statement_is_honoured(tmp_path, name):
    """Lens, pose and split are what the file says, in training and in later programs; the folder stays as it is."""
    change, expected = HONOURED[name]
    scene = changed(tmp_path / "scene", change)
    before, truth = folder_bytes(scene), {**TRUTH, **expected}
    for split in ("val", "test"):
        parser = NerfstudioDataParserConfig(downscale_factor=truth.get("factor"), **OWN_FRAME)
        with CONSOLE.capture() as said:
            manager = make_datamanager(scene, parser, test_mode=split)
        assert_true_cameras(manager, truth)
        read = [path.relative_to(scene) for path in manager.train_dataset.image_filenames]
        held_out = [path.relative_to(scene) for path in manager.eval_dataset.image_filenames]
        assert len(set(read)) == len(read) and not set(read) & set(held_out)
        assert "train" not in truth or read == [Path(path) for path in truth["train"]]
        assert split not in truth or held_out == [Path(path) for path in truth[split]]
        transform = manager.train_dataparser_outputs.dataparser_transform
        assert torch.equal(transform, torch.tensor(truth.get("transform", torch.eye(4)[:3].tolist())).float())
        text = said.get()
        for part in TOLD.get(name, ()):
            assert part in text
    assert folder_bytes(scene) == before


@pytest.mark.parametrize("name", REFUSED)
def test_a_statement_is_refused(tmp_path, name):
    change, expected = REFUSED[name]
    scene = changed(tmp_path / "scene", change)
    parser = NerfstudioDataParserConfig(downscale_factor=2 if "reduced" in name else None)
    with pytest.raises(InputError) as caught:
        make_datamanager(scene, parser)
    assert_clear(str(caught.value), (str(scene), *expected))


WARNED: dict[str, tuple[Change, str]] = {
    "keys that nothing reads": (top(exposure=2, frames_per_second=3), "'exposure', 'frames_per_second' is not read"),
    "held out and trained on": (
        top(train_filenames=NINE, val_filenames=names(8, 9)), "images/008.png is held out and trained on"
    ),
    "one center for several sizes": (
        lambda meta, folder: (meta["frames"][1].update(w=30), Image.new("RGB", (30, 16)).save(folder / names(1)[0])),
        "images have several sizes, but 'cx' or 'cy' is one for all",
    ),
    "crop of a perspective image": (top(fisheye_crop_radius=9), "'fisheye_crop_radius' is not used"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_what_may_change_the_picture_is_told(tmp_path, name):
    change, expected = WARNED[name]
    with CONSOLE.capture() as said:
        make_datamanager(changed(tmp_path / "scene", change))
    assert f"transforms.json: {expected}" in said.get()


def test_the_same_key_twice(tmp_path):
    """JSON takes the last; a person meant one of the two."""
    scene = write_plain(tmp_path / "scene")
    text = (scene / "transforms.json").read_text()
    (scene / "transforms.json").write_text(text.replace('"fl_x"', f'"fl_x": {FOCAL}, "fl_x"', 1))
    make_datamanager(scene)
    (scene / "transforms.json").write_text(text.replace('"fl_x"', '"fl_x": 9, "fl_x"', 1))
    with pytest.raises(InputError, match="'fl_x' is there twice, with different values"):
        make_datamanager(scene)


def test_a_byte_order_mark(tmp_path):
    scene = write_plain(tmp_path / "scene")
    (scene / "transforms.json").write_bytes(b"\xef\xbb\xbf" + (scene / "transforms.json").read_bytes())
    assert len(make_datamanager(scene).train_dataset) == 11


def test_scales_are_found_under_the_names_of_windows(tmp_path):
    scene = changed(tmp_path / "scene", renamed(lambda name: name.replace("/", "\\")[:-4]))
    meta = read_meta(scene)
    meta["frames"][1]["downscale"] = 2
    write_meta(scene, meta)
    assert find_scales([scene / name for name in names(0, 1)], None, scene) == (1, 2)


