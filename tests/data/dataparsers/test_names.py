"""Images are found by the names that another machine has written, where one file alone is meant."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from _scenes import assert_clear, make_datamanager, read_meta, write_meta
from _statements import changed, renamed, top, write_plain
from PIL import Image

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data.dataparsers.names import ImageFinder
from zipnerf_ns.errors import InputError

COMPOSED, APART = (unicodedata.normalize(form, "Stühle é 1.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    "named,file",
    [
        ("images/a.png", "images/a.png"),
        ("images/a", "images/a.JPG"),
        ("./images//a.png", "images/a.png"),
        ("images/IMG_1.jpg", "images/img_1.JPG"),
        ("Images/IMG 1.JPG", "images/IMG 1.JPG"),
        (f"images/{COMPOSED}", f"images/{APART}"),
        (f"images/{APART}", f"images/{COMPOSED}"),
        ("C:\\Users\\me\\scene\\images\\a.png", "images/a.png"),
        ("/home/me/scene/images/left/a.png", "images/left/a.png"),
        ("//server/share/images/A.png", "images/a.png"),
        ("C:/a.png", "a.png"),
    ],
)
def test_one_file_is_meant(tmp_path: Path, named: str, file: str):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    name, there = ImageFinder(tmp_path).find(named)
    assert there is not None and there.samefile(tmp_path / file) and (tmp_path / name).samefile(there)


@pytest.mark.parametrize("named", ["images/a.png", "/home/images/a.png", "x/a.txt", "/gone.png", "..", "/", "?"])
def test_no_file_is_guessed(tmp_path: Path, named: str):
    """Two that differ in case alone, a folder, a relative path's end."""
    (tmp_path / "images/gone.png").mkdir(parents=True)
    for name in ("images/A.png", "images/A.PNG", "a.txt"):
        (tmp_path / name).touch()
    assert ImageFinder(tmp_path).find(named) == (named, None)


def abroad(name: str) -> str:
    return "D:\\scans\\" + name.replace("/", "\\").upper()


def test_a_scene_from_another_machine_is_read_with_its_masks(tmp_path: Path):
    """And its lists, in the same words."""
    scene = write_plain(tmp_path / "scene")
    first = make_datamanager(scene)
    meta = read_meta(scene)
    (scene / "masks").mkdir()
    for index, frame in enumerate(meta["frames"]):
        name = f"masks/{index:03d}.png"
        Image.new("L", (24, 16), 255).save(scene / name)
        frame["file_path"], frame["mask_path"] = abroad(frame["file_path"]), abroad(name)
    meta["train_filenames"] = [frame["file_path"] for frame in meta["frames"][:9]]
    write_meta(scene, meta)
    manager = make_datamanager(scene)
    names = [path.relative_to(scene).as_posix() for path in manager.train_dataset.image_filenames]
    assert names == [f"images/{index:03d}.png" for index in range(9)]
    masks = manager.train_dataset._dataparser_outputs.mask_filenames
    assert [path.relative_to(scene).as_posix() for path in masks] == [f"masks/{index:03d}.png" for index in range(9)]
    assert len(manager.eval_dataset) == 3 and len(first.train_dataset) == 11


@pytest.mark.parametrize("name", ["images/000.png", "/gone/000.png"])
def test_what_is_not_there_is_named_as_it_is_said(tmp_path: Path, name: str):
    rename: Callable[[str], str] = lambda each: name if each.endswith("000.png") else each  # noqa: E731
    scene = changed(tmp_path / "scene", renamed(rename))
    (scene / "images/000.png").rename(scene / "images/other.png")
    with pytest.raises(InputError) as caught:
        make_datamanager(scene)
    assert_clear(str(caught.value), (f"frame 0 ({name})", "is missing. Restore it"))


def test_masks_that_no_frame_names_are_said(tmp_path: Path, capsys):
    scene = changed(tmp_path / "scene", top())
    (scene / "masks").mkdir()
    make_datamanager(scene)
    assert "masks is not used: give each frame the 'mask_path'" in " ".join(capsys.readouterr().out.split())


def test_a_photograph_that_exif_turns_is_told_from_one_of_another_size(tmp_path: Path):
    """Its camera is upright; turning w and h instead would train it lying on its side."""
    scene = write_plain(tmp_path / "scene")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (16, 24)).save(scene / "images/000.png", exif=turned)
    with pytest.raises(InputError) as caught:
        make_datamanager(scene)
    assert_clear(str(caught.value), ("images/000.png lies on its side", "EXIF", "upright"))


def photograph(index: int, size: tuple[int, int]) -> Image.Image:
    """Coarse noise, of its own for each index."""
    noise = np.random.default_rng(index).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("shift,kind,number", [(0, "png", 0), (0, "jpg", 0), (1, "jpg", 4), (1, "png", 4)])
def test_reduced_images_of_another_run_are_said(tmp_path: Path, monkeypatch, shift: int, kind: str, number: int):
    """Their numbers are one too high, as after a photograph was removed; no filter and no compression does that."""
    lines: list[str] = []
    monkeypatch.setattr("zipnerf_ns.data.dataparsers.reduction.say", lines.append)
    scene = changed(tmp_path / "scene", renamed(lambda name: name.replace("png", kind)))
    meta = read_meta(scene)
    write_meta(scene, {**meta, "w": 96, "h": 64, "cx": 48.0, "cy": 32.0})
    (scene / "images_2").mkdir()
    for index in range(12):
        photograph(index, (96, 64)).save(scene / f"images/{index:03d}.{kind}", quality=95)
        photograph(index + shift, (48, 32)).save(scene / f"images_2/{index:03d}.{kind}", quality=80)
    make_datamanager(scene, NerfstudioDataParserConfig(downscale_factor=2))
    assert len(lines) == bool(number)
    if number:
        assert_clear(lines[0], ("images_2/000", "of 4 reduced images", f"their originals, {number} show"))
