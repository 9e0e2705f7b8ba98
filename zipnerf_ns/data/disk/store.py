"""All pixels of a set of images in a folder on disk: written once, by many threads, and read piece by piece."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from nerfstudio.utils.rich_utils import get_progress

from zipnerf_ns.data.disk.files import ELSEWHERE, locked, read_fully, told, write_fully
from zipnerf_ns.data.disk.order import Order
from zipnerf_ns.data.images import NOTHING_USED, CheckedDataset
from zipnerf_ns.data.memory import GIB, room_on
from zipnerf_ns.data.pixels import number_type, places, thumbnail, thumbnail_size
from zipnerf_ns.errors import InputError, say

FORMAT = 1
"""To be raised when what is written changes."""
PIECE_BYTES, FEWEST_PIECES, SHORTEST = 2**24, 256, 50
"""What is read in one go; how many pieces there are of captures that are not tiny: few would be much of a small one;
and a piece's least pixels: the last of it may be one that another piece has, too."""
WRITING_ROOM, WRITING_BYTES = 3 * 2**29, 16
"""Bytes of main memory for images on their way to the disk, and what a pixel of them takes."""
PIXELS_AT_ONCE = 2**17
"""Pixels of an image that are sorted together: with what names them they stay in a processor's cache."""
PAUSE = 0.5
"""Seconds after which a process looks again whether another one has written the store."""
MANIFEST, PIXELS, CHECKS, LOCK = "store.json", "pixels.bin", "checks.bin", "lock"
"""The store's files: whose pixels they are; all pieces, then thumbnails; checksums; held while it is written."""


