"""Copies of photographs: upright, of 8 bits, and each with the camera that took it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from _raw import write_dng
from PIL import Image

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.reconstruction import pictures
from zipnerf_ns.tools.reconstruction.pictures import Picture, copy_upright, identify, open_photo
from zipnerf_ns.tools.reconstruction.sources import Photo

UPRIGHT = np.random.default_rng(3).integers(0, 256, (8, 12, 3), dtype=np.uint8)
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}
"""What a file holds of which EXIF says so: 6 is shown turned clockwise."""


def exif(**values: object) -> Image.Exif:
    """EXIF data with tags by name: orientation, model, focal."""
    result = Image.Exif()
    if "orientation" in values:
        result[0x0112] = values["orientation"]
    if "model" in values:
        result[0x0110] = values["model"]
    if "focal" in values:
        result.get_ifd(0x8769)[0x920A] = values["focal"]
    return result


def write(path: Path, pixels: np.ndarray = UPRIGHT, **values: object) -> Path:
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif(**values))
    return path


@pytest.mark.parametrize("orientation", STORED)
def test_photographs_and_their_masks_are_turned_upright(tmp_path: Path, orientation: int):
    path = write(tmp_path / "a.png", STORED[orientation], orientation=orientation, model="X", focal=4.25)
    used = UPRIGHT[..., 0] > 127
    mask = tmp_path / "mask.png"
    # A mask drawn on the file as it lies there, where it can be told from one that is upright.
    drawn = STORED[orientation][..., 0] > 127 if orientation >= 5 else used
    Image.fromarray(np.where(drawn, 255, 0).astype(np.uint8)).save(mask)
    picture = copy_upright(Photo(path, "copy", 2, mask), tmp_path / "images", tmp_path / "masks")
    assert picture == Picture("copy.png", (12, 8), identify(path)[1], 2, True)
    with Image.open(tmp_path / "images/copy.png") as copy:
        np.testing.assert_array_equal(np.asarray(copy), UPRIGHT)
        # Turned once, not again by the next reader; the focal length is still there.
        assert copy.getexif().get(pictures.ORIENTATION, 1) == 1
        assert float(copy.getexif().get_ifd(0x8769)[0x920A]) == 4.25
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks/copy.png.png")) > 0, used)


def test_what_needs_no_change_is_copied_byte_by_byte(tmp_path: Path):
    path = write(tmp_path / "a.jpeg", model="X")
    copy_upright(Photo(path, "a", 0), tmp_path / "images", None)
    assert (tmp_path / "images/a.jpg").read_bytes() == path.read_bytes()


def test_a_copy_is_made_once_and_anew_when_the_photograph_changed(tmp_path: Path):
    path = write(tmp_path / "a.png")
    photo, copy = Photo(path, "a", 0), tmp_path / "images/a.png"
    copy_upright(photo, copy.parent, None)
    first = copy.stat().st_ino
    copy_upright(photo, copy.parent, None)
    assert copy.stat().st_ino == first
    write(path, UPRIGHT[::-1])
    pictures.os.utime(path, ns=(1, 1))
    copy_upright(photo, copy.parent, None)
    np.testing.assert_array_equal(np.asarray(Image.open(copy)), UPRIGHT[::-1])


def test_any_mode_becomes_8_bits(tmp_path: Path):
    gray = UPRIGHT[..., 0]
    for name, image, expected in (
        ("wide", Image.fromarray(gray.astype(np.uint16) * 257), np.repeat(gray[..., None], 3, axis=2)),
        ("gray", Image.fromarray(gray), np.repeat(gray[..., None], 3, axis=2)),
        ("alpha", Image.fromarray(np.dstack([UPRIGHT, gray])), np.dstack([UPRIGHT, gray])),
    ):
        image.save(tmp_path / f"{name}.png")
        picture = copy_upright(Photo(tmp_path / f"{name}.png", name, 0), tmp_path / "images", None)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "images" / picture.name)), expected)


@pytest.mark.parametrize("suffix", [".webp", ".avif", ".heic"])
def test_other_kinds_become_jpeg(tmp_path: Path, suffix: str):
    if suffix == ".heic":
        pytest.importorskip(
            "pillow_heif", reason="pillow-heif, which reads HEIC, is not installed"
        ).register_heif_opener()
    if suffix == ".avif" and not pictures.Image.registered_extensions().get(".avif"):
        pytest.skip("this Pillow has no AVIF")
    smooth = Image.fromarray(UPRIGHT).resize((96, 64), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / f"a{suffix}", quality=95)
    picture = copy_upright(Photo(tmp_path / f"a{suffix}", "a", 0), tmp_path / "images", None)
    assert picture.name == "a.jpg" and picture.size == (96, 64)
    with Image.open(tmp_path / "images/a.jpg") as copy, open_photo(tmp_path / f"a{suffix}") as original:
        assert np.abs(np.asarray(copy, dtype=float) - np.asarray(original.convert("RGB"))).mean() < 3.0


def test_cameras_are_told_apart_by_body_lens_zoom_and_size(tmp_path: Path):
    same = [write(tmp_path / f"{name}.png", model="X", focal=4.0) for name in "ab"]
    others = [
        write(tmp_path / "c.png", model="Y", focal=4.0),
        write(tmp_path / "d.png", model="X", focal=5.0),
        write(tmp_path / "e.png", UPRIGHT.transpose(1, 0, 2), model="X", focal=4.0),
        write(tmp_path / "f.png", model="X", focal=4.0, orientation=3),
    ]
    assert identify(same[0]) == identify(same[1])
    assert len({identify(path)[1] for path in [same[0], *others]}) == 5


def test_what_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "text.jpg").write_text("no photograph")
    with pytest.raises(InputError, match="text.jpg cannot be read as a photograph"):
        identify(tmp_path / "text.jpg")
    path = write(tmp_path / "cut.png", np.tile(UPRIGHT, (20, 20, 1)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="cut.png cannot be read as a photograph"):
        copy_upright(Photo(path, "cut", 0), tmp_path / "images", None)
    assert not list((tmp_path / "images").glob("*"))
    whole = write(tmp_path / "whole.png")
    Image.new("L", (5, 5)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"mask.png has 5x5 pixels, its photograph 12x8"):
        copy_upright(Photo(whole, "whole", 0, tmp_path / "mask.png"), tmp_path / "images", tmp_path / "masks")


def test_large_pictures_are_reduced_until_nerfstudio_takes_them(tmp_path: Path):
    def sized(*size: int) -> Picture:
        return Picture("a.png", size, "", 0)

    assert [pictures.scales([sized(10, 10), sized(*size)]) for size in ((1600, 9), (9, 1601), (3201, 9))] == [
        [],
        [2],
        [2, 4],
    ]
    write(tmp_path / "images.png").rename(tmp_path / "a.png")
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "a.png").rename(folder / "a.png")
    pictures.reduce_picture(folder, "a.png", 2)
    expected = UPRIGHT.reshape(4, 2, 6, 2, 3).mean(axis=(1, 3))
    reduced = np.asarray(Image.open(tmp_path / "images_2/a.png"), dtype=float)
    np.testing.assert_allclose(reduced, expected, atol=0.51)


QUARTERS = np.zeros((32, 48, 3), dtype=np.uint8)
QUARTERS[:16, :24], QUARTERS[:16, 24:], QUARTERS[16:] = (200, 20, 20), (20, 200, 20), (20, 20, 200)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_raw_photographs_are_developed_upright(tmp_path: Path, orientation: int):
    pytest.importorskip("rawpy", reason="rawpy, which reads RAW files, is not installed")
    stored = QUARTERS[::-1, ::-1] if orientation == 3 else np.rot90(QUARTERS, {1: 0, 6: 1, 8: -1}[orientation])
    path = write_dng(tmp_path / "a.dng", stored, orientation)
    picture = copy_upright(Photo(path, "a", 0), tmp_path / "images", None)
    assert picture == Picture("a.jpg", (48, 32), identify(path)[1], 0)
    copy = np.asarray(Image.open(tmp_path / "images/a.jpg"))
    for rows, columns, strongest in ((8, 8, 0), (8, 40, 1), (24, 8, 2), (24, 40, 2)):
        assert copy[rows, columns].argmax() == strongest and np.ptp(copy[rows, columns].astype(int)) > 100


def test_raw_photographs_keep_their_exposure_and_camera(tmp_path: Path):
    """Half the light is darker, whatever else a photograph shows."""
    pytest.importorskip("rawpy", reason="rawpy, which reads RAW files, is not installed")
    full, half = (write_dng(tmp_path / f"{share}.dng", QUARTERS // share) for share in (1, 2))
    values = [np.asarray(open_photo(path))[8, 8, 0].astype(float) for path in (full, half)]
    # The sRGB curve is nearly a power of 1 / 2.22 (BT.709's), LibRaw's by default.
    assert 0.68 < values[1] / values[0] < 0.77
    other = write_dng(tmp_path / "other.dng", QUARTERS, model="Y")
    assert identify(full)[1] == identify(half)[1] != identify(other)[1]
    full.write_bytes(full.read_bytes()[:100])
    with pytest.raises(InputError, match="1.dng cannot be read as a photograph"):
        identify(full)
