"""Scenes with given poses, read with exact poses, against the data's original frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from _scenes import pose, read_meta, write_meta

from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs

from zipnerf_ns.data.dataparsers.exact import exact

Truth = dict[str, np.ndarray]
"""Camera to world in the data's original frame, OpenGL axes, by the image's name."""


def parse(config: DataParserConfig, split: str = "train") -> DataparserOutputs:
    return exact(config).setup().get_dataparser_outputs(split)


def scene_poses(count: int = 8) -> Truth:
    return {f"{index:03d}.png": np.array(pose(index, count)) for index in range(count)}


def write_poses(folder: Path, poses: Truth, **entries: Any) -> None:
    """Writes poses, and entries of the file's top, into the scene's transforms."""
    meta = read_meta(folder) | entries
    for frame in meta["frames"]:
        frame["transform_matrix"] = np.asarray(poses[Path(frame["file_path"]).name]).tolist()
    write_meta(folder, meta)


def assert_right(outputs: DataparserOutputs, truth: Truth, atol: float = 1e-5) -> None:
    """The transform and scale, as exports read them, take the original poses to the cameras and back."""
    written = json.loads(json.dumps({"t": outputs.dataparser_transform.tolist(), "s": float(outputs.dataparser_scale)}))
    transform, scale = np.array(written["t"]), written["s"]
    cameras = outputs.cameras.camera_to_worlds
    back = outputs.transform_poses_to_original_space(cameras, "opengl").numpy()
    assert len(cameras) == len(outputs.image_filenames) > 1
    unit = np.abs(np.linalg.det(transform[:, :3])) ** (1 / 3)
    for index, path in enumerate(outputs.image_filenames):
        own, camera = truth[path.name], cameras[index].double().numpy()
        np.testing.assert_allclose(scale * (transform[:, :3] @ own[:3, 3] + transform[:, 3]), camera[:, 3], atol=atol)
        np.testing.assert_allclose(transform[:, :3] / unit @ own[:3, :3], camera[:, :3], atol=atol)
        np.testing.assert_allclose(back[index, :, 3], own[:3, 3], atol=atol / scale / unit, rtol=1e-14)
