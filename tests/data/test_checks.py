"""Every bad input gives one clear error before training starts, and good input passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _scenes import (
    assert_clear,
    named_pixels,
    pose,
    read_meta,
    tiny_config,
    write_blender_scene,
    write_meta,
    write_scene,
)
from PIL import Image

from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

from zipnerf_ns.data.transforms import read_transforms
from zipnerf_ns.errors import InputError

NAN_POSE = np.array(pose(0, 8))
NAN_POSE[1, 2] = np.nan
SINGULAR_POSE = np.array(pose(0, 8))
SINGULAR_POSE[0, :3] = 2.0 * SINGULAR_POSE[1, :3]
MIRRORED_POSE = np.array(pose(0, 8)) @ np.diag([-1.0, 1.0, 1.0, 1.0])

Break = Callable[[Path], Any]


def edit(change: Callable[[dict[str, Any]], Any], name: str = "transforms.json") -> Break:
    """A change of the scene's transforms."""

    def apply(folder: Path) -> None:
        meta = read_meta(folder, name)
        change(meta)
        write_meta(folder, meta, name)

    return apply


def frame(key: str, value: Any, index: int = 2, name: str = "transforms.json") -> Break:
    """One entry of one frame set to a value."""
    return edit(lambda meta: meta["frames"][index].update({key: value}), name)


def cut(name: str, share: float) -> Break:
    """A file of which only the first part is left."""

    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return apply


def garbage(name: str) -> Break:
    """A file that is no image."""
    return lambda folder: (folder / name).write_bytes(b"this is not an image " * 20)


def resized(name: str) -> Break:
    """An image of another size than its camera."""
    return lambda folder: Image.fromarray(named_pixels(2, 20, 12, 4)[..., :3]).save(folder / name)


def without_splits(meta: dict[str, Any], count: int) -> None:
    """Only the first frames, and no lists of splits."""
    meta["frames"] = meta["frames"][:count]
    for split in ("train", "val", "test"):
        del meta[f"{split}_filenames"]


