"""Scenes for the tests of what lies on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _scenes import named_pixels, read_meta, write_meta
from PIL import Image

SIZES = [(24, 16), (10, 30), (33, 7), (24, 16), (5, 5), (48, 20)]
"""2,284 pixels are trained on, in 45 pieces, whose last run is filled with some of the first."""


def mask_some(scene: Path) -> None:
    """Masks for all images, of which one leaves nothing."""
    (scene / "masks").mkdir()
    meta = read_meta(scene)
    for index, frame in enumerate(meta["frames"]):
        used = named_pixels(0, frame["w"], frame["h"])[..., 1] % 3 == 1
        frame["mask_path"] = f"masks/{index}.png"
        Image.fromarray((used * (index != 2) * 255).astype(np.uint8)).save(scene / frame["mask_path"])
    write_meta(scene, meta)
