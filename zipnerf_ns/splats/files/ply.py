"""3DGS's .ply: a row of float32 for each Gaussian, nothing rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.gaussians import Gaussians

ANTIALIASED = "comment SplatRenderMode: mip"
"""How Brush, SplatTransform and PlayCanvas's engine mark what was optimized with an anti-aliasing filter."""
TYPES = {"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8", "uchar": "u1", "uint8": "u1"}
MOST_EXPONENT = 30.0
"""What stands for infinity where nothing is seen of the difference."""
MOST_HEADER_BYTES = 1 << 16


def write_ply(gaussians: Gaussians, path: Path) -> None:
    """Writes Gaussians as 3DGS's program does."""
    # Color by color, where Gaussians have coefficient by coefficient.
    rest = gaussians.sh[:, 1:].transpose(1, 2).flatten(1)
    columns = {
        ("x", "y", "z"): gaussians.means,
        ("nx", "ny", "nz"): torch.zeros_like(gaussians.means),
        tuple(f"f_dc_{i}" for i in range(3)): gaussians.sh[:, 0],
        tuple(f"f_rest_{i}" for i in range(rest.shape[1])): rest,
        ("opacity",): gaussians.opacities[:, None],
        tuple(f"scale_{i}" for i in range(3)): gaussians.scales,
        tuple(f"rot_{i}" for i in range(4)): gaussians.quats,
    }
    marks = [ANTIALIASED] if gaussians.antialiased else []
    properties = [f"property float {name}" for names in columns for name in names]
    lines = ["ply", "format binary_little_endian 1.0", *marks, f"element vertex {len(gaussians)}", *properties]
    rows = torch.cat(list(columns.values()), dim=1).detach().cpu().numpy().astype("<f4")
    with open(path, "wb") as file:
        file.write("\n".join([*lines, "end_header\n"]).encode())
        file.write(rows.tobytes())


def read_ply(path: Path) -> Gaussians:
    """The Gaussians of a .ply of any program's, with unit quaternions.

    Raises:
        InputError: if it is no binary .ply of Gaussians, or is cut off.
    """
    with open(path, "rb") as file:
        head, found, _ = file.read(MOST_HEADER_BYTES).partition(b"end_header\n")
        lines = [line.strip() for line in head.decode("ascii", "replace").splitlines()]
        if not found or lines[:1] != ["ply"] or "format binary_little_endian 1.0" not in lines:
            raise InputError(f"{path} is no binary little-endian .ply.")
        elements = [line.split() for line in lines if line.startswith("element ")]
        properties = [line.split() for line in lines if line.startswith("property ")]
        if [element[1] for element in elements] != ["vertex"] or any(words[1] not in TYPES for words in properties):
            raise InputError(f"{path} holds something else than Gaussians: it needs one element, vertex, of numbers.")
        layout = np.dtype([(words[2], TYPES[words[1]]) for words in properties])
        file.seek(len(head) + len(found))
        data = file.read()
    count = int(elements[0][2])
    if len(data) < count * layout.itemsize:
        raise InputError(f"{path} is cut off: {count:,} Gaussians need {count * layout.itemsize:,} bytes of numbers.")
    rows = np.frombuffer(data, layout, count)

    def read(*names: str) -> torch.Tensor:
        missing = [name for name in names if name not in layout.names]
        if missing:
            raise InputError(f"{path} holds no Gaussians: {missing[0]} is missing.")
        return torch.from_numpy(np.stack([rows[name].astype(np.float32) for name in names], axis=-1))

    number = sum(name.startswith("f_rest_") for name in layout.names)
    if number not in (0, 9, 24, 45, 72):
        raise InputError(f"{path} has {number} coefficients f_rest_: they are no whole number of degrees.")
    sh = read(*(f"f_dc_{i}" for i in range(3)))[:, None]
    if number:
        rest = read(*(f"f_rest_{i}" for i in range(number)))
        sh = torch.cat([sh, rest.reshape(count, 3, -1).transpose(1, 2)], dim=1)
    quats = read(*(f"rot_{i}" for i in range(4)))
    return Gaussians(
        read("x", "y", "z"),
        torch.nn.functional.normalize(quats, dim=-1),
        # Flat ones have no logarithm of their thickness, and opaque ones no logit.
        read(*(f"scale_{i}" for i in range(3))).clamp(min=-MOST_EXPONENT),
        read("opacity")[:, 0].clamp(-MOST_EXPONENT, MOST_EXPONENT),
        sh,
        antialiased=ANTIALIASED in lines,
    )
