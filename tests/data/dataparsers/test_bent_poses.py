"""Poses bent at random in each way that people's are: one line, or right cameras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _poses import assert_right, parse, scene_poses, write_poses
from _scenes import assert_clear, write_scene

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.errors import InputError

Bend = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def translated(poses: np.ndarray, offsets: Any) -> np.ndarray:
    """Poses with offsets added to their positions."""
    result = poses.copy()
    result[:, :3, 3] += offsets
    return result


def rotated(poses: np.ndarray, factors: Any) -> np.ndarray:
    """Poses with their rotations multiplied by factors, entry by entry."""
    result = poses.copy()
    result[:, :3, :3] *= factors
    return result


def with_holes(poses: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Poses with a few entries that are no numbers, or no likely ones."""
    values = generator.choice([np.nan, np.inf, 0.0, 1e300], poses.shape)
    return np.where(generator.random(poses.shape) < 0.01, values, poses)


def with_one(poses: np.ndarray, changed: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Poses of which one is changed."""
    is_changed = np.arange(len(poses)) == generator.integers(len(poses))
    return np.where(is_changed[:, None, None], changed, poses)


BENDS: dict[str, Bend] = {
    "none": lambda p, g: p,
    "moved": lambda p, g: translated(p, 10.0 ** g.uniform(0, 8) * g.uniform(-1, 1, 3)),
    "scaled": lambda p, g: np.diag([*[10.0 ** g.uniform(-6, 6)] * 3, 1.0]) @ p,
    "scaled each": lambda p, g: rotated(p, g.uniform(0.1, 9.0, (len(p), 1, 1))),
    "stretched": lambda p, g: np.diag([*(1.0 + 10.0 ** g.uniform(-7, 0, 3)), 1.0]) @ p,
    "mirrored": lambda p, g: np.diag([*g.choice([-1.0, 1.0], 3), 1.0]) @ p,
    "one mirrored": lambda p, g: with_one(p, rotated(p, [1, 1, -1]), g),
    "one far": lambda p, g: with_one(p, translated(p, 10.0 ** g.uniform(0, 9)), g),
    "one copied": lambda p, g: with_one(p, p[:1], g),
    "shrunk": lambda p, g: translated(p, (10.0 ** g.uniform(-14, 0) - 1.0) * p[:, :3, 3] + g.normal(size=3)),
    "noise": lambda p, g: p + 10.0 ** g.uniform(-9, 0) * g.normal(size=p.shape) * [[1], [1], [1], [0]],
    "holes": with_holes,
    "rounded": lambda p, g: np.round(p, g.integers(0, 9)),
    "float32": lambda p, g: translated(p, 10.0 ** g.uniform(0, 8)).astype(np.float32).astype(np.float64),
    "last row": lambda p, g: p + np.pad(g.choice([0.0, 1e-9, 1.0]) * g.normal(size=(1, 4)), ((3, 0), (0, 0))),
    "transposed": lambda p, g: p.transpose(0, 2, 1),
}  # fmt: skip
NEVER_REFUSED = {"none", "moved", "scaled", "scaled each", "one copied"}
"""With a center subtracted."""
SEEDS = 30


@pytest.mark.parametrize("bend", BENDS)
def test_bent_poses_end_in_one_line_or_are_right(tmp_path, bend):
    """Right: cameras are rotations, and stand and look as the file says, in all that the data's frame can tell."""
    scene = write_scene(tmp_path / "scene")
    names, ring = list(scene_poses()), np.array(list(scene_poses().values()))
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        bent = BENDS[bend](ring, generator)
        write_poses(scene, dict(zip(names, bent, strict=True)))
        config = NerfstudioDataParserConfig(
            data=scene,
            orientation_method=generator.choice(["up", "pca", "vertical", "none"]).item(),
            center_method=generator.choice(["poses", "focus", "none"]).item(),
            auto_scale_poses=bool(generator.random() < 0.7),
        )
        try:
            outputs = parse(config)
        except InputError as error:
            assert_clear(str(error), (str(scene),))
            assert bend not in NEVER_REFUSED or config.center_method == "none", str(error)
            continue
        determinants = np.cbrt(np.linalg.det(bent[:, :3, :3]))
        truth = bent.copy()
        left, _, right = np.linalg.svd(bent[:, :3, :3])
        truth[:, :3, :3] = left @ right
        assert (determinants > 0).all()
        cameras = outputs.cameras.camera_to_worlds
        turns = cameras[:, :, :3] @ cameras[:, :, :3].transpose(1, 2)
        torch.testing.assert_close(turns, torch.eye(3).expand_as(turns), rtol=0, atol=1e-5)
        reach = cameras[:, :, 3].abs().max().item()
        assert_right(outputs, dict(zip(names, truth, strict=True)), atol=2e-4 * max(reach, 1.0))
