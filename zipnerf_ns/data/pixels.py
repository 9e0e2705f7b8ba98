"""All pixels of a set of images in one flat store on one device, from which batches are drawn uniformly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from nerfstudio.data.datasets.base_dataset import InputDataset

from zipnerf_ns.data.images import NOTHING_USED, read_all
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
    def load(cls, dataset: InputDataset, device: torch.device | str) -> "PixelStore":
        """Reads a dataset's images (and masks).

        Raises:
            InputError: if masks leave no pixel, or the device has no room for them.
        """
        colors: list[Tensor] = []
        masks: list[Tensor] = []
        widths: list[int] = []
        for data in read_all(dataset, f"Reading {len(dataset)} images"):
            image = data["image"]
            widths.append(image.shape[1])
            colors.append(image.reshape(-1, image.shape[-1]))
            if "mask" in data:
                masks.append(data["mask"].reshape(-1).bool())
        channels = max(color.shape[-1] for color in colors)
        colors = [_with_channels(color, channels) for color in colors]
        counts = torch.tensor([0] + [len(color) for color in colors])
        allowed = torch.cat(masks).nonzero()[:, 0] if masks else None
        if allowed is not None and len(allowed) == 0:
            raise InputError(NOTHING_USED)
        if allowed is not None and int(counts.sum()) < 2**31:
            # The numbers are larger than the colors that they name: half of that, where it suffices.
            allowed = allowed.int()
        store = cls(torch.cat(colors), counts.cumsum(0)[:-1], torch.tensor(widths), allowed)
        if torch.device(device).type == "cpu":
            return store
        what = f"the pixels of {len(dataset)} images need"
        check_room(what, store.num_bytes, torch.device(device), f"Keep them in main memory: {IN_MAIN_MEMORY} False.")
        return cls(*(None if tensor is None else tensor.to(device) for tensor in store.tensors))

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


def _with_channels(color: Tensor, channels: int) -> Tensor:
    """Opaque alpha for RGB images among RGBA ones."""
    if color.shape[-1] == channels:
        return color
    return torch.cat([color, torch.full_like(color[:, :1], 255)], dim=-1)
