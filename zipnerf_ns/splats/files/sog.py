"""PlayCanvas's .sog, version 2 (https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog).

A few lossless images whose pixels are Gaussians, sorted so that neighbors in space are neighbors in the images: 15 to
20 bytes each with coefficients of degree 3, and a browser decodes them.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.files.compact import check_unpacked, codebook, morton_order, palette, visibility
from zipnerf_ns.splats.gaussians import Gaussians

MOST_SH = 1 << 16
"""Sets of coefficients above the constant that a label of two bytes can name."""
PALETTE_COLUMNS = 64
"""Sets of coefficients in a row of their image."""
LARGEST_FIRST = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""The parts that are stored of a quaternion, by the place of the largest, which is not."""


def encode(gaussians: Gaussians) -> dict[str, bytes]:
    """The files of a scene by their names, ``meta.json`` the first; Gaussians sorted along a space-filling curve.

    Raises:
        InputError: for coefficients above degree 3, which the format has no place for.
    """
    if gaussians.degree > 3:
        raise InputError(f".sog holds coefficients up to degree 3, these are of degree {gaussians.degree}.")
    places = gaussians.means.sign() * gaussians.means.abs().log1p()
    scene = gaussians.select(morton_order(places))
    places = scene.means.sign() * scene.means.abs().log1p()
    low, high = places.min(dim=0).values, places.max(dim=0).values
    fine = ((places - low) / (high - low).clamp(min=1e-12) * 65535.0).round().long()
    largest = scene.quats.abs().argmax(dim=1)
    signs = torch.where(scene.quats.gather(1, largest[:, None]) < 0.0, -1.0, 1.0)
    smaller = (scene.quats * signs).gather(1, LARGEST_FIRST.to(largest.device)[largest])
    tangled = ((smaller / math.sqrt(2.0) + 0.5) * 255.0).round().long().clamp(0, 255)
    scales, scale_labels = codebook(scene.scales)
    colors, color_labels = codebook(scene.sh[:, 0])
    opacities = (torch.sigmoid(scene.opacities) * 255.0).round().long()
    # As wide as high, in multiples of four.
    width = 4 * math.ceil(math.sqrt(len(scene)) / 4.0)
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": "zipnerf-ns"},
        "count": len(scene),
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": scales.tolist(), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": colors.tolist(), "files": ["sh0.webp"]},
    }
    images = {
        "means_l.webp": _image(fine & 255, width),
        "means_u.webp": _image(fine >> 8, width),
        "scales.webp": _image(scale_labels, width),
        "quats.webp": _image(torch.cat([tangled, largest[:, None] + 252], dim=1), width),
        "sh0.webp": _image(torch.cat([color_labels, opacities[:, None]], dim=1), width),
    }
    if scene.antialiased:
        meta["model"] = "antialiased"
    if scene.degree:
        rest = scene.sh[:, 1:].flatten(1)
        sets, labels = rest.unique(dim=0, return_inverse=True)
        if len(sets) > MOST_SH:
            # A million Gaussians take seconds on a GPU, and minutes without.
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            found = palette(rest.to(device), MOST_SH, visibility(scene).to(device))
            sets, labels = (value.to(rest.device) for value in found)
        numbers, set_labels = codebook(sets)
        files = ["shN_centroids.webp", "shN_labels.webp"]
        meta["shN"] = {"count": len(sets), "bands": scene.degree, "codebook": numbers.tolist(), "files": files}
        images[files[0]] = _image(set_labels.reshape(-1, 3), PALETTE_COLUMNS * (rest.shape[1] // 3))
        images[files[1]] = _image(torch.stack([labels & 255, labels >> 8, torch.zeros_like(labels)], dim=1), width)
    return {"meta.json": json.dumps(meta).encode(), **images}


def write_sog(gaussians: Gaussians, path: Path) -> None:
    """Writes Gaussians, rounded, into one file.

    Raises:
        InputError: as :func:`encode`.
    """
    files = encode(gaussians)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def read_sog(path: Path) -> Gaussians:
    """The Gaussians of a .sog of version 2.

    Raises:
        InputError: if it is of another version, or claims more than there is room for.
        Exception: of any kind, if it is none, or is cut off.
    """
    with zipfile.ZipFile(path) as archive:

        def read(name: str) -> bytes:
            check_unpacked(path, archive.getinfo(name).file_size)
            data = archive.read(name)
            if name.endswith(".webp"):
                # Only the header is read here.
                with Image.open(io.BytesIO(data)) as image:
                    check_unpacked(path, 4 * image.width * image.height)
            return data

        return decode(read)


def decode(read: Callable[[str], bytes]) -> Gaussians:
    """The Gaussians of a scene's files.

    Args:
        read: the content of a file by its name.
    Raises:
        InputError: for another version.
        Exception: of any kind, for what is none.
    """
    meta = json.loads(read("meta.json"))
    if meta["version"] != 2:
        raise InputError(f"it is a .sog of version {meta['version']}, and version 2 is read here.")
    count = meta["count"]

    def pixels(part: str, file: int) -> Int[Tensor, "count channels"]:
        image = Image.open(io.BytesIO(read(meta[part]["files"][file]))).convert("RGBA")
        return torch.from_numpy(np.asarray(image).reshape(-1, 4).astype(np.int64))

    def named(part: str, labels: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.tensor(meta[part]["codebook"])[labels]

    low, high = (torch.tensor(meta["means"][name]) for name in ("mins", "maxs"))
    fine = pixels("means", 0)[:count, :3] | pixels("means", 1)[:count, :3] << 8
    places = low + (high - low) * (fine / 65535.0)
    packed = pixels("quats", 0)[:count]
    smaller = (packed[:, :3] / 255.0 - 0.5) * math.sqrt(2.0)
    largest = packed[:, 3] - 252
    quats = torch.zeros(count, 4).scatter(1, LARGEST_FIRST[largest], smaller)
    quats = quats.scatter(1, largest[:, None], (1.0 - smaller.square().sum(1, keepdim=True)).clamp(min=0.0).sqrt())
    colors = pixels("sh0", 0)[:count]
    sh = named("sh0", colors[:, None, :3])
    if "shN" in meta:
        terms = (meta["shN"]["bands"] + 1) ** 2 - 1
        sets = named("shN", pixels("shN", 0)[: meta["shN"]["count"] * terms, :3]).reshape(-1, terms, 3)
        labels = pixels("shN", 1)[:count]
        sh = torch.cat([sh, sets[labels[:, 0] | labels[:, 1] << 8]], dim=1)
    return Gaussians(
        places.sign() * places.abs().expm1(),
        torch.nn.functional.normalize(quats, dim=-1),
        named("scales", pixels("scales", 0)[:count, :3]),
        # An opacity of 0 or 1 has no logit: half a step from it.
        torch.logit((colors[:, 3] / 255.0).clamp(0.5 / 255.0, 254.5 / 255.0)),
        sh,
        antialiased=meta.get("model") == "antialiased",
    )


def _image(rows: Int[Tensor, "pixels channels"], width: int) -> bytes:
    """A lossless image of pixels in rows of a width; opaque where there is no fourth channel."""
    height = math.ceil(len(rows) / width)
    pixels = np.zeros((height * width, 4), np.uint8)
    pixels[:, 3] = 255
    pixels[: len(rows), : rows.shape[1]] = rows.cpu().numpy()
    data = io.BytesIO()
    # Exact: colors of pixels that would be invisible are numbers, too. Quality 100 takes ten times as long for 0.1%.
    image = Image.fromarray(pixels.reshape(height, width, 4))
    image.save(data, "WEBP", lossless=True, exact=True, quality=75, method=4)
    return data.getvalue()
