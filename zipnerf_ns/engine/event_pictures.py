"""Pictures of an evaluation on their way into TensorBoard's file, beside the training.

To compress those of one 800x800 evaluation as Nerfstudio does takes more than a second, in which Python could launch
hundreds of steps. Zlib alone takes a quarter of that for files that are little larger, and Python goes on meanwhile.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, List

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.utils.tensorboard.summary import Summary

# Not from where it lies: the two modules import each other, and only this one may come first.
from nerfstudio.configs.base_config import writer

Event = Any
"""A dictionary, as Nerfstudio's writer keeps it. (A checker of types that draws entries at random, as the tests' does,
would draw by another thread, and from the generator that training resumes with.)"""
COMPRESSION = 1
"""Zlib's level, 0 to 9: higher ones take several times as long for files that are hardly smaller."""
COLOR_TYPES = {1: 0, 3: 2, 4: 6}
"""PNG's numbers for grey, RGB and RGBA (PNG specification, section 11.2.2)."""
DIFFERENCE_TO_ROW_ABOVE = 2
"""PNG's number for the filter that leaves small numbers of smooth pictures (section 9.2)."""


def take_pictures() -> List[Event]:
    """Takes the pictures out of Nerfstudio's waiting events; none if some writer is not TensorBoard's.

    Others want their events in the order of the steps, which pictures that come later would break.
    """
    known = (writer.TensorboardWriter, writer.LocalWriter)
    if not all(isinstance(event_writer, known) for event_writer in writer.EVENT_WRITERS):
        return []
    waiting = writer.EVENT_STORAGE
    # From behind and one by one: another thread may add events at the end.
    numbers = [index for index, event in enumerate(waiting) if event["write_type"] is writer.EventType.IMAGE]
    return [waiting.pop(index) for index in reversed(numbers)][::-1]


def write_pictures(pictures: List[Event]) -> None:
    """Writes what :func:`take_pictures` took, with the tags and pixels that Nerfstudio would write."""
    for event in pictures:
        height, width, channels = event["event"].shape
        image = Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=as_png(event["event"])
        )
        summary = Summary(value=[Summary.Value(tag=event["name"], image=image)])
        for event_writer in writer.EVENT_WRITERS:
            if isinstance(event_writer, writer.TensorboardWriter):
                event_writer.tb_writer._get_file_writer().add_summary(summary, event["step"])


def as_png(picture: Float[Tensor, "height width channels"]) -> bytes:
    """A picture of one, three or four channels in [0, 1] as the content of a PNG file."""
    pixels = np.asarray(writer.to8b(picture))
    height, width, channels = pixels.shape
    rows = np.full((height, 1 + width * channels), DIFFERENCE_TO_ROW_ABOVE, dtype=np.uint8)
    rows[:, 1:] = np.diff(pixels.reshape(height, -1), axis=0, prepend=np.uint8(0))
    header = struct.pack(">IIBBBBB", width, height, 8, COLOR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(rows, COMPRESSION)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
