"""All pixels of a set of images in one flat store on one device, from which batches are drawn evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.comms import get_rank, get_world_size

from zipnerf_ns.data.disk.order import spreading
from zipnerf_ns.data.images import GRAY, NOTHING_USED, CheckedDataset, read_all
from zipnerf_ns.data.memory import GIB, check_room
from zipnerf_ns.errors import InputError

IN_MAIN_MEMORY = "--pipeline.datamanager.images-on-gpu"
"""The option that says on which side training pixels lie."""
ON_DISK = "--pipeline.datamanager.pixels.where disk"
"""What to give for pixels that no memory holds."""
BYTES_AT_ONCE = 2**16
"""Bytes of a mask, eight pixels each, that are taken apart together: their numbers take 64 times as much."""
SEED_STEP = 0x9E3779B1
"""A prime by which seeds are apart."""
ROUNDS = 1 << 20
"""Times around all pixels after which drawing begins anew: more than any training goes."""
THUMBNAIL_SIDE = 100
"""Pixels along a thumbnail's shorter side: what Nerfstudio's viewer shows."""


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
    """Pixels that are drawn from, as those that the masks leave, or ``None`` for all."""
    is_gathered: bool = False
    """Whether ``colors`` are of the entries of ``allowed``, one each, and not of all pixels."""

    def __post_init__(self) -> None:
        # How many have been drawn, and from where to where they go on among all.
        self._drawn = torch.zeros((), dtype=torch.int64, device=self.colors.device)
        self._stride = spreading(len(self))
        PixelStore.advance(self, 0)

    @classmethod
    def load(cls, dataset: CheckedDataset, device: torch.device | str) -> "PixelStore":
        """Reads a dataset's images (and masks), each to its place.

        Raises:
            InputError: if masks leave no pixel, or the device has no room for them: known before any is read.
        """
        device, channels = torch.device(device), dataset.channels
        what = f"the pixels of {len(dataset)} images need"
        mend = f"Keep them in main memory, {IN_MAIN_MEMORY} False, or on disk, {ON_DISK}."
        if device.type == "cpu":
            mend = f"Keep them on disk, {ON_DISK}, or read them reduced, --downscale-factor 2 at the command's end."
        offsets, widths, count = places(dataset.sizes)
        check_room(what, count * channels + offsets.nbytes + widths.nbytes, device, mend)
        colors = torch.empty(count, channels, dtype=torch.uint8, device=device)
        ends = [*offsets[1:].tolist(), count]
        masks: list[npt.NDArray[np.uint8]] = []
        for index, data in enumerate(read_all(dataset, f"Reading {len(dataset)} images")):
            colors[offsets[index] : ends[index]] = data["image"].reshape(-1, channels)
            if "mask" in data:
                # Eight pixels a byte, for they lie beside all colors.
                masks.append(np.packbits(data["mask"].numpy()))
            # Not while the next one is decoded.
            del data
        allowed = _number(masks, offsets, ends) if masks else None
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

    def describe(self) -> str:
        """How many pixels there are, and where."""
        return f"{len(self):,} pixels on {self.colors.device}, {self.num_bytes / GIB:.2f} GiB"

    def thumbnail(self, index: int) -> UInt8[Tensor, "height width channels"]:
        """An image made small; see :func:`thumbnail`."""
        begin, width = int(self.offsets[index]), int(self.widths[index])
        end = int(self.offsets[index + 1]) if index + 1 < len(self.offsets) else len(self.colors)
        return thumbnail(self.colors[begin:end].view(-1, width, self.colors.shape[1]))

    def advance(self, num_pixels: int) -> None:
        """Has draws go on where they are when so many pixels have been drawn by each process.

        They begin where torch's seed says, and those of several processes far from each other.
        """
        begin = torch.initial_seed() * SEED_STEP + len(self) * get_rank() // get_world_size()
        self._drawn.fill_((begin + num_pixels) % (len(self) * ROUNDS))

    def draw(self, num_rays: int) -> Int[Tensor, "rays"]:
        """Numbers of pixels, or of entries of ``allowed`` where there is one: each once before any comes again, and the
        rays of a step evenly over all photos, in steps of the golden ratio."""
        count, drawn = len(self), self._next_draws(num_rays)
        # Each time around they begin one later, lest a step's rays of some number be always the same ones.
        return (drawn + drawn // count) % count * self._stride % count

    def _next_draws(self, num_rays: int) -> Int[Tensor, "rays"]:
        """So many numbers in the order of all draws, after those that were asked for before."""
        drawn = self._drawn + torch.arange(num_rays, device=self.colors.device)
        # Written in place: a CUDA graph, too, goes on from there.
        self._drawn += num_rays
        return drawn

    def sample(self, num_rays: int) -> dict[str, Tensor]:
        """Pixels that :meth:`draw` gives: colors in [0, 1], and camera, row and column."""
        drawn = self.draw(num_rays)
        flat = drawn if self.allowed is None else self.allowed[drawn].long()
        image = torch.searchsorted(self.offsets, flat, right=True) - 1
        local = flat - self.offsets[image]
        width = self.widths[image]
        indices = torch.stack([image, torch.div(local, width, rounding_mode="floor"), local % width], dim=-1)
        return {"image": self.colors[drawn if self.is_gathered else flat].float() / 255.0, "indices": indices}


class Thumbnails:
    """What a viewer asks of a dataset whose pixels are in a store: nothing is decoded anew, and no picture is large.

    Args:
        dataset: whose cameras and scene box it has.
        store: of the dataset's images.
    """

    def __init__(self, dataset: InputDataset, store: PixelStore) -> None:
        self.cameras, self.scene_box, self._store = dataset.cameras, dataset.scene_box, store

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self._store.thumbnail(index).float() / 255.0}


def num_bytes_of(dataset: CheckedDataset) -> int:
    """Memory that a dataset's pixels take, if its masks leave all of them."""
    count = sum(width * height for width, height in dataset.sizes)
    return count * (dataset.channels + (number_type(count).itemsize if dataset.is_masked else 0))


