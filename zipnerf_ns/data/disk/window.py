"""The part of a store on disk that is drawn from: some pieces on the device, replaced as the training goes on.

A piece is read ahead by a thread, and copied to where the oldest one was, between two steps and in the device's own
order of work: a step sees it whole or not at all. Which pieces are there follows from the step alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils.comms import get_rank, get_world_size

from zipnerf_ns.data.dataparsers.names import scene_folder
from zipnerf_ns.data.disk.order import spreading
from zipnerf_ns.data.disk.store import DiskStore
from zipnerf_ns.data.images import CheckedDataset
from zipnerf_ns.data.memory import GIB, check_room, room_on
from zipnerf_ns.data.pixels import PixelStore, num_bytes_of
from zipnerf_ns.errors import InputError, say_once

FEWEST_PIECES = 8
"""Pieces that a window has at least: no more than one ray in so many is of a piece that is exchanged."""
LOADING = 1.1
"""What loading takes of memory, over what is kept."""
LONG = 1.0
"""Seconds of waiting for the disk, after the first pieces, that are said."""


@dataclass
class PixelsConfig:
    """Where training pixels come from."""

    where: Literal["auto", "memory", "disk"] = "auto"
    """Where training pixels lie: memory, a store on disk that is written once, auto (memory, if they fit)."""
    folder: Path | None = None
    """Folder for stores on disk; None: .zipnerf-pixels in the data's folder."""
    buffer: float = 1.0
    """GiB of the pixels on disk that are on the device at a time; less where less is free."""
    keep: bool = True
    """Keep the store on disk for later trainings; False deletes it when the training is done."""

    def __post_init__(self) -> None:
        if not self.buffer > 0.0:
            raise InputError(f"--pipeline.datamanager.pixels.buffer is {self.buffer}: it must be positive.")


