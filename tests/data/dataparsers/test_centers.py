"""Where a scene's center is put by what its cameras look at; that it stays where a run was trained; who is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from _poses import assert_right, parse, scene_poses, write_poses
from _published import write_mipnerf360_scene
from _scenes import make_datamanager, write_scene

from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data.datamanager import ZipNerfDataManagerConfig
from zipnerf_ns.data.dataparsers.exact import (
    SAID,
    CenteringColmapConfig,
    CenteringNerfstudioConfig,
    choose_center,
)
from zipnerf_ns.data.dataparsers.mipnerf360 import MipNerf360DataParserConfig
from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig, settled_source
from zipnerf_ns.data.trained import TrainedData

COUNT = 60
ALONG = np.linspace(0.0, 1.0, COUNT, endpoint=False)
AROUND = 2.0 * math.pi * ALONG


def looking(eyes: Any, places: Any, noise: float = 0.05) -> np.ndarray:
    """Cameras at eyes that look at places, nearly; about their middle."""
    eyes, places = (np.array(np.broadcast_arrays(*each)).T for each in (eyes, places))
    back = eyes - places
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    back += noise * np.random.default_rng(0).normal(size=back.shape)
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (len(eyes), 1, 1))
    poses[:, :3] = np.stack([right, np.cross(back, right), back, eyes - eyes.mean(axis=0)], axis=-1)
    return poses


def circle(angle: Any, radius: float = 3.0, height: float = 0.5) -> tuple:
    return radius * np.cos(angle), radius * np.sin(angle), height


def rooms(at: np.ndarray) -> tuple:
    return 8.0 * np.sin(5.0 * at), 6.0 * np.cos(3.0 * at), 0.1 * np.sin(40.0 * at)


def bowl() -> np.ndarray:
    heights = np.random.default_rng(1).uniform(0.1, 0.9, COUNT)
    return looking((*circle(AROUND, np.sqrt(1.0 - heights**2))[:2], heights), (0.0, 0.0, 0.0))


def second_look_elsewhere(share: float) -> np.ndarray:
    """Around something; of some photos the camera was turned away from it."""
    is_away = np.arange(COUNT) < share * COUNT
    at = np.random.default_rng(2).permutation(AROUND)
    return looking(circle(at), tuple(np.where(is_away, 2.0 * each, 0.0) for each in circle(at, 3.0, 1.0)))


LOOKED_AT = {
    "around it": looking(circle(AROUND), (0.0, 0.0, 0.0)),
    "half around it": looking(circle(0.5 * AROUND), (0.0, 0.0, 0.0)),
    "a third around it": looking(circle(AROUND / 3.0), (0.0, 0.0, 0.0)),
    "from above, too": bowl(),
    "a drone around it": looking(circle(AROUND, 8.0, 6.0), (0.0, 0.0, 0.0)),
    "a room, from its walls": looking(circle(AROUND), circle(AROUND + 2.5, 1.0)),
    "around it, with few other photos": second_look_elsewhere(0.05),
    "three photos": looking(circle(np.radians([-45.0, 0.0, 45.0])), (0.0, 0.0, 0.0)),
}
PASSED_BY = {
    "frontal": looking((ALONG - 0.5, 0.0, 0.3 * np.cos(AROUND)), (0.0, 4.0, 0.0)),
    "frontal, from farther apart": looking((4.0 * ALONG - 2.0, 0.0, 0.3 * np.cos(AROUND)), (0.0, 4.0, 0.0)),
    "along a wall": looking((6.0 * ALONG, 0.0, 0.0), (6.0 * ALONG, 4.0, 0.0)),
    "from the air, downwards": looking((10.0 * ALONG, np.cos(AROUND), 5.0), (10.0 * ALONG, np.cos(AROUND) + 0.1, 0.0)),
    "all around, from one place": looking(circle(AROUND, 0.2), circle(AROUND, 5.0)),
    "all around, the camera held to the side": looking(circle(AROUND + 2.0, 0.2), circle(AROUND, 5.0)),
    "down a corridor": looking((10.0 * ALONG, 0.1 * np.cos(9.0 * AROUND), 0.0), (10.0 * ALONG + 3.0, 0.0, 0.0)),
    "both sides of a street": looking((10.0 * ALONG, 0.0, 0.0), (10.0 * ALONG, 4.0 * (-1.0) ** np.arange(COUNT), 0.0)),
    "through a house": looking(rooms(ALONG), rooms(ALONG + 0.03)),
    "past two walls, around their corner": looking(
        (np.minimum(ALONG, 0.5), np.maximum(ALONG, 0.5), 0.0),
        (np.where(ALONG < 0.5, ALONG, 0.8), np.where(ALONG < 0.5, 0.2, ALONG), 0.0),
    ),
    "around it, with many other photos": second_look_elsewhere(0.3),
    "side by side": looking(([0.0, 0.1], 0.0, 0.0), ([0.0, 0.1], 3.0, 0.0), 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", [*LOOKED_AT, *PASSED_BY])
def test_the_center_is_what_cameras_look_at_where_they_go_around_it(name):
    poses = {**LOOKED_AT, **PASSED_BY}[name]
    expected = "focus" if name in LOOKED_AT else "poses"
    assert choose_center(poses, [None] * len(poses)) == expected
    # A camera that walks about what moves.
    assert choose_center(poses, np.arange(len(poses), dtype=float).tolist()) == "poses"
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    turn *= 70.0 * np.linalg.det(turn)
    elsewhere = np.pad(turn, (0, 1)) @ poses
    elsewhere[:, :3, :3] /= 70.0
    elsewhere[:, :3, 3] += [0.5, -0.25, 1.0]
    elsewhere[:, 3, 3] = 1.0
    assert choose_center(elsewhere, [None] * len(poses)) == expected


def test_cameras_of_which_those_that_count_look_the_same_way_have_no_place():
    """Nerfstudio leaves out those that have their middle behind them, and cannot go on."""
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:2, :3, 3], poses[2:, :3, 3] = [[0.0, 0, 1], [1, 0, 1]], [[0.0, 3, -1], [0, -3, -1]]
    for index, sign in ((2, 1.0), (3, -1.0)):
        poses[index, :3, :3] = [[1, 0, 0], [0, 0, -sign], [0, sign, 0]]
    assert choose_center(poses, [None] * 4) == "poses"


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What a person is told."""
    lines: list[str] = []
    monkeypatch.setattr("zipnerf_ns.data.dataparsers.exact.say", lines.append)
    return lines


