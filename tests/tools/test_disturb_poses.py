"""The copy of a scene whose poses are wrong by a known amount."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from _scenes import folder_bytes, make_datamanager, read_meta, write_meta, write_scene

from zipnerf_ns.errors import InputError
from zipnerf_ns.functional.similarity import pose_errors
from zipnerf_ns.tools.disturb_poses import disturb_meta, disturb_scene, main


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    folder = write_scene(tmp_path / "scene")
    write_meta(folder, read_meta(folder), "transforms_multiscale.json")
    return folder


def poses(meta: dict) -> torch.Tensor:
    return torch.tensor([frame["transform_matrix"] for frame in meta["frames"]], dtype=torch.float64)[:, :3]


def errors(scene: Path, output: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return pose_errors(poses(read_meta(output)), poses(read_meta(scene)))


def mean_distance(scene: Path) -> float:
    positions = poses(read_meta(scene))[:, :, 3]
    return float((positions - positions.mean(dim=0)).norm(dim=-1).mean())


def test_every_pose_is_off_by_what_was_asked_for(scene, tmp_path):
    before = folder_bytes(scene)
    output = disturb_scene(scene, tmp_path / "off", degrees=2.0, percent=3.0, seed=4)
    degrees, distances = errors(scene, output)
    torch.testing.assert_close(degrees, torch.full_like(degrees, 2.0))
    torch.testing.assert_close(distances, torch.full_like(distances, 0.03 * mean_distance(scene)))
    moved = poses(read_meta(output))
    rotations = moved[:, :, :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand_as(rotations))
    # Each in a direction of its own, or the whole scene would merely have moved.
    shifts = (moved - poses(read_meta(scene)))[:, :, 3]
    assert float(torch.nn.functional.cosine_similarity(shifts[:1], shifts[1:]).max()) < 0.99
    assert folder_bytes(scene) == before


def test_the_seed_says_which(scene):
    meta = read_meta(scene)
    first, again, other = (poses(disturb_meta(meta, 1.0, 1.0, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_held_out_poses_can_be_left_and_training_ones_are_the_same_either_way(scene):
    meta = read_meta(scene)
    everything, training = (poses(disturb_meta(meta, 1.0, 1.0, 0, splits)) for splits in ("all", "train"))
    is_training = torch.tensor([frame["file_path"] in meta["train_filenames"] for frame in meta["frames"]])
    assert torch.equal(training[is_training], everything[is_training]) and not is_training.all()
    assert torch.equal(training[~is_training], poses(meta)[~is_training])


def test_nothing_else_of_the_scene_changes(scene, tmp_path):
    output = disturb_scene(scene, tmp_path / "off")
    before, after = read_meta(scene), read_meta(output)
    for meta in (before, after):
        for frame in meta["frames"]:
            del frame["transform_matrix"]
    assert after == before


def test_files_are_linked_and_other_poses_left_behind(scene, tmp_path):
    output = disturb_scene(scene, tmp_path / "off")
    assert sorted(path.name for path in output.iterdir()) == ["images", "transforms.json"]
    assert (output / "images").is_symlink()
    for image in (scene / "images").iterdir():
        assert (output / "images" / image.name).read_bytes() == image.read_bytes()


def test_where_there_are_no_links_files_are_copied(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", lambda *_, **__: (_ for _ in ()).throw(OSError("no right")))
    output = disturb_scene(scene, tmp_path / "off")
    assert not (output / "images").is_symlink()
    for image in (scene / "images").iterdir():
        assert (output / "images" / image.name).read_bytes() == image.read_bytes()


def test_nerfstudio_reads_it(scene, tmp_path):
    manager = make_datamanager(disturb_scene(scene, tmp_path / "off"))
    assert len(manager.train_dataset) == 6 and len(manager.eval_dataset) == 2


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_is_overwritten(scene, tmp_path, kind):
    output = tmp_path / "off"
    if kind == "file":
        output.write_text("mine")
    elif kind == "dangling link":
        output.symlink_to(tmp_path / "nowhere")
    else:
        output.mkdir()
        if kind == "folder":
            (output / "mine").write_text("mine")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(InputError, match="exists already"):
        disturb_scene(scene, output)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("options", "message"), [
    ({"degrees": -1.0}, "--degrees is -1"),
    ({"degrees": float("nan")}, "--degrees is nan"),
    ({"percent": float("inf")}, "--percent is inf"),
    ({"seed": -1}, "--seed is -1"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(scene, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        disturb_scene(scene, tmp_path / "off", **options)
    assert not (tmp_path / "off").exists()


def test_a_scene_without_a_split_says_what_to_do(scene, tmp_path):
    meta = read_meta(scene)
    del meta["train_filenames"]
    write_meta(scene, meta)
    with pytest.raises(InputError, match="train_filenames.*--splits all"):
        disturb_scene(scene, tmp_path / "off", splits="train")
    # A failed run leaves nothing beside its place either.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene"]
    assert len(read_meta(disturb_scene(scene, tmp_path / "off"))["frames"]) == 8


def test_a_place_within_the_scene_is_refused(scene):
    with pytest.raises(InputError, match="within the scene"):
        disturb_scene(scene, scene / "off")


def test_command(scene, tmp_path, capsys):
    main([str(scene), str(tmp_path / "off"), "--degrees", "0.5", "--percent", "0", "--splits", "train", "--seed", "3"])
    assert str(tmp_path / "off") in capsys.readouterr().out
    degrees, distances = errors(scene, tmp_path / "off")
    assert np.unique(degrees.numpy().round(6)).tolist() == [0.0, 0.5] and float(distances.max()) == 0.0
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "off2")]) == 1
    assert capsys.readouterr().err.startswith("Error: ")
    assert json.loads((tmp_path / "off/transforms.json").read_text())["frames"]
