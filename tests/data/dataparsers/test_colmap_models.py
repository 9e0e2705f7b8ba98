"""COLMAP's models are found, checked and compared before they are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import (
    assert_clear,
    make_datamanager,
    write_scene,
)
from _statements import (
    COUNT,
    OWN_FRAME,
)

from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.errors import InputError


def write_colmap(folder: Path, model: str = "sparse/0", lenses: tuple[str, ...] = ("PINHOLE 24 16 26.4 26.4 12 8",)):
    """A model in text form, its images in turn of its cameras."""
    write_scene(folder, COUNT)
    (folder / "transforms.json").unlink()
    (folder / model).mkdir(parents=True, exist_ok=True)
    cameras = [f"{number} {lens}\n" for number, lens in enumerate(lenses, 1)]
    poses = [f"{index + 1} 1 0 0 0 {index} 0 0" for index in range(COUNT)]
    images = [f"{each} {index % len(lenses) + 1} {index:03d}.png\n\n" for index, each in enumerate(poses)]
    for name, lines in (("cameras", cameras), ("images", images), ("points3D", [])):
        (folder / model / f"{name}.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("model", ["sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "."])
def test_a_colmap_model_is_found(tmp_path, model):
    scene = write_colmap(tmp_path / "scene", model)
    parser = ColmapDataParserConfig(assume_colmap_world_coordinate_convention=False, **OWN_FRAME)
    manager = make_datamanager(scene, parser)
    assert (len(manager.train_dataset), len(manager.eval_dataset)) == (10, 2)
    torch.testing.assert_close(manager.train_dataset.cameras.fx, torch.full((10, 1), 26.4))
    numbers = torch.tensor([float(path.stem) for path in manager.train_dataset.image_filenames])
    torch.testing.assert_close(manager.train_dataset.cameras.camera_to_worlds[:, 0, 3], -numbers)


def test_a_folder_that_was_named_is_not_replaced(tmp_path):
    scene = write_colmap(tmp_path / "scene", "sparse")
    with pytest.raises(InputError, match="scene/mine holds no COLMAP model"):
        make_datamanager(scene, ColmapDataParserConfig(colmap_path=Path("mine")))


def test_lists_of_a_colmap_scene(tmp_path):
    """One list is enough; it is read as it was written, on Windows or elsewhere."""
    scene = write_colmap(tmp_path / "scene")
    (scene / "train_list.txt").write_text("\ufeff" + "".join(f"{index:03d}.png\r\n" for index in range(9)) + "\n")
    for split in ("val", "test"):
        manager = make_datamanager(scene, ColmapDataParserConfig(), test_mode=split)
        assert [path.stem for path in manager.eval_dataset.image_filenames] == ["009", "010", "011"]
    (scene / "test_list.txt").write_text("12.png")
    with pytest.raises(InputError, match="test_list.txt lists .*12.png, which COLMAP's model does not have"):
        make_datamanager(scene, ColmapDataParserConfig())


PINHOLE, FISHEYE = "PINHOLE 24 16 26.4 26.4 12 8", "OPENCV_FISHEYE 24 16 26.4 26.4 12 8 0.01 0 0 0"
COLMAP_REFUSED: dict[str, tuple[tuple[str, ...], Callable[[Path], Any], tuple[str, ...]]] = {
    "two lenses": ((PINHOLE, FISHEYE), lambda model: None,
                   ("cameras.txt mixes lenses", "1 (PINHOLE) and 2 (OPENCV_FISHEYE)", "image_undistorter")),
    "FULL_OPENCV": (("FULL_OPENCV 24 16 26.4 26.4 12 8 -0.1 0.01 0 0 0.001 0.1 0.01 0",), lambda model: None,
                    ("camera 1 has the model FULL_OPENCV", "image_undistorter")),
    "few parameters": (("PINHOLE 24 16 26.4",), lambda model: None, ("camera 1", "PINHOLE with 1 parameters")),
    "NaN": (("PINHOLE 24 16 nan 26.4 12 8",), lambda model: None, ("camera 1: 'fl_x' is nan",)),
    "words": (("PINHOLE 24 16 wide 26.4 12 8",), lambda model: None, ("cameras.txt cannot be read", "wide")),
    "no images": ((PINHOLE,), lambda model: (model / "images.txt").unlink(), ("images.txt is missing", "Export")),
    "no image placed": ((PINHOLE,), lambda model: (model / "images.txt").write_text(""), ("images.txt holds none",)),
    "no camera": ((PINHOLE,), lambda model: (model / "cameras.txt").unlink(), ("no COLMAP model", "--colmap-path")),
    "camera of another model": (
        (PINHOLE, PINHOLE), lambda model: (model / "cameras.txt").write_text(f"1 {PINHOLE}\n"),
        ("001.png", "a camera that cameras.txt lacks"),
    ),
    "NaN pose": (
        (PINHOLE,), lambda model: (model / "images.txt").write_text("1 1 0 0 0 nan 0 0 1 000.png\n\n"),
        ("images.txt: 000.png has NaN in its pose", "nan"),
    ),
    "quaternion of length 2": (
        (PINHOLE,), lambda model: (model / "images.txt").write_text("1 2 0 0 0 0 0 0 1 000.png\n\n"),
        ("000.png", "2.0 0.0"),
    ),
    "broken binary": (
        (PINHOLE,), lambda model: [path.unlink() for path in model.glob("*.txt")]
        and [(model / f"{name}.bin").write_bytes(b"\1\0\0\0\0\0\0\0\1") for name in ("cameras", "images")],
        ("cameras.bin cannot be read", "Export"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COLMAP_REFUSED)
def test_a_colmap_model_is_refused(tmp_path, name):
    lenses, breaking, expected = COLMAP_REFUSED[name]
    scene = write_colmap(tmp_path / "scene", lenses=lenses)
    breaking(scene / "sparse/0")
    with pytest.raises(InputError) as caught:
        make_datamanager(scene, ColmapDataParserConfig())
    assert_clear(str(caught.value), (str(scene), *expected))


def test_two_forms_of_a_colmap_model_are_compared(tmp_path):
    scene = write_colmap(tmp_path / "scene")
    model = scene / "sparse/0"
    cameras, images, points = colmap.read_model(str(model), ".txt")
    colmap.write_model(cameras, images, points, str(model), ".bin")
    assert len(make_datamanager(scene, ColmapDataParserConfig()).train_dataset) == 10
    (model / "cameras.txt").write_text("1 PINHOLE 24 16 30 30 12 8\n")
    with pytest.raises(InputError, match="cameras.txt and cameras.bin are of different models"):
        make_datamanager(scene, ColmapDataParserConfig())


def test_a_second_colmap_model_is_told(tmp_path):
    scene = write_colmap(tmp_path / "scene")
    shutil.copytree(scene / "sparse/0", scene / "sparse/1")
    (scene / "sparse/1/images.txt").write_text("1 1 0 0 0 0 0 0 1 000.png\n\n")
    shutil.copytree(scene / "sparse/1", scene / "sparse/2")
    (scene / "sparse/2/images.txt").write_text("no model")
    (scene / "masks").mkdir()
    with CONSOLE.capture() as said:
        make_datamanager(scene, ColmapDataParserConfig())
    assert "0 with 12 images is read, 1 with 1, 2 with 0 not" in said.get()
    assert "--colmap-path sparse/NUMBER" in said.get()
    assert "masks is not used. Masks are read with --masks-path masks." in said.get()


