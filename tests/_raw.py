"""Photographs in a camera's RAW format: DNG, which is TIFF with one color a pixel."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_FORMATS = {1: "B", 3: "H", 4: "I", 5: "I", 10: "i"}
"""Of TIFF's types of numbers; the last two are fractions, two numbers each."""
_SRGB = (32405, -15371, -4985, -9693, 18760, 416, 556, -2040, 10572)
"""From XYZ to linear sRGB, in ten-thousandths: colors are the sensor's own."""


def write_dng(path: Path, pixels: np.ndarray, orientation: int = 1, model: str = "X") -> Path:
    """Writes linear colors ``[height, width, 3]``, 8 bits, as a sensor with red, green, green and blue sees them."""
    height, width = pixels.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    color = (rows % 2 + columns % 2)[..., None]
    values = (np.take_along_axis(pixels, color, axis=2).astype("<u2") * 257).tobytes()
    matrix = [number for entry in _SRGB for number in (entry, 10000)]
    name = list(model.encode()) + [0]
    tags: list[tuple[int, int, list[int]]] = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [16]), (259, 3, [1]), (262, 3, [32803]), (271, 2, name),
        (272, 2, name), (273, 4, [0]), (274, 3, [orientation]), (277, 3, [1]), (278, 4, [height]),
        (279, 4, [len(values)]), (33421, 3, [2, 2]), (33422, 1, [0, 1, 1, 2]), (50706, 1, [1, 4, 0, 0]),
        (50721, 10, matrix), (50728, 5, [1] * 6), (50778, 3, [21]),
    ]  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4
    entries, others = b"", b""
    for tag, kind, numbers in tags:
        data = struct.pack(f"<{len(numbers)}{_FORMATS.get(kind, 'B')}", *numbers)
        count = len(numbers) // (2 if kind in (5, 10) else 1)
        if len(data) > 4:
            data, others = struct.pack("<I", after + len(others)), others + data + b"\0" * (len(data) % 2)
        entries += struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0")
    place = struct.pack("<HHI", 273, 4, 1)
    entries = entries.replace(place + bytes(4), place + struct.pack("<I", after + len(others)))
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + others + values)
    return path
