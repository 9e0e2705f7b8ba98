"""The sharpest frames of a video, spread evenly over it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.reconstruction.pictures import save
from zipnerf_ns.tools.reconstruction.sources import Photo


class Footage(NamedTuple):
    """A video that is being read."""

    size: tuple[int, int]
    """Width and height of its frames, upright, pixels."""
    count: int
    """How many frames it should have."""
    frames: Iterator[UInt8[np.ndarray, "height width 3"]]


def sharpness(picture: UInt8[np.ndarray, "height width 3"]) -> float:
    """The mean square of the second differences of brightness at half size, where noise counts for little."""
    rows, columns = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    green = picture[:rows, :columns, 1].astype(np.float32)
    gray = 0.25 * (green[::2, ::2] + green[1::2, ::2] + green[::2, 1::2] + green[1::2, 1::2])
    laplacian = gray[1:-1, :-2] + gray[1:-1, 2:] + gray[:-2, 1:-1] + gray[2:, 1:-1] - 4.0 * gray[1:-1, 1:-1]
    return float(np.square(laplacian).mean())


def sharpest(
    frames: Iterable[Any],
    count: int,
    wanted: int,
    measure: Callable[[Any], float] = sharpness,
) -> Iterator[tuple[int, Any]]:
    """The sharpest frame of each of ``wanted`` equal pieces, with its number; all where there are no more.

    Args:
        frames: one after the other; only one is kept.
        count: how many there should be; those beyond belong to the last piece.
    """
    best: tuple[float, int, Any] | None = None
    piece = 0
    wanted = min(wanted, count)
    for index, frame in enumerate(frames):
        now = min(index * wanted // count, wanted - 1)
        if best is not None and now != piece:
            yield best[1:]
            best = None
        piece = now
        value = measure(frame)
        if best is None or value > best[0]:
            best = (value, index, frame)
    if best is not None:
        yield best[1:]


def open_video(path: Path) -> Footage:
    """A video by the ffmpeg that pip brought, turned as its file says.

    Raises:
        InputError: if it cannot be read.
    """
    import imageio_ffmpeg

    # It warns of every video that is shown turned.
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
    try:
        reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
        about = next(reader)
    except (OSError, RuntimeError, StopIteration) as error:
        raise InputError(f"{path} cannot be read as a video. Write it anew as MP4, or give photographs.") from error
    width, height = about["size"]
    frames = (np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader)
    count = round(about["duration"] * about["fps"])
    if count < 1:
        # Some files, as browsers record them, do not say how long they are.
        count = max(imageio_ffmpeg.count_frames_and_secs(str(path))[0], 1)
    return Footage((width, height), count, frames)


def take_frames(
    path: Path, stem: str, sequence: int, wanted: int, folder: Path, advance: Callable[[float], None]
) -> list[Photo]:
    """Writes a video's sharpest frames as JPEG into a folder; nothing is done where that has been done.

    Args:
        stem: beginning of their names.
        sequence: number of the video's sequence.
        advance: told of each frame, as a share of all that are taken.

    Raises:
        InputError: if the video cannot be read, or holds too little.
    """
    record = folder / f"{stem}.json"
    about = {"wanted": wanted, "date": path.stat().st_mtime_ns}
    names = []
    if record.is_file():
        known = json.loads(record.read_text())
        names = known["frames"] if {name: known[name] for name in about} == about else []
    if not names:
        footage = open_video(path)
        for index, frame in sharpest(footage.frames, footage.count, wanted):
            names.append(f"{stem}_{index:05d}")
            save(Image.fromarray(frame), folder / f"{names[-1]}.jpg")
            advance(1.0 / min(wanted, footage.count))
        if not names:
            raise InputError(f"{path} holds no frame that can be read.")
        write_json(record, {**about, "frames": names})
    return [Photo(folder / f"{name}.jpg", name, sequence, video=path) for name in names]
