"""Small synthetic scenes and configurations for the tests: pictures whose every pixel names itself."""

from __future__ import annotations

import copy
import json
import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from nerfstudio.scripts.train import _set_random_seed
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.config import zipnerf_lite
from zipnerf_ns.data.datamanager import ZipNerfDataManager
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.engine.trainer import ZipNerfTrainer, ZipNerfTrainerConfig
from zipnerf_ns.zipnerf import ProposalConfig

WIDTH, HEIGHT = 24, 16


def pose(index: int, count: int, radius: float = 2.5) -> list[list[float]]:
    """A camera on a circle that looks at the origin, camera to world, OpenGL axes."""
    angle = 2.0 * math.pi * index / count
    eye = np.array([radius * math.cos(angle), radius * math.sin(angle), 0.4 + 0.3 * (index % 3)])
    back = eye / np.linalg.norm(eye)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
    return matrix.tolist()


def named_pixels(image: int, width: int = WIDTH, height: int = HEIGHT, channels: int = 3) -> np.ndarray:
    """A picture whose colors say which picture, row and column they are: (image, y, x[, 255 - x])."""
    y, x = np.mgrid[:height, :width]
    planes = [np.full_like(x, image), y, x, 255 - x]
    return np.stack(planes[:channels], axis=-1).astype(np.uint8)


def write_scene(
    folder: Path, count: int = 8, sizes: list[tuple[int, int]] | None = None, channels: int = 3, **extra: Any
) -> Path:
    """Writes a scene in Nerfstudio's format.

    Args:
        folder: where; created.
        count: images, of which every fourth is held out.
        sizes: width and height of each image; 24x16 for all if not given.
        channels: 3, or 4 for RGBA.
        extra: top-level entries of transforms.json.
    """
    (folder / "images").mkdir(parents=True)
    frames, splits = [], {"train": [], "val": [], "test": []}
    for index in range(count):
        width, height = (WIDTH, HEIGHT) if sizes is None else sizes[index]
        name = f"images/{index:03d}.png"
        Image.fromarray(named_pixels(index, width, height, channels)).save(folder / name)
        intrinsics = {"fl_x": 1.1 * width, "fl_y": 1.1 * width, "cx": width / 2, "cy": height / 2}
        frame = {"file_path": name, "w": width, "h": height, "transform_matrix": pose(index, count)}
        frames.append(frame | intrinsics)
        for split in ("val", "test") if index % 4 == 3 else ("train",):
            splits[split].append(name)
    meta = {"camera_model": "OPENCV", "frames": frames, **extra}
    meta.update({f"{split}_filenames": names for split, names in splits.items()})
    write_meta(folder, meta)
    return folder


def write_blender_scene(folder: Path, count: int = 6, size: int = 16) -> Path:
    """Writes RGBA pictures in the layout of the NeRF-synthetic scenes: a disc that fades out over transparency."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = (255 * np.clip(1.5 - np.hypot(x, y) / (size / 4), 0, 1)).astype(np.uint8)
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        frames = []
        for index in range(count):
            picture = named_pixels(index, size, size, 4)
            picture[..., 3] = disc
            Image.fromarray(picture).save(folder / split / f"r_{index}.png")
            matrix = pose(index, count, radius=4.0)
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": matrix})
        write_meta(folder, {"camera_angle_x": 0.7, "frames": frames}, f"transforms_{split}.json")
    return folder


def write_colmap_scene(
    folder: Path, extension: str, count: int = 10, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> list[np.ndarray]:
    """A COLMAP model with a distorted camera, and its images; returns the cameras' centers in COLMAP's frame."""
    (folder / "images").mkdir(parents=True)
    (folder / "colmap/sparse/0").mkdir(parents=True)
    lens = np.array([26.0, 27.0, 12.0, 8.0, 0.05, -0.01, 0.002, 0.001])
    cameras = {1: colmap.Camera(1, "OPENCV", *size, lens)}
    images, centers = {}, []
    for index in range(count):
        matrix = np.array(pose(index, count))
        rotation = (matrix[:3, :3] * [1.0, -1.0, -1.0]).T
        centers.append(matrix[:3, 3])
        images[index + 1] = colmap.Image(
            index + 1, colmap.rotmat2qvec(rotation), -rotation @ matrix[:3, 3], 1, f"frame_{index}.png",
            np.zeros((0, 2)), np.zeros(0, int),
        )  # fmt: skip
        Image.fromarray(named_pixels(index, *size)).save(folder / f"images/frame_{index}.png")
    points = {1: colmap.Point3D(1, np.zeros(3), np.array([9, 9, 9]), 0.1, np.array([1]), np.array([0]))}
    colmap.write_model(cameras, images, points, str(folder / "colmap/sparse/0"), extension)
    return centers


def read_meta(folder: Path, name: str = "transforms.json") -> dict[str, Any]:
    """The folder's transforms."""
    return json.loads((folder / name).read_text())