def half_around(folder: Path) -> dict[str, np.ndarray]:
    """Writes a scene that is seen from one half of a ring, on a map."""
    poses = looking(circle(math.pi * np.arange(8) / 8), (0.0, 0.0, 0.0))
    poses[:, :3, 3] += [412345.25, 5432109.75, 100.0]
    truth = {name: poses[index] for index, name in enumerate(sorted(scene_poses()))}
    write_poses(write_scene(folder), truth)
    return truth


def test_exports_know_the_way_back_from_a_center_that_was_chosen(tmp_path, said):
    truth, scene = half_around(tmp_path / "scene"), tmp_path / "scene"
    outputs = {
        center: parse(CenteringNerfstudioConfig(data=scene, center_method=center))
        for center in ("focus", "poses", "auto")
    }
    assert said == [SAID["focus"]]
    for each in outputs.values():
        assert_right(each, truth)
    chosen, focus, poses = (outputs[name].cameras.camera_to_worlds for name in ("auto", "focus", "poses"))
    assert torch.equal(chosen, focus)
    assert (chosen - poses).abs().max() > 0.1
    multiscale = MultiscaleDataParserConfig(data=scene, scales=(1,), cache_dir=tmp_path / "cache")
    assert torch.equal(parse(multiscale).cameras.camera_to_worlds, focus)
    # Nobody else's parser chooses, nor ours where a way is asked for.
    plain = parse(NerfstudioDataParserConfig(data=scene))
    assert torch.equal(plain.cameras.camera_to_worlds, poses)
    assert len(said) == 2


def test_colmaps_models_are_centered_alike(tmp_path, said):
    truth = write_mipnerf360_scene(tmp_path / "garden")
    options = {"data": tmp_path / "garden", "downscale_factor": 1}
    chosen = parse(CenteringColmapConfig(**options))
    assert_right(chosen, truth)
    way = "focus" if said == [SAID["focus"]] else "poses"
    same = parse(ColmapDataParserConfig(**options, colmap_path=Path("sparse/0"), center_method=way))
    assert torch.equal(chosen.cameras.camera_to_worlds, same.cameras.camera_to_worlds)
    # The benchmark has a protocol.
    parse(MipNerf360DataParserConfig(**options))
    assert len(said) == 1


def cameras_of(manager: Any) -> torch.Tensor:
    return torch.cat([each.cameras.camera_to_worlds for each in (manager.train_dataset, manager.eval_dataset)])


@pytest.mark.parametrize("center", ["auto", "poses", "focus", "none"])
def test_a_run_keeps_the_center_that_it_was_trained_with(tmp_path, said, center):
    """By its checkpoint alone: whatever is chosen now, and whatever a command that goes on leaves open."""
    half_around(tmp_path / "scene")
    if center == "none":
        write_poses(tmp_path / "scene", {name: np.array(pose) for name, pose in scene_poses().items()})
    first = make_datamanager(tmp_path / "scene", CenteringNerfstudioConfig(center_method=center))
    state = first.describe().state()
    assert state["center"] == ("focus" if center == "auto" else center)
    if center == "poses":
        # Of a version that chose nothing, and said nothing of it.
        del state["center"]
    said.clear()
    for resumes in (True, False):
        trained = TrainedData.from_state(state, resumes)
        for parser in (CenteringNerfstudioConfig(), MultiscaleDataParserConfig(scales=(1,))):
            again = make_datamanager(tmp_path / "scene", parser, trained=trained)
            assert torch.equal(cameras_of(again), cameras_of(first))
            assert again.describe().center == state.get("center", "poses")
    assert said == []


@pytest.mark.parametrize("asked", ["auto", "poses"])
def test_what_is_asked_for_is_told_from_what_is_left_open(asked):
    options = [] if asked == "auto" else ["--center-method", asked]
    for name, plain in (("nerfstudio-data", NerfstudioDataParserConfig), ("colmap", ColmapDataParserConfig)):
        config = tyro.cli(ZipNerfDataManagerConfig, args=[name, *options]).dataparser
        assert isinstance(config, plain) and config.center_method == asked
        same = settled_source(config, "focus")
        assert same == plain(center_method="focus" if asked == "auto" else asked) and type(same) is plain
    assert tyro.cli(ZipNerfDataManagerConfig, args=[]).dataparser == CenteringNerfstudioConfig()
