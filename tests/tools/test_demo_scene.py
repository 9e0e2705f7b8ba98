"""The written scene: its pictures at four scales, its cameras as nerfstudio reads them, what it never overwrites."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from _true_scene import cast_rays, surface_distance
from PIL import Image

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data.transforms import read_transforms
from zipnerf_ns.tools import demo_scene
from zipnerf_ns.tools.demo_scene import DOWNSCALES, main, write_scene
from zipnerf_ns.tools.scene.render import Pinhole, render_view, straight_alpha

TINY = dict(width=64, height=48, num_train=6, num_test=2, samples_per_pixel=4, seed=3)
TINIEST = dict(width=16, height=8, num_train=2, num_test=1, samples_per_pixel=1, seed=0)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("demo") / "scene", **TINY)


@pytest.fixture(scope="module")
def scene_rgba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("demo") / "scene", **TINY, rgba=True)


@pytest.fixture(scope="module")
def scene_far(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("demo") / "scene", **TINY, detail="far")


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_training_is_told_nothing_of_its_own_scene(scene, scene_rgba):
    for folder in (scene, scene_rgba):
        assert read_transforms(folder / "transforms.json").warnings == []


def picture(folder: Path, downscale: int, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / ("images" if downscale == 1 else f"images_{downscale}") / name)) / 255


def draw_again(meta: dict, frame: dict, rgba: bool = False, samples: int = TINY["samples_per_pixel"]) -> np.ndarray:
    pinhole = Pinhole(*(meta[key] for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")))
    pose, far = np.array(frame["transform_matrix"]), meta["demo_scene"]["detail"] == "far"
    picture = render_view(pose, pinhole, samples, frame["sample_seed"], rgba, far)
    return straight_alpha(picture) if rgba else picture


def area_mean(values: np.ndarray, cell: int) -> np.ndarray:
    """By its definition, a loop over cells."""
    rows, columns = values.shape[0] // cell, values.shape[1] // cell
    out = np.empty((rows, columns, values.shape[2]))
    for i in range(rows):
        for j in range(columns):
            block = values[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
            out[i, j] = block.astype(np.float64).mean(axis=(0, 1))
    return out


def assert_stored(stored: np.ndarray, exact: np.ndarray) -> None:
    """`stored` is `exact` rounded to 8 bits (a hundredth of a step for ties)."""
    assert stored.shape == exact.shape
    assert np.abs(stored - exact).max() <= 0.51 / 255


@pytest.mark.parametrize("downscale", DOWNSCALES)
def test_pictures_are_area_means_of_the_unrounded_render(scene: Path, scene_far: Path, downscale: int):
    for folder in (scene, scene_far):
        meta = read_json(folder / "transforms.json")
        for frame in meta["frames"][::3]:
            exact = draw_again(meta, frame)
            assert_stored(picture(folder, downscale, Path(frame["file_path"]).name), area_mean(exact, downscale))


def test_with_far_detail_every_camera_sees_the_horizon(scene_far: Path):
    """The horizontal direction that a camera is turned to is in its picture, with a tenth of the picture above it."""
    meta = read_json(scene_far / "transforms.json")
    for frame in meta["frames"]:
        _, _, back, eye = np.array(frame["transform_matrix"])[:3].T
        ahead = -back * [1.0, 1.0, 0.0]
        x, y, z = np.array(frame["transform_matrix"])[:3, :3].T @ ahead
        assert 0.1 * meta["h"] < meta["cy"] - meta["fl_y"] * y / -z < 0.5 * meta["h"]
        assert surface_distance(eye[None], include_ground=True)[0] > 0.5


@pytest.mark.parametrize("downscale", DOWNSCALES)
def test_transparent_pictures_average_premultiplied_colors(scene_rgba: Path, downscale: int):
    meta = read_json(scene_rgba / "transforms.json")
    frame = meta["frames"][4]
    exact = draw_again(meta, frame, rgba=True)
    mean = area_mean(np.concatenate([exact[..., :3] * exact[..., 3:], exact[..., 3:]], axis=-1), downscale)
    straight = np.concatenate([mean[..., :3] / np.maximum(mean[..., 3:], 1e-9), mean[..., 3:]], axis=-1)
    stored = picture(scene_rgba, downscale, Path(frame["file_path"]).name)
    assert_stored(stored, straight)
    assert stored[0, 0, 3] == 0 and stored[..., 3].max() == 1
    np.testing.assert_array_equal(stored[stored[..., 3] == 0], 0)


def test_cameras_look_at_the_origin_from_a_dome(scene: Path):
    """Orthonormal poses above the ground, at varied radius and height, upright, with the origin in every picture."""
    meta = read_json(scene / "transforms.json")
    poses = np.array([frame["transform_matrix"] for frame in meta["frames"]])
    rotations, eyes = poses[:, :3, :3], poses[:, :3, 3]
    np.testing.assert_allclose(
        rotations.transpose(0, 2, 1) @ rotations, np.broadcast_to(np.eye(3), (8, 3, 3)), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    np.testing.assert_array_equal(poses[:, 3], np.broadcast_to([0, 0, 0, 1], (8, 4)))
    radius = np.linalg.norm(eyes, axis=1)
    assert 2 <= radius.min() < radius.max() - 0.3 and radius.max() <= 3.1
    assert 0.2 < eyes[:, 2].min() < eyes[:, 2].max() - 0.5
    assert (rotations[:, 2, 1] > 0).all()
    assert surface_distance(eyes, include_ground=True).min() > 0.5
    local = np.einsum("nij,ni->nj", rotations, -eyes)
    assert (local[:, 2] < 0).all()
    x = meta["cx"] + meta["fl_x"] * local[:, 0] / -local[:, 2]
    y = meta["cy"] - meta["fl_y"] * local[:, 1] / -local[:, 2]
    assert (np.abs(x - meta["w"] / 2) < 0.25 * meta["w"]).all() and (np.abs(y - meta["h"] / 2) < 0.25 * meta["h"]).all()


def test_many_views_surround_the_scene():
    """At the default counts every octant of azimuth is taken, and no test view repeats a training view."""
    views = demo_scene._views(demo_scene.SceneSettings(256, 192, 48, 8, 1, 0, False))
    eyes = {s: np.array([v.camera_to_world[:, 3] for v in views if v.split == s]) for s in ("train", "test")}
    octants = np.floor(np.arctan2(eyes["train"][:, 1], eyes["train"][:, 0]) / (np.pi / 4))
    assert min(np.sum(octants == k) for k in range(-4, 4)) >= 4
    apart = np.linalg.norm(eyes["test"][:, None] - eyes["train"], axis=-1).min(axis=1)
    assert 0.01 < apart.min() and apart.max() < 1.0


def test_transforms_name_every_picture_once(scene: Path):
    meta, multi = (read_json(scene / name) for name in ("transforms.json", "transforms_multiscale.json"))
    names = [frame["file_path"] for frame in meta["frames"]]
    assert names == sorted(names) and len(set(names)) == 8
    assert (meta["w"], meta["h"], meta["cx"], meta["cy"]) == (64, 48, 32, 24)
    assert [meta[key] for key in ("k1", "k2", "p1", "p2")] == [0, 0, 0, 0] and meta["camera_model"] == "OPENCV"
    for content, number in ((meta, 8), (multi, 32)):
        train, val, test = (content[f"{split}_filenames"] for split in ("train", "val", "test"))
        assert test == val and not set(test) & set(train)
        assert sorted(train + test) == sorted(frame["file_path"] for frame in content["frames"])
        assert len(content["frames"]) == number and len(test) == number // 4
    for frame in multi["frames"]:
        assert Image.open(scene / frame["file_path"]).size == (frame["w"], frame["h"])
        assert frame["w"] * frame["downscale"] == 64 and frame["fl_x"] * frame["downscale"] == meta["fl_x"]
    full = {frame["file_path"]: frame["transform_matrix"] for frame in meta["frames"]}
    assert all(
        frame["transform_matrix"] == full[f"images/{Path(frame['file_path']).name}"] for frame in multi["frames"]
    )


def parse(data: Path, split: str, **options):
    """What nerfstudio makes of it, in the scene's own world."""
    own_world = dict(orientation_method="none", center_method="none", auto_scale_poses=False)
    return NerfstudioDataParserConfig(data=data, **own_world, **options).setup().get_dataparser_outputs(split)


