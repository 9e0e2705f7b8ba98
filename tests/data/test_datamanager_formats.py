"""Image files of every kind become 8-bit RGB or RGBA, alike for a whole scene."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from _scenes import (
    HEIGHT,
    WIDTH,
    make_datamanager,
    named_pixels,
    read_meta,
    tiny_config,
    train,
    write_meta,
    write_scene,
)
from PIL import Image

from zipnerf_ns.data.datamanager import SCENE_HINTS, ZipNerfDataManager
from zipnerf_ns.errors import InputError

GREY = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)
MODES: dict[str, tuple[Image.Image, np.ndarray]] = {
    "grey": (Image.fromarray(GREY), np.stack([GREY] * 3, -1)),
    "grey and alpha": (
        Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY.T.copy().reshape(GREY.shape))]),
        np.stack([GREY] * 3 + [GREY.T.copy().reshape(GREY.shape)], -1),
    ),
    "16 bits": (
        Image.fromarray((GREY.astype(np.uint16) * 257).astype(np.uint16)), np.stack([GREY] * 3, -1)
    ),
    "black and white": (Image.fromarray(GREY > 99), np.stack([(GREY > 99) * np.uint8(255)] * 3, -1)),
    "RGBA": (Image.fromarray(named_pixels(9, channels=4)), named_pixels(9, channels=4)),
}  # fmt: skip


def palette_picture(transparent: bool) -> tuple[Image.Image, np.ndarray]:
    """Indices into a palette in which entry 7 may be transparent."""
    picture = Image.fromarray(GREY % 16).convert("P")
    colors = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    picture.putpalette(colors.tobytes())
    picture.putdata((GREY % 16).reshape(-1).tolist())
    expected = colors[GREY % 16]
    if transparent:
        alpha = np.where(GREY % 16 == 7, 0, 255).astype(np.uint8)
        expected = np.concatenate([expected, alpha[..., None]], -1)
    return picture, expected


@pytest.mark.parametrize("name", [*MODES, "palette", "transparent palette"])
def test_image_modes(tmp_path, name):
    """One picture of another mode among RGB ones: its colors, and opaque alpha for the others if it has any."""
    picture, expected = MODES[name] if name in MODES else palette_picture("transparent" in name)
    scene = write_scene(tmp_path / "scene")
    extra = {"transparency": 7} if "transparent" in name else {}
    picture.save(scene / "images/001.png", **extra)
    manager = make_datamanager(scene)
    store, size = manager.pixels, WIDTH * HEIGHT
    channels = expected.shape[-1]
    assert store.colors.dtype == torch.uint8 and store.colors.shape == (6 * size, channels)
    stored = store.colors[size : 2 * size].reshape(HEIGHT, WIDTH, channels).numpy()
    np.testing.assert_array_equal(stored, expected)
    others = store.colors[:size].reshape(HEIGHT, WIDTH, channels).numpy()
    np.testing.assert_array_equal(others[..., :3], named_pixels(0))
    assert (others[..., 3:] == 255).all()
    assert manager.train_dataset.metadata[SCENE_HINTS].background == ("white" if channels == 4 else "black")


def test_held_out_images_may_mix_rgb_and_rgba(tmp_path):
    scene = write_scene(tmp_path / "scene")
    Image.fromarray(named_pixels(7, channels=4)).save(scene / "images/007.png")
    manager = make_datamanager(scene)
    for step in range(4):
        assert manager.next_eval(step)[1]["image"].shape[-1] in (3, 4)
        assert manager.next_eval_image(step)[1]["image"].shape[:2] == (HEIGHT, WIDTH)


def with_picture(scene: Path, picture: Image.Image, suffix: str) -> ZipNerfDataManager:
    """A scene whose second picture is another file."""
    meta = read_meta(scene)
    (scene / "images/001.png").unlink()
    picture.save(scene / f"images/001.{suffix}")
    renamed = json.loads(json.dumps(meta).replace("001.png", f"001.{suffix}"))
    write_meta(scene, renamed)
    return make_datamanager(scene)


def test_floating_point_pictures_are_black_at_0_and_white_at_1(tmp_path):
    """What sharpening adds below and above is clipped."""
    values = np.linspace(-0.3, 1.4, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH)
    store = with_picture(write_scene(tmp_path / "scene"), Image.fromarray(values), "tiff").pixels
    stored = store.colors[WIDTH * HEIGHT : 2 * WIDTH * HEIGHT].reshape(HEIGHT, WIDTH, 3).numpy().astype(float)
    assert np.abs(stored - 255.0 * values.clip(0.0, 1.0)[..., None]).max() <= 0.5 + 1e-4
    assert {0.0, 255.0} <= set(stored.ravel())


@pytest.mark.parametrize(
    ("kind", "factor", "divisor"), [(np.int32, 1, 1), (np.int32, 257, 1), (np.int32, 2, 514), (np.uint16, 1, 257)]
)
def test_white_of_integers(tmp_path, kind, factor, divisor):
    """32 bits with values up to 255 are 8-bit values, with larger ones 16-bit values; 16 bits are always those."""
    values = GREY.astype(kind) * kind(factor)
    store = with_picture(write_scene(tmp_path / "scene"), Image.fromarray(values), "tiff").pixels
    stored = store.colors[WIDTH * HEIGHT : 2 * WIDTH * HEIGHT, 0].reshape(HEIGHT, WIDTH).numpy()
    expected = GREY if divisor == 1 else np.round(values / 257.0)
    np.testing.assert_array_equal(stored, expected)


BAD_VALUES: dict[str, tuple[np.ndarray, str]] = {
    "NaN": (np.where(GREY == 7, np.nan, 0.5).astype(np.float32), "values from nan to nan"),
    "infinity": (np.where(GREY == 7, np.inf, 0.5).astype(np.float32), "values from 0.5 to inf"),
    "0 to 255": (GREY.astype(np.float32), "values from 0 to 255"),
    "32 bits": (GREY.astype(np.int32) << 16, "values from 0 to 1.67117e\\+07"),
    "negative": (GREY.astype(np.int32) - 1, "values from -1 to 254"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_values_without_a_known_white_are_refused(tmp_path, name):
    values, expected = BAD_VALUES[name]
    with pytest.raises(InputError, match=f"001.tiff has {expected}.*8 or 16 bits a channel, or with floating-point"):
        with_picture(write_scene(tmp_path / "scene"), Image.fromarray(values), "tiff")


TWINS = {
    "grey": ("RGB", lambda grey, alpha: Image.merge("RGB", [grey] * 3), lambda grey, alpha: grey),
    "16 bits": (
        "RGB", lambda grey, alpha: Image.merge("RGB", [grey] * 3),
        lambda grey, alpha: Image.fromarray(np.asarray(grey) * np.uint16(257)),
    ),
    "palette": ("RGB", lambda grey, alpha: Image.merge("RGB", [grey] * 3), lambda grey, alpha: grey.convert("P")),
    "grey and alpha": (
        "RGBA", lambda grey, alpha: Image.merge("RGBA", [grey] * 3 + [alpha]),
        lambda grey, alpha: Image.merge("LA", [grey, alpha]),
    ),
    "floating point": (
        "RGB", lambda grey, alpha: Image.merge("RGB", [grey] * 3),
        lambda grey, alpha: Image.fromarray((np.asarray(grey) / 255.0).astype(np.float32)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_a_training_on_other_modes_is_that_on_their_8_bit_colors(tmp_path, fresh_writers, name):
    """Step by step to the last bit, and in its evaluation."""
    found = []
    for kind in ("colors", "mode"):
        scene = write_scene(tmp_path / kind / "scene")
        for path in sorted((scene / "images").iterdir()):
            noise = np.random.default_rng(int(path.stem)).integers(0, 256, (2, HEIGHT, WIDTH)).astype(np.uint8)
            grey, alpha = (Image.fromarray(plane) for plane in noise)
            picture = TWINS[name][1 if kind == "colors" else 2](grey, alpha)
            assert kind == "mode" or picture.mode == TWINS[name][0]
            # Pillow looks at contents, not at names.
            picture.save(path, format="TIFF" if picture.mode == "F" else "PNG")
        trainer, losses = train(tiny_config(scene, tmp_path / kind / "out", 4))
        found.append((losses, trainer.pipeline.get_average_eval_image_metrics()["psnr"]))
    assert len(found[0][0]) == 4 and found[0] == found[1]
