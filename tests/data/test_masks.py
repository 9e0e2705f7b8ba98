"""Masks of every kind of picture, and those that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from zipnerf_ns.data.images import check_masks, check_some_used, read_mask
from zipnerf_ns.errors import InputError

WIDTH, HEIGHT = 24, 16
ALLOWED = np.zeros((HEIGHT, WIDTH), bool)
ALLOWED[3:9, 5:] = ALLOWED[12, 0] = True
GREY = Image.fromarray((255 * ALLOWED).astype(np.uint8))
WIDE = ALLOWED.astype(np.uint16)
CLEAR = Image.merge("LA", [Image.new("L", (WIDTH, HEIGHT), 255), GREY])


@pytest.mark.parametrize(
    "picture",
    [
        *(GREY.convert(mode) for mode in ("L", "1", "RGB", "RGBA", "LA", "P")),
        Image.fromarray(WIDE * np.uint16(65535)),
        Image.fromarray(WIDE * np.uint16(255)),
        Image.fromarray(ALLOWED.astype(np.uint8)),
        CLEAR,
        Image.fromarray(np.where(ALLOWED, 210, 40).astype(np.uint8)),
    ],
    ids=["L", "1", "RGB", "RGBA", "LA", "palette", "16 bits", "255 of 16 bits", "0 and 1", "transparent", "grey"],
)
def test_every_kind_of_picture(tmp_path, picture):
    picture.save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert mask.dtype == torch.bool and mask.shape == (HEIGHT, WIDTH, 1)
    assert torch.equal(mask[..., 0], torch.from_numpy(ALLOWED))


def test_what_lossy_compression_leaves_is_still_black_or_white(tmp_path):
    """Nerfstudio takes every pixel that is not exactly zero."""
    # Edges within the format's blocks of eight pixels.
    block = np.kron(ALLOWED[:9, 3:], np.ones((13, 13), bool))
    Image.fromarray((255 * block).astype(np.uint8)).save(tmp_path / "mask.jpg", quality=60)
    stored = np.asarray(Image.open(tmp_path / "mask.jpg"))
    assert ((stored > 0) & ~block).any()
    assert torch.equal(read_mask(tmp_path / "mask.jpg")[..., 0], torch.from_numpy(block))


@pytest.mark.parametrize(("value", "used"), [(0, False), (127, False), (128, True), (255, True)])
def test_a_mask_of_one_value(tmp_path, value, used):
    Image.new("L", (WIDTH, HEIGHT), value).save(tmp_path / "mask.png")
    assert bool(read_mask(tmp_path / "mask.png").all()) is used
    assert bool(read_mask(tmp_path / "mask.png").any()) is used


@pytest.mark.parametrize("most", [2, 200, 300, 20000])
def test_a_nearly_black_mask_of_16_bits_is_all_ignored(tmp_path, most):
    noise = np.random.default_rng(0).integers(0, most + 1, (HEIGHT, WIDTH), dtype=np.uint16)
    Image.fromarray(noise).save(tmp_path / "mask.png")
    assert not read_mask(tmp_path / "mask.png").any()


def test_noise_of_lossy_compression_is_no_label(tmp_path):
    Image.new("L", (WIDTH, HEIGHT), 1).save(tmp_path / "mask.jpg", quality=95)
    assert np.asarray(Image.open(tmp_path / "mask.jpg")).max() == 1
    assert not read_mask(tmp_path / "mask.jpg").any()


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_labels_of_more_than_8_bits(tmp_path, white):
    for kind, suffix in ((np.uint16, "png"), (np.int32, "tiff")):
        path = tmp_path / f"mask.{suffix}"
        Image.fromarray(ALLOWED.astype(kind) * kind(white)).save(path)
        assert torch.equal(read_mask(path)[..., 0], torch.from_numpy(ALLOWED)), kind


def test_scaled_with_its_image(tmp_path):
    block = np.kron(ALLOWED, np.ones((2, 2), bool))
    Image.fromarray((255 * block).astype(np.uint8)).save(tmp_path / "mask.png")
    assert torch.equal(read_mask(tmp_path / "mask.png", 0.5)[..., 0], torch.from_numpy(ALLOWED))


def test_bad_masks_are_named(tmp_path):
    path = tmp_path / "mask.png"
    sizes = [(WIDTH, HEIGHT)]
    with pytest.raises(InputError, match="mask.png is missing.*mask_path"):
        check_masks([path], sizes)
    path.write_text("not an image")
    with pytest.raises(InputError, match="mask.png cannot be read"):
        check_masks([path], sizes)
    with pytest.raises(InputError, match="mask.png cannot be decoded"):
        read_mask(path)
    GREY.resize((12, 8)).save(path)
    with pytest.raises(InputError, match="mask.png has 12x8 pixels, its image 24x16.*size"):
        check_masks([path], sizes)
    GREY.save(path)
    check_masks([path], sizes)


def test_a_mask_that_was_not_reduced_with_its_image(tmp_path):
    """Nerfstudio takes images_2 and masks_2 for large photographs, but writes only the first."""
    (tmp_path / "masks").mkdir()
    GREY.save(tmp_path / "masks/a.png")
    with pytest.raises(
        InputError, match=r"masks_2/a.png is missing. Reduce .*masks/a.png to 1/2 .*--downscale-factor 1"
    ):
        check_masks([tmp_path / "masks_2/a.png"], [(WIDTH, HEIGHT)])
    with pytest.raises(InputError, match=r"masks_2/b.png is missing. Restore"):
        check_masks([tmp_path / "masks_2/b.png"], [(WIDTH, HEIGHT)])


def test_one_used_pixel_is_enough_and_none_is_an_error(tmp_path):
    Image.new("L", (WIDTH, HEIGHT), 0).save(tmp_path / "none.png")
    one = Image.new("L", (WIDTH, HEIGHT), 0)
    one.putpixel((3, 4), 255)
    one.save(tmp_path / "one.png")
    check_some_used([tmp_path / "none.png", tmp_path / "one.png"])
    with pytest.raises(InputError, match="masks leave no pixel.*white"):
        check_some_used([tmp_path / "none.png"] * 3)