def every_other_pixel(cameras: Cameras, index: int, offset: tuple[float, float]) -> np.ndarray:
    """The mean over 4x4 of nerfstudio's own rays in every other pixel, cast by us, moved by an offset in pixels."""
    height, width, fine = int(cameras.height[index]), int(cameras.width[index]), 4
    within = (torch.arange(fine) + 0.5) / fine
    y, x = ((torch.arange(0, size, 2)[:, None] + within).flatten() for size in (height, width))
    coords = torch.stack(torch.meshgrid(y + offset[0], x + offset[1], indexing="ij"), dim=-1)
    rays = cameras.generate_rays(camera_indices=index, coords=coords)
    color, _ = cast_rays(rays.origins.reshape(-1, 3).numpy(), rays.directions.reshape(-1, 3).numpy())
    return color.reshape(height // 2, fine, width // 2, fine, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("data", ["", "transforms_multiscale.json"])
@pytest.mark.parametrize("downscale", [1, 4])
def test_nerfstudio_sees_the_same_pictures(scene: Path, data: str, downscale: int):
    """Rays of nerfstudio's cameras for the written files, cast into the scene, give the written pictures."""
    outputs = parse(scene / data, "test", downscale_factor=1 if data else downscale)
    index = next(i for i, width in enumerate(outputs.cameras.width) if int(width) == 64 // downscale)
    stored = np.asarray(Image.open(outputs.image_filenames[index]))[::2, ::2] / 255
    errors = [
        np.sqrt(np.mean((every_other_pixel(outputs.cameras, index, offset) - stored) ** 2))
        for offset in ((0.0, 0.0), (0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))
    ]
    # What is left is the four samples of the picture and the sixteen here; half a pixel off is already far more.
    assert errors[0] < 0.035 and errors[0] < 0.7 * min(errors[1:])


def test_nerfstudio_finds_every_view_at_its_scale(scene: Path):
    train = parse(scene / "transforms_multiscale.json", "train")
    assert len(train.image_filenames) == 24
    for name, camera in zip(train.image_filenames, train.cameras, strict=True):
        assert Image.open(name).size == (int(camera.width), int(camera.height))
        assert float(camera.fx) * (64 // int(camera.width)) == pytest.approx(float(train.cameras.fx.max()), rel=1e-6)


def test_same_seed_same_files_and_two_processes_change_nothing(tmp_path: Path):
    one, two = write_scene(tmp_path / "one", **TINIEST), write_scene(tmp_path / "two", **TINIEST, workers=2)
    other = write_scene(tmp_path / "other", **{**TINIEST, "seed": 1})
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 2 + 4 * 3
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    assert all((one / file).read_bytes() != (other / file).read_bytes() for file in files)


def test_same_settings_are_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_scene(tmp_path / "scene", **TINIEST)
    # As those are that were written before there was a choice.
    meta = read_json(folder / "transforms.json")
    assert meta["demo_scene"].pop("detail") == "near"
    (folder / "transforms.json").write_text(json.dumps(meta))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert write_scene(folder, **TINIEST) == folder
    assert "already holds this scene" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_nothing_is_overwritten(tmp_path: Path):
    folder = write_scene(tmp_path / "scene", **TINIEST)
    with pytest.raises(FileExistsError, match="seed 0 instead of 1; name a new folder"):
        write_scene(folder, **{**TINIEST, "seed": 1})
    with pytest.raises(FileExistsError, match="rgba False instead of True"):
        write_scene(folder, **TINIEST, rgba=True)
    with pytest.raises(FileExistsError, match="detail near instead of far"):
        write_scene(folder, **TINIEST, detail="far")
    (folder / "images_4" / "test_0000.png").unlink()
    with pytest.raises(FileNotFoundError, match="test_0000.png is missing; remove"):
        write_scene(folder, **TINIEST)
    for content in ("not json", "[]", '{"frames": []}'):
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        (foreign / "transforms.json").write_text(content)
        with pytest.raises(FileExistsError, match="does not hold a scene of this tool"):
            write_scene(foreign, **TINIEST)
        assert (foreign / "transforms.json").read_text() == content
        shutil.rmtree(foreign)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        write_scene(tmp_path / "file", **TINIEST)
    assert (tmp_path / "file").read_text() == "mine"


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, write_view = tmp_path / "parent" / "scene", demo_scene._write_view

    def interrupted(folder, pinhole, settings, view):
        write_view(folder, pinhole, settings, view)
        if view.split == "train":
            raise KeyboardInterrupt

    monkeypatch.setattr(demo_scene, "_write_view", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_scene(target, **TINIEST)
    assert list(target.parent.iterdir()) == []
    monkeypatch.undo()
    target.mkdir()
    assert write_scene(target, **TINIEST) == target and (target / "transforms.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 60}, "width 60 does not divide by 8"),
        ({"height": 0}, "height 0 does not divide by 8"),
        ({"num_test": 0}, "num_test is 0"),
        ({"samples_per_pixel": 0}, "samples_per_pixel is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"rgba": True, "detail": "far"}, "rgba leaves out all that is far"),
    ],
)
def test_wrong_numbers_are_named(tmp_path: Path, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write_scene(tmp_path / "scene", **{**TINIEST, **change})
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sizes = ["--width", "16", "--height", "8", "--num-train", "2", "--num-test", "1", "--samples-per-pixel", "1"]
    main([str(tmp_path / "scene"), *sizes, "--rgba", "--workers", "1"])
    out = capsys.readouterr().out
    assert "view 3 of 3" in out and "s left" in out and str(tmp_path / "scene") in out
    assert Image.open(tmp_path / "scene" / "images" / "test_0000.png").mode == "RGBA"
    assert main([str(tmp_path / "scene"), *sizes]) == 1
    assert capsys.readouterr().err.startswith("Error: ")