class DiskStore:
    """Pixels that masks leave, in the order of :class:`Order`, with the numbers of those where there are masks.

    A photo that was written has a row of checksums, one a piece: an interrupted writing goes on after it. A piece is
    checked whenever it is read, and photos are written anew where it is not as it was. Photos that have changed, or are
    read in another way, have another folder.

    Args:
        dataset: whose images they are.
        root: folder that stores lie in.
        writes: whether this process writes what is not there, or waits until another one has.
    Raises:
        InputError: if masks leave no pixel, an image cannot be decoded, or the disk does not take the pixels.
    """

    def __init__(self, dataset: CheckedDataset, root: Path, writes: bool = True) -> None:
        self._dataset = dataset
        self.offsets, self.widths, count = places(dataset.sizes)
        self.number_type = number_type(count)
        identity = _identity(dataset, root)
        self.folder = root / f"pixels-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"
        with told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if foreign := {path.name for path in self.folder.iterdir()} - {MANIFEST, PIXELS, CHECKS, LOCK}:
                raise InputError(f"{self.folder} holds {min(foreign)}, which is not of a store of pixels. {ELSEWHERE}")
            while True:
                with locked(self.folder / LOCK):
                    if self._prepare(identity, writes):
                        return
                time.sleep(PAUSE)

    @property
    def channels(self) -> int:
        """Bytes of a pixel's color."""
        return self._dataset.channels

    def __str__(self) -> str:
        """Where it is, and what it takes there."""
        num_bytes = self._thumbnails[-1] + 4 * (self.order.num_pieces + 1) * len(self._dataset)
        return f"{self.folder} ({num_bytes / GIB:.1f} GiB)"

    def read(
        self, piece: int, colors: UInt8[np.ndarray, "length channels"], numbers: Int[np.ndarray, "length"]
    ) -> None:
        """Reads a piece: its pixels' colors and numbers, as all images' pixels are counted, into given arrays.

        Raises:
            InputError: if it was altered, and an image that it then needs has changed or the disk does not take it.
        """
        with told(self.folder):
            for _ in range(2):
                self._fill(piece, colors, numbers)
                altered = self._altered(piece, colors, numbers)
                if not altered:
                    return
                say(f"Pixels of {len(altered)} images in {self.folder} were altered: they are written anew.")
                self._write(altered)
        raise InputError(f"{self.folder} does not keep what is written to it. {ELSEWHERE}")

    def thumbnail(self, index: int) -> UInt8[Tensor, "height width channels"]:
        """An image reduced to 100 pixels along its shorter side."""
        width, height = thumbnail_size(*self._dataset.sizes[index])
        begin, end = self._thumbnails[index : index + 2]
        small = np.fromfile(self.folder / PIXELS, np.uint8, end - begin, offset=begin)
        return torch.from_numpy(small.reshape(height, width, self.channels))

    def remove(self) -> None:
        """Takes the store from the disk, if no other process has; what else lies in its folder stays."""
        with suppress(OSError):
            for name in (MANIFEST, PIXELS, CHECKS, LOCK):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()

    def _prepare(self, identity: dict[str, Any], writes: bool) -> bool:
        """Whether the store is whole, after it has been made so if that is this process's part."""
        manifest = self.folder / MANIFEST
        try:
            written = json.loads(manifest.read_text(encoding="utf-8"))
            counts = written["counts"] if written["of"] == identity else None
        except (OSError, ValueError, KeyError, TypeError):
            counts = None
        is_new = counts is None
        if is_new:
            if not writes:
                return False
            counts = self._count()
        if sum(counts) == 0:
            raise InputError(NOTHING_USED)
        self._lay_out(counts)
        size = self._thumbnails[-1]
        pixels, checks = self.folder / PIXELS, self.folder / CHECKS
        if is_new or not pixels.is_file() or pixels.stat().st_size != size or not checks.is_file():
            if not writes:
                return False
            if not is_new:
                say(f"{self.folder} was cut short: it is written anew.")
            for name in (CHECKS, PIXELS, MANIFEST):
                (self.folder / name).unlink(missing_ok=True)
            self._allocate(size)
            manifest.write_text(json.dumps({"of": identity, "counts": counts}), encoding="utf-8")
        rows = np.zeros((len(counts), self.order.num_pieces + 1), np.uint32)
        found = np.fromfile(checks, np.uint32, rows.size)
        rows.reshape(-1)[: len(found)] = found
        self._checks = rows
        # A row of nothing has another checksum than the zero that it ends with.
        absent = [index for index, row in enumerate(rows) if zlib.crc32(row[:-1]) != row[-1]]
        if absent and writes:
            say(f"Writing the pixels of {len(absent)} images to {self}, once. The folder can be deleted at any time.")
            self._write(absent)
        return writes or not absent

    def _lay_out(self, counts: list[int]) -> None:
        """Where everything is.

        Args:
            counts: of the pixels that masks leave of each image.
        """
        self._ends = np.cumsum(counts)
        self._begins = self._ends - counts
        # Numbers that follow from the order are not stored.
        self._has_numbers = self._dataset.is_masked
        self._number_bytes = self.number_type.itemsize
        record = self.channels + self._number_bytes * self._has_numbers
        pixels = int(self._ends[-1])
        num_pieces = min(max(FEWEST_PIECES, pixels * record // PIECE_BYTES), pixels // SHORTEST)
        self.order = Order(pixels, max(num_pieces, 1))
        sizes = [width * height * self.channels for width, height in self._thumbnail_sizes()]
        ranges = [(index, each) for index in range(len(counts)) for each in self._ranges(index)]
        self._owners, self._bounds = [index for index, _ in ranges], np.array([each for _, each in ranges])
        self._thumbnails = (self.order.num_pieces * self.order.length * record + np.cumsum([0, *sizes])).tolist()

    def _thumbnail_sizes(self) -> Iterator[tuple[int, int]]:
        return (thumbnail_size(*size) for size in self._dataset.sizes)

    def _count(self) -> list[int]:
        """How many pixels of each image are used."""
        if not self._dataset.is_masked:
            return [width * height for width, height in self._dataset.sizes]
        with _threads(self._dataset) as pool, get_progress("Reading masks") as progress:
            used = pool.map(lambda index: int(self._dataset.used(index).sum()), range(len(self._dataset)))
            return list(progress.track(used, total=len(self._dataset)))

    def _allocate(self, size: int) -> None:
        """Takes the room for all pixels, so that a disk that has too little says so at once."""
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise InputError(
                f"the pixels of {len(self._dataset)} images need {size / GIB:.1f} GiB in {self.folder}, where "
                f"{free / GIB:.1f} GiB are free. {ELSEWHERE}"
            )
        try:
            with open(self.folder / PIXELS, "wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
        except OSError:
            (self.folder / PIXELS).unlink(missing_ok=True)
            raise
        (self.folder / CHECKS).touch()

    def _write(self, images: list[int]) -> None:
        """Writes the pixels of some images, each by a thread of its own."""
        with _threads(self._dataset) as pool, get_progress("Writing pixels") as progress:
            for _ in progress.track(pool.map(self._write_image, images), total=len(images)):
                pass

    def _write_image(self, index: int) -> None:
        data = self._dataset.get_data(index, image_type="uint8")
        image = data["image"].numpy()
        colors, numbers = image.reshape(-1, self.channels), None
        if self._has_numbers:
            mask = data["mask"].numpy().reshape(-1)
            numbers = np.flatnonzero(mask)
            colors = colors[numbers]
            numbers = (numbers + int(self.offsets[index])).astype(self._numpy_type)
        if len(colors) != self._ends[index] - self._begins[index]:
            raise InputError(f"mask of {self._dataset.image_filenames[index]} has changed. Start again.")
        row = np.zeros(self.order.num_pieces + 1, np.uint32)
        with open(self.folder / PIXELS, "r+b", buffering=0) as file:
            for begin, end in self._ranges(index):
                self._write_range(file, begin, end, colors, numbers, row)
            file.seek(self._thumbnails[index])
            write_fully(file, thumbnail(data["image"]).numpy())
        row[-1] = zlib.crc32(row[:-1])
        self._checks[index] = row
        with open(self.folder / CHECKS, "r+b", buffering=0) as file:
            file.seek(index * row.nbytes)
            write_fully(file, row)

    def _ranges(self, index: int) -> list[tuple[int, int]]:
        """An image's pixels as the order counts them: once more after the last, where they fill the last run."""
        begin, end = int(self._begins[index]), int(self._ends[index])
        pixels, total = self.order.num_pixels, self.order.num_pieces * self.order.length
        ranges = [(begin, end), (begin + pixels, min(end + pixels, total))]
        return [(begin, end) for begin, end in ranges if begin < end]

    def _write_range(
        self,
        file: FileIO,
        begin: int,
        end: int,
        colors: UInt8[np.ndarray, "_ channels"],
        numbers: Int[np.ndarray, "_"] | None,
        row: npt.NDArray[np.uint32],
    ) -> None:
        """Writes a range of pixels to all pieces, and continues their checksums.

        Args:
            colors, numbers: of the image's pixels, of which the first ones are in the range.
        """
        order, pieces = self.order, np.arange(self.order.num_pieces)
        first, last = begin // len(pieces), (end - 1) // len(pieces)
        parts = [(self._color_place, colors)] if numbers is None else [
            (self._color_place, colors), (self._number_place, numbers[:, None])
        ]  # fmt: skip
        sorted_parts = [np.empty((len(pieces), last + 1 - first, part.shape[1]), part.dtype) for _, part in parts]
        # A few runs at a time, which the processor's cache holds.
        for start in range(first, last + 1, at_once := max(PIXELS_AT_ONCE // len(pieces), 1)):
            runs = np.arange(start, min(start + at_once, last + 1))
            # Those of the first and the last run may be others' pixels, which are not written.
            at = (order.places(pieces[:, None], runs) + (runs * len(pieces) - begin)).clip(0, end - begin - 1)
            for (_, part), result in zip(parts, sorted_parts, strict=True):
                result[:, start - first : start - first + len(runs)] = np.take(part, at, axis=0)
        lows, highs = order.before(np.array([begin]), pieces), order.before(np.array([end]), pieces)
        for piece, low, high in zip(pieces.tolist(), lows.tolist(), highs.tolist(), strict=True):
            for (place, _), result in zip(parts, sorted_parts, strict=True):
                own = result[piece, low - first : high - first]
                row[piece] = zlib.crc32(own, int(row[piece]))
                file.seek(place(piece) + low * result.itemsize * result.shape[2])
                write_fully(file, own)

    def _fill(self, piece: int, colors: npt.NDArray[np.uint8], numbers: npt.NDArray[Any]) -> None:
        with open(self.folder / PIXELS, "rb", buffering=0) as file:
            read_fully(file, self._color_place(piece), colors)
            if self._has_numbers:
                read_fully(file, self._number_place(piece), numbers)
        if not self._has_numbers:
            numbers[:] = self.order.pixels(piece)
            if numbers[-1] >= self.order.num_pixels:
                numbers[-1] -= self.order.num_pixels

    def _altered(self, piece: int, colors: npt.NDArray[np.uint8], numbers: npt.NDArray[Any]) -> list[int]:
        """The images whose pixels in a piece are not as they were written."""
        found = [0] * len(self._checks)
        bounds = self.order.before(self._bounds, piece).tolist()
        for index, (low, high) in zip(self._owners, bounds, strict=True):
            found[index] = zlib.crc32(colors[low:high], found[index])
            if self._has_numbers:
                found[index] = zlib.crc32(numbers[low:high], found[index])
        return [index for index, check in enumerate(self._checks[:, piece].tolist()) if check != found[index]]

    def _color_place(self, piece: int) -> int:
        return piece * self.order.length * self.channels

    def _number_place(self, piece: int) -> int:
        length = self.order.length
        return self.order.num_pieces * length * self.channels + piece * length * self._number_bytes

    @property
    def _numpy_type(self) -> Any:
        return np.int32 if self.number_type == torch.int32 else np.int64


def _identity(dataset: CheckedDataset, root: Path) -> dict[str, Any]:
    """What the store's contents depend on."""
    outputs = dataset._dataparser_outputs
    files = []
    for path in [*outputs.image_filenames, *(outputs.mask_filenames or ())]:
        status = os.stat(path)
        # As seen from the stores, which may move together with the data.
        files.append([os.path.relpath(path, root), status.st_size, status.st_mtime_ns])
    color = None if dataset.mask_color is None else [float(value) for value in dataset.mask_color]
    treatment = [dataset.channels, color, dataset.ignore_masks, dataset.crop_radius]
    return {"format": FORMAT, "files": files, "sizes": [list(size) for size in dataset.sizes], "treatment": treatment}


@contextmanager
def _threads(dataset: CheckedDataset) -> Iterator[ThreadPoolExecutor]:
    """As many threads as the processor and memory allow; an error, or Ctrl-C, drops what they have not begun."""
    largest = max(width * height for width, height in dataset.sizes)
    room = min(WRITING_ROOM, room_on(torch.device("cpu")) // 4)
    pool = ThreadPoolExecutor(max(1, min(room // (WRITING_BYTES * largest), (os.cpu_count() or 1) + 4)))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
