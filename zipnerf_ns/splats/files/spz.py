"""Niantic's .spz, version 3 (https://github.com/nianticlabs/spz): columns of rounded numbers in one gzip stream.

Axes stay as they are, as Niantic's own converter and PlayCanvas's leave them.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.files.compact import check_unpacked, morton_order
from zipnerf_ns.splats.gaussians import Gaussians

HEADER = struct.Struct("<IIIBBBB")
"""Magic number, version, number of Gaussians, degree, fractional bits of positions, flags, nothing."""
MAGIC, VERSION, ANTIALIASED = 0x5053474E, 3, 1
MOST_FRACTIONAL_BITS = 16
"""Positions to a 65,536th of a unit where the scene is small enough: finer ones would only be more bytes."""
COLOR_SCALE = 0.15
SQRT_HALF = math.sqrt(0.5)


def write_spz(gaussians: Gaussians, path: Path) -> None:
    """Writes Gaussians rounded to about 25 bytes each, 64 before compression with coefficients of degree 3.

    Raises:
        InputError: for positions that 24 bits cannot hold.
    """
    # Neighbors have much in common, which gzip finds: a quarter less.
    gaussians = gaussians.select(morton_order(gaussians.means))
    reach = float(gaussians.means.abs().max())
    bits = min(MOST_FRACTIONAL_BITS, math.floor(math.log2((2**23 - 1) / max(reach, 1.0)))) if reach < 2**23 else -1
    if bits < 0:
        raise InputError(f"the scene reaches {reach:.3g} units from its origin: .spz holds up to 8,388,607.")
    positions = _numbers(gaussians.means * 2.0**bits).astype("<i4")
    opacities = torch.sigmoid(gaussians.opacities)
    columns = [
        positions.reshape(-1, 3, 1).view("u1")[:, :, :3],
        _bytes(opacities * 255.0),
        _bytes((gaussians.sh[:, 0] * COLOR_SCALE + 0.5) * 255.0),
        _bytes((gaussians.scales + 10.0) * 16.0),
        pack_quaternions(gaussians.quats.detach().cpu().double().numpy()),
        # All eight bits: with 7 and 6 of them a trained scene lost 0.16 dB instead of 0.01, for a fifth fewer bytes.
        _bytes(gaussians.sh[:, 1:] * 128.0 + 128.0),
    ]
    header = HEADER.pack(MAGIC, VERSION, len(gaussians), gaussians.degree, bits, ANTIALIASED * gaussians.antialiased, 0)
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(header + b"".join(column.tobytes() for column in columns))


def read_spz(path: Path) -> Gaussians:
    """The Gaussians of a .spz of version 2 or 3.

    Raises:
        InputError: if it is of another version, is cut off, or claims more than there is room for.
        OSError, EOFError, zlib.error, struct.error: if it is none.
    """
    with gzip.open(path, "rb") as file:
        magic, version, count, degree, bits, flags, _ = HEADER.unpack(file.read(HEADER.size))
        if magic != MAGIC or version not in (2, 3) or degree > 4:
            raise InputError(f"{path} is no .spz of version 2 or 3.")
        rest = 3 * ((degree + 1) ** 2 - 1)
        widths = [9, 1, 3, 3, 4 if version == 3 else 3, rest]
        check_unpacked(path, count * sum(widths))
        data = file.read(count * sum(widths))
    if len(data) < count * sum(widths):
        raise InputError(f"{path} is cut off: {count:,} Gaussians need {count * sum(widths):,} bytes.")
    columns, start = [], 0
    for width in widths:
        columns.append(np.frombuffer(data, "u1", count * width, start).reshape(count, width))
        start += count * width
    positions, opacities, colors, scales, quats, coefficients = columns
    # Three bytes become the upper ones of four, which shifts their sign to where it belongs.
    wide = np.concatenate([np.zeros((count, 3, 1), "u1"), positions.reshape(count, 3, 3)], axis=2)
    sh = np.concatenate(
        [(colors[:, None] / 255.0 - 0.5) / COLOR_SCALE, (coefficients.reshape(count, -1, 3) - 128.0) / 128.0], axis=1
    )
    unpack = unpack_quaternions if version == 3 else _unpack_first_three
    parts = [
        (wide.view("<i4")[:, :, 0] >> 8) / 2.0**bits,
        unpack(quats),
        scales / 16.0 - 10.0,
        # An opacity of 0 or 1 has no logit: half a step from it.
        -np.log(255.0 / np.clip(opacities[:, 0], 0.5, 254.5) - 1.0),
        sh,
    ]
    return Gaussians(*(torch.from_numpy(part.astype(np.float32)) for part in parts), bool(flags & ANTIALIASED))


def pack_quaternions(quats: Float[np.ndarray, "gaussians 4"]) -> UInt8[np.ndarray, "gaussians 4"]:
    """The largest part's place among x, y, z, w in two bits, then the others' signs and nine bits of each."""
    xyzw = quats[:, [1, 2, 3, 0]]
    largest = np.abs(xyzw).argmax(axis=1)
    xyzw = xyzw * np.where(np.take_along_axis(xyzw, largest[:, None], 1) < 0.0, -1.0, 1.0)
    packed = largest.astype(np.uint32)
    magnitudes = np.floor(511.0 * np.abs(xyzw) / SQRT_HALF + 0.5).astype(np.uint32)
    for i in range(4):
        longer = packed << 10 | (xyzw[:, i] < 0.0).astype(np.uint32) << 9 | np.minimum(magnitudes[:, i], 511)
        packed = np.where(largest == i, packed, longer)
    return packed.astype("<u4")[:, None].view("u1")


def unpack_quaternions(packed: UInt8[np.ndarray, "gaussians 4"]) -> Float[np.ndarray, "gaussians 4"]:
    """Unit quaternions w, x, y, z of :func:`pack_quaternions`."""
    left = np.ascontiguousarray(packed).view("<u4")[:, 0]
    largest = left >> 30
    xyzw = np.zeros((len(packed), 4))
    for i in reversed(range(4)):
        value = (left & 511) / 511.0 * SQRT_HALF * np.where(left >> 9 & 1, -1.0, 1.0)
        xyzw[:, i] = np.where(largest == i, 0.0, value)
        left = np.where(largest == i, left, left >> 10)
    rest = np.sqrt(np.maximum(0.0, 1.0 - np.square(xyzw).sum(axis=1)))
    np.put_along_axis(xyzw, largest[:, None].astype(np.int64), rest[:, None], 1)
    return xyzw[:, [3, 0, 1, 2]]


def _unpack_first_three(packed: UInt8[np.ndarray, "gaussians 3"]) -> Float[np.ndarray, "gaussians 4"]:
    """Unit quaternions of version 2: x, y and z in eight bits each."""
    xyz = packed / 127.5 - 1.0
    return np.concatenate([np.sqrt(np.maximum(0.0, 1.0 - np.square(xyz).sum(axis=1, keepdims=True))), xyz], axis=1)


def _numbers(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().double().round().numpy()


def _bytes(values: torch.Tensor) -> np.ndarray:
    return _numbers(values).clip(0, 255).astype("u1")
