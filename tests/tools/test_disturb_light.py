"""The copy of a scene whose training photos are in changed light."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from _scenes import folder_bytes, make_datamanager, read_meta, write_meta, write_scene
from PIL import Image

from zipnerf_ns.data.transforms import read_transforms
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.disturb_light import disturb_light, main
from zipnerf_ns.tools.scene.light import relight


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) / 255.0


def test_training_photos_are_in_the_light_that_is_stated_and_others_as_they_were(scene, tmp_path):
    before = folder_bytes(scene)
    output = disturb_light(scene, tmp_path / "lit")
    old, new = read_meta(scene), read_meta(output)
    assert [frame["transform_matrix"] for frame in new["frames"]] == [f["transform_matrix"] for f in old["frames"]]
    gains = []
    for earlier, frame in zip(old["frames"], new["frames"], strict=True):
        if earlier["file_path"] in old["train_filenames"]:
            assert frame["file_path"] in new["train_filenames"]
            gains.append(frame["light_gains"])
            expected = relight(pixels(scene / earlier["file_path"]), np.array(gains[-1]))
            np.testing.assert_allclose(pixels(output / frame["file_path"]), expected, atol=0.51 / 255.0)
        else:
            assert frame == earlier
    assert len(gains) == 6 and np.abs(np.log2(gains)).max() > 0.3
    np.testing.assert_allclose(np.log(gains).mean(axis=0), 0.0, atol=1e-12)
    assert new["val_filenames"] == old["val_filenames"] and folder_bytes(scene) == before
    assert read_transforms(output / "transforms.json").warnings == []
    manager = make_datamanager(output)
    assert len(manager.train_dataset) == 6 and len(manager.eval_dataset) == 2


def test_transparency_stays(scene, tmp_path):
    name = read_meta(scene)["train_filenames"][0]
    picture = np.zeros((*pixels(scene / name).shape[:2], 4), dtype=np.uint8)
    picture[:, 3:] = (200, 100, 50, 120)
    Image.fromarray(picture).save(scene / name)
    output = disturb_light(scene, tmp_path / "lit")
    found = pixels(output / read_meta(output)["train_filenames"][0])
    np.testing.assert_array_equal(found[..., 3], picture[..., 3] / 255.0)
    assert (found[:, 3:, :3] != picture[:, 3:, :3] / 255.0).any() and not found[:, :3].any()


def test_the_seed_and_the_stops_say_how(scene, tmp_path):
    first, again, other, none = (
        read_meta(disturb_light(scene, tmp_path / name, stops, seed))["frames"]
        for name, stops, seed in (("a", 0.8, 1), ("b", 0.8, 1), ("c", 0.8, 2), ("d", 0.0, 1))
    )
    assert first == again != other
    assert {gain for frame in none for gain in frame.get("light_gains", [1.0])} == {1.0}


def test_what_cannot_be_done_is_said(scene, tmp_path, capsys):
    for stops in (-1.0, 5.0, float("nan")):
        with pytest.raises(InputError, match="--stops is"):
            disturb_light(scene, tmp_path / "lit", stops=stops)
    with pytest.raises(InputError, match="within the scene"):
        disturb_light(scene, scene / "lit")
    meta = read_meta(scene)
    del meta["train_filenames"]
    write_meta(scene, meta)
    assert main([str(scene), str(tmp_path / "lit")]) == 1
    assert "has no train_filenames" in capsys.readouterr().err
    assert not (tmp_path / "lit").exists()
