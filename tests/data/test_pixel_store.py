"""The store of training pixels: what it keeps, and what is drawn from it. (Uniformity: see test_datamanager.)"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _scenes import HEIGHT, WIDTH, make_datamanager, read_meta, write_meta, write_scene
from PIL import Image

from zipnerf_ns.data.pixels import PixelStore


def two_images(allowed: torch.Tensor | None = None) -> PixelStore:
    """Pictures of 2x2 and 1x2 pixels (columns x rows), whose colors are their pixels' numbers."""
    colors = torch.arange(6, dtype=torch.uint8)[:, None].expand(6, 3).contiguous()
    return PixelStore(colors, torch.tensor([0, 4]), torch.tensor([2, 1]), allowed)


PIXELS = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0)]


@pytest.mark.parametrize("kept", [None, [0], [5], [1, 4]])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_pixels_are_drawn_with_their_colors_and_places(kept, dtype):
    store = two_images(None if kept is None else torch.tensor(kept, dtype=dtype))
    batch = store.sample(60)
    assert batch["indices"].dtype == torch.int64 and batch["image"].dtype == torch.float32
    numbers = (batch["image"][:, 0] * 255.0).round().long().tolist()
    assert [PIXELS[number] for number in numbers] == [tuple(pixel) for pixel in batch["indices"].tolist()]
    assert set(numbers) == set(range(6) if kept is None else kept)


def test_draws_are_what_sample_is_made_of():
    """A kernel that takes the same draws makes the same batch."""
    store = two_images()
    torch.manual_seed(1)
    drawn = store.draw(40)
    torch.manual_seed(1)
    assert torch.equal((store.sample(40)["image"][:, 0] * 255.0).round().long(), drawn)
    assert drawn.dtype == torch.int64 and int(drawn.min()) >= 0 and int(drawn.max()) <= 5


def test_store_is_compact(tmp_path):
    """A byte a channel, four a pixel that a mask leaves: 300 images of 12 megapixels must fit beside the model."""
    scene = write_scene(tmp_path / "scene")
    (scene / "masks").mkdir()
    meta = read_meta(scene)
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(scene / "masks/all.png")
    for frame in meta["frames"]:
        frame["mask_path"] = "masks/all.png"
    write_meta(scene, meta)
    store = make_datamanager(scene).pixels
    assert store.colors.shape == (6 * WIDTH * HEIGHT, 3) and store.colors.dtype == torch.uint8
    assert store.allowed.dtype == torch.int32 and len(store.allowed) == len(store.colors)
