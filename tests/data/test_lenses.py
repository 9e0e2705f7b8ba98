"""What is possible of a lens or a scale, but hardly right, is said; what nothing can be seen with is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _scenes import assert_clear, make_datamanager, pose, read_meta, write_blender_scene, write_meta
from _statements import FOCAL, HEIGHT, OWN_FRAME, WIDTH, Change, changed, frames, top, write_plain
from PIL import Image

from nerfstudio.cameras import camera_utils
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data import checks
from zipnerf_ns.errors import InputError

ODD: dict[str, tuple[Change, tuple[str, ...]]] = {
    "lens of twice the size": (
        top(fl_x=2 * FOCAL, fl_y=2 * FOCAL, cx=WIDTH, cy=HEIGHT), ("'cx' and 'cy' are far", "another size")
    ),
    "center of a crop": (top(cx=0.2 * WIDTH), ("'cx' and 'cy' are far", "cropped")),
    "stretched": (frames(fl_x=FOCAL, fl_y=0.7 * FOCAL), ("'fl_x' and 'fl_y' differ", "images/002.png and 8 more")),
    "lens that folds its border": (top(k1=-1.0), ("towards the border", "cannot be undone", "Undistort")),
}  # fmt: skip
PLAIN: dict[str, Change] = {
    "shifted": top(cx=0.7 * WIDTH),
    "nearly square pixels": top(fl_y=1.05 * FOCAL),
    "barrel": top(k1=-0.3, k2=0.1, p1=1e-3),
    "pincushion": top(k1=0.5),
    "fisheye": top(camera_model="OPENCV_FISHEYE", k1=-0.05, k2=0.01),
}
BENT: dict[str, Change] = {
    "words for numbers": top(k1=1e6, k2=1e9),
    "beyond all": top(k1=1e300),
    "pixels for shares": top(k1=-25.0),
    "one frame": lambda meta, folder: meta["frames"][0].update(p1=9.0),
}


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(checks, "say", lines.append)
    return lines


@pytest.mark.parametrize("name", ODD)
def test_what_is_hardly_right_of_a_lens_is_said(tmp_path: Path, said, name):
    change, expected = ODD[name]
    make_datamanager(changed(tmp_path / "scene", change), NerfstudioDataParserConfig(**OWN_FRAME))
    # One line for what is trained on, one for what is held out.
    assert len(said) == 2 and str(tmp_path / "scene") in said[0]
    assert_clear(said[0], expected)


def turned_around(meta: dict[str, Any], folder: Path) -> None:
    for frame in meta["frames"]:
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])).tolist()


@pytest.mark.parametrize(("change", "is_said"), [(turned_around, True), (lambda meta, folder: None, False)])
def test_cameras_that_turn_their_backs_on_the_scene_are_said(tmp_path: Path, said, change: Change, is_said: bool):
    """As poses do that are written with the axes of OpenCV, on which a training makes fog."""
    make_datamanager(changed(tmp_path / "scene", change), NerfstudioDataParserConfig(**OWN_FRAME))
    assert [line for line in said if "look away" in line] == said and bool(said) == is_said
    if said:
        assert_clear(said[0], (str(tmp_path / "scene"), "outwards", "OpenCV"))


@pytest.mark.parametrize("name", PLAIN)
def test_what_lenses_have_is_not_said(tmp_path: Path, said, name):
    make_datamanager(changed(tmp_path / "scene", PLAIN[name]), NerfstudioDataParserConfig(**OWN_FRAME))
    assert said == []


@pytest.mark.parametrize("name", BENT)
def test_what_no_lens_does_is_refused(tmp_path: Path, name):
    scene = changed(tmp_path / "scene", BENT[name])
    with pytest.raises(InputError) as caught:
        make_datamanager(scene)
    assert_clear(str(caught.value), (str(scene), "no lens distorts as is said of", "images/000.png"))


def test_the_error_of_an_undistorted_point_is_that_of_its_distorted_place():
    """Brute force: points are distorted by OpenCV's formula; where that turns back, nothing is undone."""
    found = torch.tensor([[0.1, 0.2], [0.5, -0.3], [-0.9, 0.1]], dtype=torch.float64)
    lens = torch.tensor([[-0.2, 0.03, 0.0, 0.0, 1e-3, -2e-3]], dtype=torch.float64)
    x, y = found.unbind(dim=-1)
    square = x**2 + y**2
    factor = 1.0 + square * (lens[0, 0] + square * lens[0, 1])
    p1, p2 = lens[0, 4:]
    x_there = x * factor + 2 * p1 * x * y + p2 * (square + 2 * x**2)
    y_there = y * factor + 2 * p2 * x * y + p1 * (square + 2 * y**2)
    distorted = torch.stack([x_there, y_there], dim=-1)
    undone = camera_utils.radial_and_tangential_undistort(distorted[None], lens[None])
    torch.testing.assert_close(undone[0], found)
    assert float(checks._distortion_error(distorted[None], lens[None])) < 1e-9
    # With k1 = -1 no radius beyond 2 / sqrt(27) = 0.385 is reached; the turning point is at 1 / sqrt(3).
    folding = torch.tensor([[[-1.0, 0, 0, 0, 0, 0]]], dtype=torch.float64)
    for radius, is_reached in ((0.36, True), (0.40, False)):
        error = float(checks._distortion_error(torch.tensor([[[radius, 0.0]]], dtype=torch.float64), folding))
        assert (error < 1e-6) == is_reached