NERFSTUDIO: dict[str, tuple[Break, tuple[str, ...]]] = {
    "camera model that only renders": (
        edit(lambda meta: meta.update(camera_model="VR180_L")), ("'camera_model'", "VR180_L", "EQUIRECTANGULAR")
    ),
    "unknown camera model": (edit(lambda meta: meta.update(camera_model="FULL_OPENCV")), ("FULL_OPENCV", "undistort")),
    "mixed camera models": (
        frame("camera_model", "OPENCV_FISHEYE"), ("frame 2", "OPENCV_FISHEYE", "file's top", "here OPENCV")
    ),
    "fisheye of few parameters": (
        edit(lambda meta: meta.update(camera_model="FISHEYE624", k1=0.1)), ("frame 0", "FISHEYE624", "12 numbers")
    ),
    "no folder": (shutil.rmtree, ("does not exist", "--data")),
    "no transforms": (lambda folder: (folder / "transforms.json").unlink(), ("transforms.json", "tools.photos")),
    "broken JSON": (cut("transforms.json", 0.5), ("transforms.json", "not valid JSON", "ns-process-data")),
    "binary JSON": (garbage("transforms.json"), ("transforms.json", "not valid JSON")),
    "JSON list": (lambda folder: (folder / "transforms.json").write_text("[]"), ("transforms.json", "'frames'")),
    "no frames": (edit(lambda meta: meta.update(frames=[])), ("transforms.json", "'frames'", "ns-process-data")),
    "frames missing": (edit(lambda meta: meta.pop("frames")), ("transforms.json", "'frames'")),
    "frame not an object": (edit(lambda meta: meta["frames"].insert(1, 5)), ("transforms.json", "frame 1")),
    "no file_path": (edit(lambda meta: meta["frames"][2].pop("file_path")), ("frame 2", "file_path")),
    "missing image": (lambda folder: (folder / "images/002.png").unlink(), ("002.png", "missing", "remove")),
    "missing first image": (lambda folder: (folder / "images/000.png").unlink(), ("000.png", "missing", "remove")),
    "missing held-out image": (lambda folder: (folder / "images/003.png").unlink(), ("003.png", "missing")),
    "unreadable image": (garbage("images/002.png"), ("002.png", "cannot be read", "Replace")),
    "unreadable first image": (garbage("images/000.png"), ("000.png", "cannot be read", "Replace")),
    "unreadable held-out image": (garbage("images/003.png"), ("003.png", "cannot be read", "Replace")),
    "empty image file": (cut("images/001.png", 0.0), ("001.png", "cannot be read", "Replace")),
    "truncated image": (cut("images/002.png", 0.6), ("002.png", "truncated", "Replace")),
    "truncated first image": (cut("images/000.png", 0.6), ("000.png", "truncated", "Replace")),
    "truncated held-out image": (cut("images/003.png", 0.6), ("003.png", "truncated", "Replace")),
    "other size": (resized("images/002.png"), ("002.png", "20x12", "24x16", "w and h")),
    "held-out image of other size": (resized("images/003.png"), ("003.png", "20x12", "24x16", "w and h")),
    "NaN pose": (frame("transform_matrix", NAN_POSE.tolist()), ("frame 2", "002.png", "NaN")),
    "singular pose": (frame("transform_matrix", SINGULAR_POSE.tolist()), ("002.png", "singular")),
    "pose of another shape": (frame("transform_matrix", np.eye(3).tolist()), ("frame 2", "4x4")),
    "ragged pose": (frame("transform_matrix", [[1.0, 2.0], [3.0]]), ("frame 2", "4x4")),
    "pose of words": (frame("transform_matrix", "identity"), ("frame 2", "4x4")),
    "no pose": (edit(lambda meta: meta["frames"][2].pop("transform_matrix")), ("frame 2", "4x4")),
    "zero focal": (frame("fl_x", 0), ("frame 2", "fl_x", "positive")),
    "negative focal": (frame("fl_y", -30.0), ("frame 2", "fl_y", "positive")),
    "NaN focal": (frame("fl_x", float("nan")), ("frame 2", "fl_x", "positive")),
    "focal of words": (frame("fl_x", "wide"), ("frame 2", "fl_x", "positive")),
    "no focal": (edit(lambda meta: meta["frames"][2].pop("fl_x")), ("frame 2", "fl_x", "positive")),
    "zero focal for all": (edit(lambda meta: meta.update(fl_x=0)), ("fl_x", "positive")),
    "negative focal for all": (edit(lambda meta: meta.update(fl_y=-1.0)), ("fl_y", "positive")),
    "NaN focal for all": (edit(lambda meta: meta.update(fl_y=float("nan"))), ("fl_y", "positive")),
    "empty train split": (edit(lambda meta: meta.update(train_filenames=[])), ("train_filenames", "empty")),
    "one image to train on": (
        edit(lambda meta: meta.update(train_filenames=meta["train_filenames"][:1])), ("one image", "at least two")
    ),
    "one image": (edit(lambda meta: without_splits(meta, 1)), ("one image", "at least two")),
    "mask of one image": (frame("mask_path", "images/002.png"), ("mask_path", "000.png", "or none")),
    "depth of one image": (frame("depth_file_path", "2.png"), ("depth_file_path", "000.png", "remove it")),
}  # fmt: skip

