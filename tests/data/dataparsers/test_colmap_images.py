"""COLMAP's photographs above Nerfstudio's limit are reduced where it would ask on a terminal."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
from _scenes import make_datamanager, named_pixels, write_colmap_scene
from PIL import Image

from nerfstudio.data.dataparsers import colmap_dataparser
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig

from zipnerf_ns.data.dataparsers import colmap_images
from zipnerf_ns.errors import InputError

SIZE = (51, 34)
"""Of photographs, pixels; neither side has a whole fourth."""


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A COLMAP model of photographs four times as large as the limit, in a batch job."""

    def ask(*_: object, **__: object) -> str:
        raise EOFError("EOF when reading a line")

    monkeypatch.setattr(builtins, "input", ask)
    for module in (colmap_dataparser, colmap_images):
        monkeypatch.setattr(module, "MAX_AUTO_RESOLUTION", 13)
    write_colmap_scene(tmp_path / "scene", ".bin", size=SIZE)
    return tmp_path / "scene"


@pytest.mark.parametrize(("rounding", "size"), [("floor", (12, 8)), ("round", (13, 9)), ("ceil", (13, 9))])
def test_photographs_are_reduced_and_cameras_with_them(scene, rounding, size):
    manager = make_datamanager(scene, ColmapDataParserConfig(downscale_rounding_mode=rounding))
    dataset = manager.train_dataset
    assert {path.parent.name for path in dataset.image_filenames} == {"images_4"}
    assert len(list((scene / "images_4").iterdir())) == 10
    camera = dataset.cameras[0]
    assert (int(camera.width), int(camera.height)) == dataset.sizes[0] == size
    assert (float(camera.fx), float(camera.cx)) == (26.0 / 4, 12.0 / 4)
    # The mean of the squares that the pixels cover.
    number = int(dataset.image_filenames[0].stem.split("_")[1])
    squares = named_pixels(number, *SIZE)[:32, :48].reshape(8, 4, 12, 4, 3).mean(axis=(1, 3))
    assert np.abs(dataset.get_numpy_image(0)[:8, :12] - squares).max() <= (0.5 if rounding == "floor" else 2.0)


def test_what_is_there_is_taken_and_what_is_missing_is_written(scene, monkeypatch):
    """As after an interruption, or where somebody has reduced them otherwise; masks by their nearest pixel."""
    (scene / "masks").mkdir()
    for index in range(10):
        mask = np.zeros(SIZE[::-1], np.uint8)
        mask[:16] = 255
        Image.fromarray(mask).save(scene / f"masks/frame_{index}.png")
    (scene / "images_4").mkdir()
    Image.new("RGB", (12, 8), (90, 90, 90)).save(scene / "images_4/frame_1.png")
    lines: list[str] = []
    monkeypatch.setattr("zipnerf_ns.data.dataparsers.reduction.say", lines.append)
    manager = make_datamanager(scene, ColmapDataParserConfig(masks_path=Path("masks")))
    (line,) = lines
    assert "images_4/frame_1.png: of 1 reduced images that were compared with their originals, 1 show" in line
    pictures = {path.name: index for index, path in enumerate(manager.train_dataset.image_filenames)}
    assert (manager.train_dataset.get_numpy_image(pictures["frame_1.png"]) == 90).all()
    used = manager.train_dataset.get_data(0)["mask"][..., 0]
    assert used[:4].all() and not used[4:].any()


def test_jpeg_photographs_stay_jpeg(tmp_path):
    y, x = np.mgrid[:60, :80]
    Image.fromarray(np.stack([2 * x, 3 * y, x + y], axis=-1).astype(np.uint8)).save(tmp_path / "a.JPG", quality=98)
    colmap_images._reduce(tmp_path / "a.JPG", tmp_path / "images_2/a.JPG", 2, "floor", Image.Resampling.BOX)
    with Image.open(tmp_path / "images_2/a.JPG") as image:
        assert image.format == "JPEG" and image.size == (40, 30)
        expected = np.stack([2 * x, 3 * y, x + y], axis=-1).reshape(30, 2, 40, 2, 3).mean(axis=(1, 3))
        assert np.abs(np.asarray(image) - expected).mean() < 2.0


def test_what_cannot_be_reduced_or_written_is_named(scene):
    (scene / "images/frame_3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"frame_3\.png cannot be reduced"):
        make_datamanager(scene, ColmapDataParserConfig())
    (scene / "images_2").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cannot be written to .*images_2.*--downscale-factor 1"):
        make_datamanager(scene, ColmapDataParserConfig(downscale_factor=2))