def write_meta(folder: Path, meta: dict[str, Any], name: str = "transforms.json") -> None:
    """Writes the folder's transforms; NaN is written as Python's json does."""
    (folder / name).write_text(json.dumps(meta))


def tiny_config(
    data: Path, output: Path, steps: int = 6, dataparser: DataParserConfig | None = None, **changes: Any
) -> ZipNerfTrainerConfig:
    """zipnerf-lite made small enough for a few steps a second; ``changes`` are fields of the trainer's config."""
    config = copy.deepcopy(zipnerf_lite.config)
    config.output_dir, config.experiment_name, config.timestamp = output, "scene", "run"
    config.vis = "tensorboard"
    config.machine.device_type = "cpu"
    config.max_num_iterations, config.steps_per_save, config.steps_per_eval_image = steps, 1000, 0
    manager = config.pipeline.datamanager
    manager.data, manager.dataparser = data, dataparser or NerfstudioDataParserConfig()
    manager.train_num_rays_per_batch = manager.eval_num_rays_per_batch = 64
    model = config.pipeline.model
    model.grid = HashGridConfig(4, 2, 8, 64, 10)
    model.proposals = (ProposalConfig(8, HashGridConfig(3, 1, 8, 32, 10), 8, 0.03),)
    model.num_samples, model.hidden_dim, model.bottleneck_dim, model.color_dim = 6, 16, 8, 16
    for name, value in changes.items():
        if not hasattr(config, name):
            raise AttributeError(name)
        setattr(config, name, value)
    return config


def make_datamanager(data: Path, dataparser: Any = None, test_mode: str = "val", **changes: Any) -> ZipNerfDataManager:
    """A datamanager as the pipeline makes it; ``changes`` are fields of its config."""
    config = tiny_config(data, data.parent / "out", dataparser=dataparser).pipeline.datamanager
    for name, value in changes.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    return config.setup(device="cpu", test_mode=test_mode, world_size=1, local_rank=0)


def start(config: ZipNerfTrainerConfig, seed: int = 0) -> ZipNerfTrainer:
    """A trainer that is set up as ``ns-train`` sets it up, config.yml included; the seed is set first."""
    _set_random_seed(seed)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    return trainer


def train(config: ZipNerfTrainerConfig, seed: int = 0) -> tuple[ZipNerfTrainer, dict[int, float]]:
    """Trains a run as ``ns-train`` would; returns the trainer and the loss of every step."""
    trainer = start(config, seed)
    losses: dict[int, float] = {}
    iterate = trainer.train_iteration

    def recorded(step: int) -> Any:
        result = iterate(step)
        losses[step] = float(result[0])
        return result

    trainer.train_iteration = recorded
    trainer.train()
    return trainer, losses


def checkpoint(config: ZipNerfTrainerConfig, step: int) -> Path:
    """Where the config's run keeps the checkpoint of a step."""
    return config.get_checkpoint_dir() / f"step-{step:09d}.ckpt"


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, read as torch >= 2.6 reads it."""
    return torch.load(path, weights_only=True)


def assert_clear(message: str, expected: tuple[str, ...]) -> None:
    """One line that names what it should, and ends as a sentence."""
    missing = [part for part in expected if part not in message]
    assert not missing, f"{missing} not in: {message}"
    assert "\n" not in message and message.rstrip().endswith(".")


def said_when_started(config: ZipNerfTrainerConfig) -> str:
    """What is printed when a trainer's set-up ends the program."""
    with CONSOLE.capture() as capture, pytest.raises(SystemExit) as caught:
        start(config)
    assert caught.value.code == 1
    assert not config.get_checkpoint_dir().exists()
    lines = [line for line in capture.get().splitlines() if line.startswith("Error:")]
    assert len(lines) == 1, lines
    return lines[0]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def free_port() -> int:
    """A port for the viewer that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