class Window(PixelStore):
    """Pieces of a store on disk on a device, from which pixels are drawn uniformly.

    After each step as many pixels are replaced as were drawn, on the average, and every pixel is drawn once while it is
    there: so many rays see as many different pixels as if all were in memory. Of several processes each has pieces of
    its own.

    Args:
        store: on disk.
        device: where the window is; its tensors stay in their place.
        num_pieces: in the window.
    """

    def __init__(self, store: DiskStore, device: torch.device, num_pieces: int) -> None:
        length = store.order.length
        self.store, self.num_pieces = store, min(num_pieces, store.order.num_pieces)
        count = self.num_pieces * length
        super().__init__(
            torch.zeros(count, store.channels, dtype=torch.uint8, device=device),
            store.offsets.to(device), store.widths.to(device),
            torch.zeros(count, dtype=store.number_type, device=device), is_gathered=True,
        )  # fmt: skip
        is_pinned = device.type == "cuda"
        self._buffers = [
            (
                torch.empty(length, store.channels, dtype=torch.uint8, pin_memory=is_pinned),
                torch.empty(length, dtype=store.number_type, pin_memory=is_pinned),
            )
            for _ in range(2)
        ]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pixels")
        self._reading: dict[int, Future[None]] = {}
        self._held = range(0)
        self._stride = spreading(length)

    def advance(self, num_pixels: int) -> None:
        """Has the window be where it is when so many pixels have been drawn by each process.

        Raises:
            InputError: if the store on disk cannot be read.
        """
        # Of processes that have drawn equally much each is elsewhere in its pieces, for these are alike.
        self._drawn.fill_(num_pixels + len(self) * get_rank() // get_world_size())
        first = 0 if self.num_pieces == self.store.order.num_pieces else num_pixels // self.store.order.length
        wanted = range(first, first + self.num_pieces)
        if wanted == self._held:
            return
        start, is_first = perf_counter(), not self._held
        for number in wanted:
            if number not in self._held:
                self._place(number)
        self._held = wanted
        if not is_first and perf_counter() - start > LONG:
            say_once(f"Warning: the training waits for {self.store.folder}: a faster disk would speed it up.")

    def draw(self, num_rays: int) -> Int[Tensor, "rays"]:
        """Numbers of the window's pixels: by turns one of each piece, in steps that come by all of it.

        A piece stays for as many turns as it has pixels, and whenever they begin each of its pixels has one.
        """
        if not self._held:
            self.advance(0)
        length = self.store.order.length
        drawn = self._next_draws(num_rays)
        rounds = drawn // self.num_pieces
        # Another piece begins each round, lest some of a step's rays be always of the same ones.
        places = (drawn + rounds) % self.num_pieces
        return places * length + (rounds * self._stride + places * (length // self.num_pieces)) % length

    def thumbnail(self, index: int) -> UInt8[Tensor, "height width channels"]:
        """An image made small, as the store has it."""
        return self.store.thumbnail(index)

    def describe(self) -> str:
        """How many pixels there are, and where."""
        buffer = f"{self.num_bytes / GIB:.2f} GiB of them at a time on {self.colors.device}"
        return f"{self.store.order.num_pixels:,} pixels in {self.store}, {buffer}"

    def remove(self) -> None:
        """Ends reading, and deletes the store."""
        self._thread.shutdown(cancel_futures=True)
        self.store.remove()

    def _place(self, number: int) -> None:
        """Copies a piece to its place in the window, and has the next one read meanwhile."""
        self._request(number)
        self._reading.pop(number).result()
        length = self.store.order.length
        begin = number % self.num_pieces * length
        for there, here in zip((self.colors, self.allowed), self._buffers[number % 2], strict=True):
            there[begin : begin + length].copy_(here, non_blocking=True)
        if self.colors.is_cuda:
            self._copied[number % 2] = torch.cuda.current_stream(self.colors.device).record_event()
        # What was read ahead of another place is of no use any more.
        self._reading.clear()
        self._request(number + 1)

    def _request(self, number: int) -> None:
        if number not in self._reading:
            self._reading[number] = self._thread.submit(self._read, number)

    def _read(self, number: int) -> None:
        if (copied := self._copied[number % 2]) is not None:
            copied.synchronize()
        num_pieces = self.store.order.num_pieces
        # Several processes begin as far apart as they can.
        piece = (number + num_pieces * get_rank() // get_world_size()) % num_pieces
        colors, numbers = self._buffers[number % 2]
        self.store.read(piece, colors.numpy(), numbers.numpy())


def moving_on(pixels: Callable[[], PixelStore | None], num_rays: int, keep: bool) -> list[TrainingCallback]:
    """What has each step of a training draw its own pixels, and at its end removes a store that is not kept.

    Args:
        pixels: gives those that are drawn from; they may not be there before the first step.
        num_rays: of a step.
        keep: the store for later trainings.
    """

    def advance(step: int) -> None:
        if (store := pixels()) is not None:
            store.advance(step * num_rays)

    def end(step: int) -> None:
        if isinstance(window := pixels(), Window) and not keep:
            window.remove()

    before, after = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION, TrainingCallbackLocation.AFTER_TRAIN
    return [TrainingCallback([before], advance), TrainingCallback([after], end)]


def open_pixels(
    dataset: CheckedDataset,
    device: torch.device | str,
    config: PixelsConfig,
    data: Path,
    beside: int = 0,
    writes: bool = True,
) -> PixelStore:
    """A dataset's pixels, where they are to lie.

    Args:
        device: where they are to be drawn.
        data: the data's folder, or a file in it.
        beside: bytes that the rest of the training needs on the device.
        writes: whether this process, of several on a machine, is the one that writes a store.
    Raises:
        InputError: if they cannot lie there.
    """
    device = torch.device(device)
    room = room_on(device) - beside
    fits = LOADING * num_bytes_of(dataset) <= room
    if config.where == "memory" or (config.where == "auto" and fits):
        return PixelStore.load(dataset, device)
    folder = config.folder or scene_folder(data) / ".zipnerf-pixels"
    store = DiskStore(dataset, folder.absolute(), writes)
    piece = store.order.length * (store.channels + store.number_type.itemsize)
    num_pieces = max(int(min(config.buffer * GIB, max(room, 0) / 2) / piece), FEWEST_PIECES)
    check_room("a buffer of pixels needs", num_pieces * piece, device, "End what else uses it.")
    return Window(store, device, num_pieces)