TRAIN = "transforms_train.json"
BLENDER: dict[str, tuple[Break, tuple[str, ...]]] = {
    "no transforms": (lambda folder: (folder / TRAIN).unlink(), (TRAIN, "does not exist")),
    "no frames": (edit(lambda meta: meta.update(frames=[]), TRAIN), (TRAIN, "'frames'")),
    "missing image": (lambda folder: (folder / "train/r_2.png").unlink(), ("r_2", "missing", "remove")),
    "missing held-out image": (lambda folder: (folder / "val/r_2.png").unlink(), ("val/r_2", "missing")),
    "unreadable image": (garbage("train/r_2.png"), ("train/r_2.png", "cannot be read", "Replace")),
    "unreadable first image": (garbage("train/r_0.png"), ("train/r_0.png", "cannot be read", "Replace")),
    "unreadable first held-out image": (garbage("val/r_0.png"), ("val/r_0.png", "cannot be read", "Replace")),
    "truncated image": (cut("train/r_2.png", 0.6), ("train/r_2.png", "truncated", "Replace")),
    "other size": (resized("train/r_2.png"), ("train/r_2.png", "20x12", "16x16")),
    "NaN pose": (frame("transform_matrix", NAN_POSE.tolist(), 2, TRAIN), ("frame 2", "NaN")),
    "NaN held-out pose": (
        frame("transform_matrix", NAN_POSE.tolist(), 2, "transforms_val.json"), ("val/r_2", "NaN")
    ),
    "singular pose": (frame("transform_matrix", SINGULAR_POSE.tolist(), 2, TRAIN), ("train/r_2", "singular")),
    "mirrored pose of a later program": (
        frame("transform_matrix", MIRRORED_POSE.tolist(), 2, "transforms_test.json"), ("test/r_2", "left-handed")
    ),
    "zero angle": (edit(lambda meta: meta.update(camera_angle_x=0.0), TRAIN), ("camera_angle_x", "positive")),
    "negative angle": (edit(lambda meta: meta.update(camera_angle_x=-0.5), TRAIN), ("camera_angle_x", "positive")),
    "NaN angle": (edit(lambda meta: meta.update(camera_angle_x=float("nan")), TRAIN), ("camera_angle_x", "positive")),
    "no angle": (edit(lambda meta: meta.pop("camera_angle_x"), TRAIN), (TRAIN, "camera_angle_x")),
    "one image": (edit(lambda meta: meta.update(frames=meta["frames"][:1]), TRAIN), ("one image", "at least two")),
}  # fmt: skip


@pytest.mark.parametrize("name", NERFSTUDIO)
def test_bad_scene_in_nerfstudio_format(tmp_path, name):
    breaking, expected = NERFSTUDIO[name]
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path).pipeline.datamanager
    breaking(config.data)
    with pytest.raises(InputError) as caught:
        config.setup(device="cpu", test_mode="val")
    assert_clear(str(caught.value), expected)


@pytest.mark.parametrize("name", BLENDER)
def test_bad_scene_in_blender_format(tmp_path, name):
    breaking, expected = BLENDER[name]
    scene = write_blender_scene(tmp_path / "scene")
    config = tiny_config(scene, tmp_path, dataparser=BlenderDataParserConfig()).pipeline.datamanager
    breaking(scene)
    with pytest.raises(InputError) as caught:
        config.setup(device="cpu", test_mode="val")
    assert_clear(str(caught.value), expected)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_cut_anywhere_is_named_or_whole(tmp_path, suffix):
    """However much is missing, decoding either gives the pixels or says which file is at fault."""
    scene = write_scene(tmp_path / "scene", count=3)
    meta = read_meta(scene)
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    name = f"images/cut.{suffix}"
    Image.fromarray(noise).save(scene / name)
    whole = (scene / name).read_bytes()
    meta["frames"][1]["file_path"] = name
    without_splits(meta, 3)
    write_meta(scene, meta)
    refused = 0
    for length in range(0, len(whole) - 1, max(len(whole) // 24, 1)):
        (scene / name).write_bytes(whole[:length])
        config = tiny_config(scene, tmp_path).pipeline.datamanager
        config.dataparser.eval_mode = "all"
        try:
            config.setup(device="cpu", test_mode="val")
        except InputError as error:
            assert f"cut.{suffix}" in str(error)
            refused += 1
    assert refused >= 23


def test_good_scenes_pass(tmp_path):
    read_transforms(write_scene(tmp_path / "a") / "transforms.json")
    meta = read_meta(tmp_path / "a")
    # What a frame says of the file's own model is no contradiction, nor another name of it.
    meta["frames"][0]["camera_model"], meta["frames"][1]["camera_model"] = "OPENCV", "PINHOLE"
    write_meta(tmp_path / "a", meta)
    read_transforms(tmp_path / "a" / "transforms.json")
    small = write_scene(tmp_path / "b")
    (small / "images").rename(small / "images_2")
    # Only the reduced pictures were kept: the parser's downscale factor decides, so the check must not.
    read_transforms(small / "transforms.json")
