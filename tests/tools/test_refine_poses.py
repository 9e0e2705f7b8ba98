"""The copy of a scene whose poses and lens its photographs have mended."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from _photos import FOCAL, HEIGHT, WIDTH, camera_poses, write_photos
from PIL import Image

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.functional.similarity import align_cameras, move_cameras, pose_errors
from zipnerf_ns.tools.disturb_poses import disturb_meta
from zipnerf_ns.tools.refine_poses import main

COUNT = 7
STRANGER = "taken/photo_9.png"


def write_disturbed(folder: Path) -> dict:
    """Photographs two degrees and 2% off with a lens 1% off, and one that shows something else; each has a mask."""
    write_photos(folder / "taken", COUNT)
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / STRANGER)
    mask = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    mask[:20] = 0
    Image.fromarray(mask).save(folder / "mask.png")
    names = [*(f"taken/photo_{index}.jpg" for index in range(COUNT)), STRANGER]
    frames = [
        {"file_path": name, "mask_path": "mask.png", "transform_matrix": [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]}
        for name, pose in zip(names, camera_poses(COUNT + 1), strict=True)
    ]
    for frame, pose in zip(frames, camera_poses(COUNT), strict=False):
        frame["transform_matrix"][:3] = pose.tolist()
    lens = {"camera_model": "OPENCV", "fl_x": 1.01 * FOCAL, "fl_y": 1.01 * FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    splits = {"train_filenames": names[1:], "val_filenames": names[:1], "test_filenames": names[:1]}
    meta = disturb_meta({**lens, "w": WIDTH, "h": HEIGHT, "frames": frames, **splits}, 2.0, 2.0, seed=1)
    (folder / "transforms.json").write_text(json.dumps(meta))
    return meta


def matrices(meta: dict) -> dict[str, torch.Tensor]:
    return {frame["file_path"]: torch.tensor(frame["transform_matrix"]).double()[:3] for frame in meta["frames"]}


def test_poses_and_lens_are_mended_in_the_frame_of_the_scene(tmp_path: Path, capsys):
    pytest.importorskip("pycolmap", reason="the package pycolmap is not installed")
    scene, output = tmp_path / "scene", tmp_path / "refined"
    given_meta = write_disturbed(scene)
    main([str(scene), str(output)])
    said = capsys.readouterr().out
    assert f"{COUNT} of {COUNT + 1} cameras refined: turned by " in said
    assert f"as given: {STRANGER} shows nothing that another one shows" in said
    meta = json.loads((output / "transforms.json").read_text())
    given, found = matrices(given_meta), matrices(meta)
    assert torch.equal(found.pop(STRANGER), given.pop(STRANGER)) and list(found) == list(given)
    truth = torch.from_numpy(camera_poses(COUNT))
    before, after = (
        torch.stack(pose_errors(poses, move_cameras(align_cameras(truth, poses), truth))).mean(dim=-1)
        for poses in (torch.stack(list(each.values())) for each in (given, found))
    )
    assert (after < 0.15 * before).all(), f"{before} became {after}"
    # Its own frame and scale, as far as poses that are off tell them.
    scale, rotation, _ = align_cameras(torch.stack(list(given.values())), torch.stack(list(found.values())))
    assert float(scale) == pytest.approx(1.0, abs=1e-3) and torch.allclose(rotation, torch.eye(3).double(), atol=1e-3)
    for frame in meta["frames"][:COUNT]:
        assert frame["fl_x"] == pytest.approx(FOCAL, rel=0.005)
    parsed = NerfstudioDataParserConfig(data=output, downscale_factor=1).setup().get_dataparser_outputs("train")
    assert len(parsed.image_filenames) == len(parsed.mask_filenames) == COUNT
    assert [path.name for path in parsed.image_filenames] == [Path(name).name for name in meta["train_filenames"]]


@pytest.mark.parametrize(
    ("folder", "model", "expected"),
    [
        ("taken", "EQUIRECTANGULAR", "cameras of model EQUIRECTANGULAR cannot be refined"),
        ("../taken", "OPENCV", "lies outside of"),
    ],
)
def test_what_cannot_be_refined_is_told(tmp_path: Path, capsys, folder: str, model: str, expected: str):
    scene = tmp_path / "scene"
    scene.mkdir()
    (scene / folder).mkdir()
    lens = {"camera_model": model, "fl_x": 40.0, "fl_y": 40.0, "cx": 20.0, "cy": 15.0, "w": 40, "h": 30}
    frames = []
    for index, pose in enumerate(camera_poses(3)):
        name = f"{folder}/{index}.png"
        Image.new("RGB", (40, 30)).save(scene / name)
        frames.append({"file_path": name, "transform_matrix": [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]})
    (scene / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
    assert main([str(scene), str(tmp_path / "refined")]) == 1
    assert expected in capsys.readouterr().err and not (tmp_path / "refined").exists()