def places(sizes: Sequence[tuple[int, int]]) -> tuple[Int[Tensor, "images"], Int[Tensor, "images"], int]:
    """First pixel and width of each image, and the number of pixels, where images lie one after the other.

    Args:
        sizes: width and height of each.
    """
    counts = torch.tensor([width * height for width, height in sizes])
    return counts.cumsum(0) - counts, torch.tensor([width for width, _ in sizes]), int(counts.sum())


def number_type(num_pixels: int) -> torch.dtype:
    """The smaller type of two that has a number for each of so many pixels: it takes more memory than the colors."""
    return torch.int32 if num_pixels < 2**31 else torch.int64


def thumbnail_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of an image's thumbnail."""
    scale = min(THUMBNAIL_SIDE / min(width, height), 1.0)
    return round(scale * width), round(scale * height)


def thumbnail(image: UInt8[Tensor, "height width channels"]) -> UInt8[Tensor, "small_height small_width channels"]:
    """An image reduced to 100 pixels along its shorter side; smaller ones stay."""
    # Most pixels are left where they are: two along a side suffice for each that is shown.
    step = max(min(image.shape[:2]) // (2 * THUMBNAIL_SIDE), 1)
    picture = Image.fromarray(image[::step, ::step].cpu().numpy())
    return torch.from_numpy(np.array(picture.resize(thumbnail_size(*image.shape[1::-1]), Image.Resampling.BOX)))


def _number(masks: list[npt.NDArray[np.uint8]], begins: Int[Tensor, "images"], ends: list[int]) -> Int[Tensor, "_"]:
    """The numbers of the pixels that masks of eight pixels a byte leave.

    Args:
        begins, ends: of the images.
    Raises:
        InputError: if that is none.
    """
    used = sum(int(np.unpackbits(mask).sum()) for mask in masks)
    if used == 0:
        raise InputError(NOTHING_USED)
    numbers = torch.empty(used, dtype=number_type(ends[-1]))
    place = 0
    for mask, begin, end in zip(masks, begins.tolist(), ends, strict=True):
        for first in range(0, len(mask), BYTES_AT_ONCE):
            part = mask[first : first + BYTES_AT_ONCE]
            found = np.flatnonzero(np.unpackbits(part, count=min(8 * len(part), end - begin - 8 * first)))
            numbers[place : place + len(found)] = torch.from_numpy(found).add_(begin + 8 * first)
            place += len(found)
    return numbers
