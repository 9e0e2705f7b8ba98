"""Image files of every kind become 8-bit RGB or RGBA, alike for a whole scene."""

from __future__ import annotations

from typing import Dict, Tuple

import numpy as np
import pytest
import torch
from _scenes import HEIGHT, WIDTH, make_datamanager, named_pixels, write_scene
from PIL import Image

from zipnerf_ns.datamanager import SCENE_HINTS

GREY = np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)
MODES: Dict[str, Tuple[Image.Image, np.ndarray]] = {
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


def palette_picture(transparent: bool) -> Tuple[Image.Image, np.ndarray]:
    """Indices into a palette in which entry 7 may be transparent."""
    picture = Image.fromarray(GREY % 16).convert("P")
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    picture.putpalette(colours.tobytes())
    picture.putdata((GREY % 16).reshape(-1).tolist())
    expected = colours[GREY % 16]
    if transparent:
        alpha = np.where(GREY % 16 == 7, 0, 255).astype(np.uint8)
        expected = np.concatenate([expected, alpha[..., None]], -1)
    return picture, expected


@pytest.mark.parametrize("name", [*MODES, "palette", "transparent palette"])
def test_image_modes(tmp_path, name):
    """One picture of another mode among RGB ones: its colours, and opaque alpha for the others if it has any."""
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
