"""A scene with one lens, changes of what its transforms say, and what is true of its cameras."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _scenes import (
    HEIGHT,
    WIDTH,
    named_pixels,
    pose,
    read_meta,
    write_meta,
    write_scene,
)
from PIL import Image

from nerfstudio.cameras.cameras import CameraType

COUNT = 12
FOCAL = 1.1 * WIDTH
ANGLE = 2.0 * math.atan(WIDTH / 2 / FOCAL)
TRUTH = {"fx": FOCAL, "fy": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "width": WIDTH, "height": HEIGHT}
OWN_FRAME = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}

Meta = dict[str, Any]
Change = Callable[[Meta, Path], Any]


def write_plain(folder: Path) -> Path:
    """A scene with one lens, said at the file's top, and no lists of splits."""
    write_scene(folder, COUNT)
    frames = [
        {key: frame[key] for key in ("file_path", "transform_matrix")} for frame in read_meta(folder)["frames"]
    ]
    lens = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT}
    write_meta(folder, {"camera_model": "OPENCV", **lens, "frames": frames})
    return folder


def top(drop: tuple[str, ...] = (), **entries: Any) -> Change:
    """Entries of the file's top removed, and others set."""

    def change(meta: Meta, folder: Path) -> None:
        for key in drop:
            del meta[key]
        meta.update(entries)

    return change


def frames(**entries: Any) -> Change:
    """Entries of every frame."""
    return lambda meta, folder: [frame.update(entries) for frame in meta["frames"]]


def renamed(rename: Callable[[str], str]) -> Change:
    """Other names of the same files."""
    return lambda meta, folder: [frame.update(file_path=rename(frame["file_path"])) for frame in meta["frames"]]


def names(*indices: int) -> list[str]:
    """The images of frames."""
    return [f"images/{index:03d}.png" for index in indices]


def repeated(**entries: Any) -> Change:
    """The first two frames once more, with other entries."""
    return lambda meta, folder: meta["frames"].extend({**frame, **entries} for frame in meta["frames"][:2])


def in_subfolders(meta: Meta, folder: Path) -> None:
    """Two cameras whose images have equal names, and reduced images, some of them lying flat from an older run."""
    for index, frame in enumerate(meta["frames"]):
        name = f"cam{index // 6}/{index % 6:03d}.png"
        (folder / "images" / name).parent.mkdir(exist_ok=True)
        (folder / frame["file_path"]).rename(folder / "images" / name)
        frame["file_path"] = f"images/{name}"
        for reduced in (name, f"{index % 6:03d}.png"):
            (folder / "images_2" / reduced).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(named_pixels(index, WIDTH // 2, HEIGHT // 2)).save(folder / "images_2" / reduced)


def flat_reduced(meta: Meta, folder: Path) -> None:
    """The same without the subfolders of the reduced images."""
    in_subfolders(meta, folder)
    shutil.rmtree(folder / "images_2/cam0")
    shutil.rmtree(folder / "images_2/cam1")


NINE = names(*range(9))


def changed(folder: Path, change: Change) -> Path:
    """The plain scene after a change."""
    meta = read_meta(write_plain(folder))
    change(meta, folder)
    write_meta(folder, meta)
    return folder


def assert_true_cameras(manager: Any, truth: dict[str, Any], scale: float = 1.0) -> None:
    """Cameras of both datasets have the true numbers, and the pose of the image that they read."""
    for dataset in (manager.train_dataset, manager.eval_dataset):
        cameras = dataset.cameras
        for key in TRUTH:
            expected = torch.full((len(dataset), 1), float(truth[key]))
            torch.testing.assert_close(getattr(cameras, key).float(), expected, rtol=1e-6, atol=0.0)
        assert cameras.camera_type.unique().tolist() == [truth.get("type", CameraType.PERSPECTIVE).value]
        lens = torch.zeros(len(dataset), 6) if cameras.distortion_params is None else cameras.distortion_params
        expected = torch.tensor(truth.get("distortion", [0.0] * 6), dtype=torch.float32)
        torch.testing.assert_close(lens, expected.expand(len(dataset), -1))
        for index in range(len(dataset)):
            number = int(dataset.get_numpy_image(index)[0, 0, 0])
            expected = torch.tensor(pose(number, COUNT))[:3].float()
            expected[:, 3] *= scale
            torch.testing.assert_close(cameras.camera_to_worlds[index], expected, rtol=1e-5, atol=1e-6)


