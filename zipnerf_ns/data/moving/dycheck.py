"""The format of Nerfies, HyperNeRF and DyCheck: a JSON file for each photo's camera, and moments counted from 0.

Nerfstudio's parser of it holds the first training photo out, whatever the scene holds out, knows no distortion, and
wants depth images, which nothing here uses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from nerfstudio.data.dataparsers.dycheck_dataparser import Dycheck, DycheckDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.colors import get_color

from zipnerf_ns.data.checks import check_images, check_train_split
from zipnerf_ns.data.dataparsers.readers import Checked, make_cameras
from zipnerf_ns.data.poses import check_poses
from zipnerf_ns.errors import InputError, say_once

TURN = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""To a world whose third axis is up, as Nerfstudio's parser turns it."""
HELD_OUT = ("val", "test")


class DycheckReader(Checked, Dycheck):
    """The photos that the scene holds out, in the frame in which the farthest camera is one unit from its center.

    Of the parser's settings ``data``, ``downscale_factor`` and ``alpha_color`` are read.
    """

    config: DycheckDataParserConfig

    def __init__(self, config: DycheckDataParserConfig) -> None:
        DataParser.__init__(self, config)

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        data, color = self.config.data, self.config.alpha_color
        center = np.array(_read(data / "scene.json")["center"], dtype=np.float64)
        shift = np.concatenate([TURN, -TURN @ center[:, None]], axis=1)
        trained = _positions(data, "train") @ TURN.T + shift[:, 3]
        scale = 1.0 / max(float(np.abs(trained).max(initial=0.0)), 1e-12)
        frames = read_frames(data, self.config.downscale_factor, split)
        for frame in frames:
            frame["transform_matrix"] = np.concatenate([shift @ frame["transform_matrix"], [[0.0, 0.0, 0.0, 1.0]]])
        return DataparserOutputs(
            image_filenames=[data / frame["file_path"] for frame in frames],
            cameras=make_cameras({"camera_model": "OPENCV"}, frames, scale),
            alpha_color=None if color is None else get_color(color),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])),
            dataparser_transform=torch.from_numpy(shift).float(),
            dataparser_scale=scale,
        )


def check_dycheck(config: DycheckDataParserConfig) -> None:
    """Checks a scene's files, all splits of them.

    Args:
        config: of the parser that is to read it.
    Raises:
        InputError: naming the file.
    """
    for split in ("train", "val"):
        try:
            frames = read_frames(config.data, config.downscale_factor, split)
        except InputError:
            raise
        # Whatever files of other programs hold.
        except Exception as error:
            raise InputError(
                f"{config.data} is not in the format of DyCheck ({type(error).__name__} {error}, split {split}). "
                "Check --data, or the scene's dataset.json, metadata.json and camera/."
            ) from error
        if split == "train":
            check_train_split(len(frames), config.data)
        check_images([config.data / frame["file_path"] for frame in frames])


def read_frames(data: Path, factor: int, split: str) -> list[dict[str, Any]]:
    """Frames of a split as :func:`~zipnerf_ns.data.transforms.read_transforms` gives them, their poses as 4x4 arrays.

    Args:
        data: folder of the scene.
        factor: by which the images are reduced that are read.
        split: "train", or what is held out: "val" or "test".
    Raises:
        InputError: naming the file, for what is missing or cannot be.
    """
    metadata = _read(data / "metadata.json")
    moments = [metadata[name]["warp_id"] for name in _read(data / "dataset.json")["ids"]]
    first, last = min(moments), max(moments)
    names = _names(data, split)
    frames = []
    for name in names:
        camera = _read(data / f"camera/{name}.json")
        if camera.get("skew", 0.0) != 0.0:
            raise InputError(f"{data}/camera/{name}.json: 'skew' is {camera['skew']}, which no ray follows.")
        radial, tangential = camera.get("radial_distortion", [0.0] * 3), camera.get("tangential_distortion", [0.0] * 2)
        focal, size = camera["focal_length"] / factor, [side // factor for side in camera["image_size"]]
        pose = np.eye(4)
        # OpenCV's axes to OpenGL's.
        pose[:3, :3] = np.array(camera["orientation"], dtype=np.float64).T * [1.0, -1.0, -1.0]
        pose[:3, 3] = camera["position"]
        frames.append({
            "file_path": f"rgb/{factor}x/{name}.png", "transform_matrix": pose,
            "fl_x": focal, "fl_y": focal * camera.get("pixel_aspect_ratio", 1.0),
            "cx": camera["principal_point"][0] / factor, "cy": camera["principal_point"][1] / factor,
            "w": size[0], "h": size[1], "distortion_params": [*radial, 0.0, *tangential],
            "time": (metadata[name]["warp_id"] - first) / ((last - first) or 1),
        })  # fmt: skip
    if frames:
        poses = check_poses(
            [frame["transform_matrix"] for frame in frames], names, data / "camera", is_whole=split == "train",
            views=[frame["time"] for frame in frames],
        )  # fmt: skip
        for note in poses.notes:
            say_once(note)
        for frame, matrix in zip(frames, poses.matrices, strict=True):
            frame["transform_matrix"] = matrix
    return frames


def _positions(data: Path, split: str) -> np.ndarray:
    return np.array([_read(data / f"camera/{name}.json")["position"] for name in _names(data, split)]).reshape(-1, 3)


def _names(data: Path, split: str) -> list[str]:
    """Photos of a split: DyCheck's files of splits, or the lists of Nerfies."""
    for each in (split,) if split == "train" else (split, *HELD_OUT):
        path = data / f"splits/{each}.json"
        if path.is_file():
            return _read(path)["frame_names"]
    listed = _read(data / "dataset.json")
    return listed.get("train_ids", listed["ids"]) if split == "train" else listed.get("val_ids", [])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} is missing ({error.strerror}). Check --data, or fetch the whole scene.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object. Fetch it again.")
    return content