def panorama(meta: dict[str, Any], folder: Path) -> None:
    """Images twice as wide as high, all around, without numbers of a lens."""
    for index, frame in enumerate(meta["frames"]):
        Image.new("RGB", (32, 16), (index, 0, 0)).save(folder / frame["file_path"])
    for key in ("fl_x", "fl_y", "cx", "cy"):
        del meta[key]
    meta.update(camera_model="EQUIRECTANGULAR", w=32, h=16)


def test_a_panorama_needs_no_focal_length(tmp_path: Path):
    scene = changed(tmp_path / "scene", panorama)
    cameras = make_datamanager(scene).train_dataset.cameras
    assert cameras.fx.unique().tolist() == cameras.fy.unique().tolist() == [16.0]
    write_meta(scene, {**read_meta(scene), "fl_x": 16.0, "fl_y": 16.0})
    make_datamanager(scene)
    write_meta(scene, {**read_meta(scene), "fl_x": 35.2, "fl_y": 35.2})
    with pytest.raises(InputError) as caught:
        make_datamanager(scene)
    assert_clear(str(caught.value), ("frame 0", "'fl_x' or 'fl_y' is not 16", "32x16 pixels shows all around"))


def scaled(folder: Path, factor: float) -> None:
    for path in folder.glob("transforms*.json"):
        meta = read_meta(folder, path.name)
        for frame in meta["frames"]:
            matrix = np.array(frame["transform_matrix"])
            matrix[:3, 3] *= factor
            frame["transform_matrix"] = matrix.tolist()
        write_meta(folder, meta, path.name)


BOUNDED = BlenderDataParserConfig()
UNSCALED = NerfstudioDataParserConfig(auto_scale_poses=False)


@pytest.mark.parametrize("parser", [BOUNDED, UNSCALED, InstantNGPDataParserConfig()])
@pytest.mark.parametrize(
    "factor,right", [(1.0, None), (100.0, "said"), (0.01, "said"), (1e5, "refused"), (1e-5, "refused")]
)
def test_a_scene_of_another_size_than_the_models_space_is_said(
    tmp_path: Path, monkeypatch, parser: DataParserConfig, factor: float, right: str | None
):
    lines: list[str] = []
    monkeypatch.setattr("zipnerf_ns.data.poses.say", lines.append)
    scene = write_blender_scene(tmp_path / "scene") if parser is BOUNDED else write_plain(tmp_path / "scene")
    scaled(scene, factor)
    if right == "refused":
        with pytest.raises(InputError) as caught:
            make_datamanager(scene, parser)
        lines.append(str(caught.value))
    else:
        make_datamanager(scene, parser)
    assert len(lines) == (right is not None)
    for line in lines:
        assert_clear(line, (str(scene), "cameras reach", "--scale-factor, --scene-scale"))


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_poses_that_are_scaled_anyway_may_be_in_any_unit(tmp_path: Path, factor: float):
    scene = write_plain(tmp_path / "scene")
    before = make_datamanager(scene).train_dataset.cameras.camera_to_worlds
    scaled(scene, factor)
    found = make_datamanager(scene).train_dataset.cameras.camera_to_worlds
    torch.testing.assert_close(found, before, rtol=0, atol=1e-5)
    assert np.linalg.norm(pose(0, 12)) > 1.0


@pytest.mark.parametrize("factor,patch", [(0.01, 1), (0.0, 1), (1.0, 17), (0.5, 9)])
def test_images_smaller_than_what_is_drawn_of_them_are_refused(tmp_path: Path, factor: float, patch: int):
    scene = write_plain(tmp_path / "scene")
    with pytest.raises(InputError) as caught:
        make_datamanager(scene, camera_res_scale_factor=factor, patch_size=patch)
    assert_clear(str(caught.value), (f"camera_res_scale_factor {factor}", f"patch_size {patch}"))


@pytest.mark.parametrize("name", ["train_num_rays_per_batch", "eval_num_rays_per_batch", "patch_size"])
def test_of_nothing_a_step_draws_nothing(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=f"{name} is 0: it must be at least 1"):
        make_datamanager(write_plain(tmp_path / "scene"), **{name: 0})


@pytest.mark.parametrize("name", ["train_num_images_to_sample_from", "eval_num_images_to_sample_from"])
@pytest.mark.parametrize("number", [0, -2])
def test_of_no_image_a_step_draws_nothing(tmp_path: Path, name: str, number: int):
    with pytest.raises(InputError, match=f"{name} is {number}: it must be -1 .all images. or at least 1"):
        make_datamanager(write_plain(tmp_path / "scene"), **{name: number})
