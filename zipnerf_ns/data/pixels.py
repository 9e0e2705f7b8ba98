"""All pixels of a set of images in one flat store on one device, from which batches are drawn uniformly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from nerfstudio.data.datasets.base_dataset import InputDataset

from zipnerf_ns.data.images import GRAY, NOTHING_USED, CheckedDataset, read_all
from zipnerf_ns.data.memory import check_room
from zipnerf_ns.errors import InputError

IN_MAIN_MEMORY = "--pipeline.datamanager.images-on-gpu"
"""The option that says where training pixels lie."""


@dataclass
class PixelStore:
    """All pixels of a set of images of any sizes, one after the other, on one device."""

    colors: UInt8[Tensor, "pixels channels"]
    """RGB or RGBA."""
    offsets: Int[Tensor, "images"]
    """First pixel of each image."""
    widths: Int[Tensor, "images"]
    """Width of each image, pixels."""
    allowed: Int[Tensor, "_"] | None
    """Pixels that the masks leave, or ``None`` for all."""

    @classmethod
    def load(cls, dataset: CheckedDataset, device: torch.device | str) -> "PixelStore":
        """Reads a dataset's images (and masks), each to its place.

        Raises:
            InputError: if masks leave no pixel, or the device has no room for them: known before any is read.
        """
        device, sizes, channels = torch.device(device), dataset.sizes, dataset.channels
        what = f"the pixels of {len(dataset)} images need"
        mend = f"Keep them in main memory: {IN_MAIN_MEMORY} False."
        if device.type == "cpu":
            mend = "Take fewer, or read them reduced: --downscale-factor 2 (or 4, ...) at the end of the command."
        widths = torch.tensor([width for width, _ in sizes])
        ends = (widths * torch.tensor([height for _, height in sizes])).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends[:-1]])
        check_room(what, int(ends[-1]) * channels + offsets.nbytes + widths.nbytes, device, mend)
        colors = torch.empty(int(ends[-1]), channels, dtype=torch.uint8, device=device)
        masks: list[Tensor] = []
        for index, data in enumerate(read_all(dataset, f"Reading {len(dataset)} images")):
            colors[offsets[index] : ends[index]] = data["image"].reshape(-1, channels)
            if "mask" in data:
                masks.append(data["mask"].reshape(-1).bool())
        allowed = _number(masks) if masks else None
        if allowed is not None:
            check_room(what, allowed.nbytes, device, mend)
        store = cls(colors, offsets, widths, allowed)
        return cls(*(None if tensor is None else tensor.to(device) for tensor in store.tensors))

    @classmethod
    def without_photos(cls, widths: Int[Tensor, "images 1"], heights: Int[Tensor, "images 1"]) -> "PixelStore":
        """A store of images of the given sizes, all gray and without memory, of which only the places are of use."""
        counts = (widths * heights).flatten()
        # Stays in main memory, for kernels read pixels one after the other.
        colors = torch.full((1, 1), GRAY, dtype=torch.uint8).expand(int(counts.sum()), 3)
        return cls(colors, counts.cumsum(0) - counts, widths.flatten(), None)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """All of them, in the fields' order."""
        return self.colors, self.offsets, self.widths, self.allowed

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return sum(tensor.nbytes for tensor in self.tensors if tensor is not None)

    def __len__(self) -> int:
        """Number of pixels that are drawn from."""
        return len(self.colors) if self.allowed is None else len(self.allowed)

    def thumbnail(self, index: int, side: int) -> UInt8[Tensor, "height width channels"]:
        """An image reduced to ``side`` pixels along its shorter side; smaller ones stay."""
        begin, width = int(self.offsets[index]), int(self.widths[index])
        end = int(self.offsets[index + 1]) if index + 1 < len(self.offsets) else len(self.colors)
        image = self.colors[begin:end].view(-1, width, self.colors.shape[1])
        shorter = min(image.shape[:2])
        # Most pixels are left where they are: two along a side suffice for each that is shown.
        step = max(shorter // (2 * side), 1)
        picture = Image.fromarray(image[::step, ::step].cpu().numpy())
        scale = min(side / shorter, 1.0)
        size = [round(scale * pixels) for pixels in (width, image.shape[0])]
        return torch.from_numpy(np.array(picture.resize(size, Image.Resampling.BOX)))

    def draw(self, num_rays: int) -> Int[Tensor, "rays"]:
        """Numbers of pixels, or of entries of ``allowed`` where there is one: uniform, with replacement."""
        return torch.randint(len(self), (num_rays,), device=self.colors.device)

    def sample(self, num_rays: int) -> dict[str, Tensor]:
        """Pixels drawn uniformly, with replacement: colors in [0, 1], and camera, row and column."""
        drawn = self.draw(num_rays)
        flat = drawn if self.allowed is None else self.allowed[drawn].long()
        image = torch.searchsorted(self.offsets, flat, right=True) - 1
        local = flat - self.offsets[image]
        width = self.widths[image]
        indices = torch.stack([image, torch.div(local, width, rounding_mode="floor"), local % width], dim=-1)
        return {"image": self.colors[flat].float() / 255.0, "indices": indices}


class Thumbnails:
    """What a viewer asks of a dataset whose pixels are in a store: nothing is decoded anew, and no picture is large.

    Args:
        dataset: whose cameras and scene box it has.
        store: of the dataset's images.
    """

    SIDE = 100
    """Pixels along the shorter side: what Nerfstudio's viewer shows."""

    def __init__(self, dataset: InputDataset, store: PixelStore) -> None:
        self.cameras, self.scene_box, self._store = dataset.cameras, dataset.scene_box, store

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self._store.thumbnail(index, self.SIDE).float() / 255.0}


def _number(masks: list[Tensor]) -> Int[Tensor, "_"]:
    """The numbers of the pixels that masks leave; takes each out of the list.

    Raises:
        InputError: if that is none.
    """
    used, total = sum(int(mask.sum()) for mask in masks), sum(len(mask) for mask in masks)
    if used == 0:
        raise InputError(NOTHING_USED)
    # The numbers are larger than the colors that they name: half of that, where it suffices.
    numbers = torch.empty(used, dtype=torch.int32 if total < 2**31 else torch.int64)
    pixel = place = 0
    masks.reverse()
    while masks:
        mask = masks.pop()
        found = mask.nonzero()[:, 0]
        numbers[place : place + len(found)] = found + pixel
        pixel, place = pixel + len(mask), place + len(found)
    return numbers
