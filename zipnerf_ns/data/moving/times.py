"""When photos were taken: what a transforms file's frames say of it, as numbers from 0 to 1.

A method that knows no time must not fail for what is said of it: a fault is kept, and told where times are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

from zipnerf_ns.data.intrinsics import to_number
from zipnerf_ns.errors import InputError, say_once, shorten

TIME_FAULT = "zipnerf_time_fault"
"""Key of a dataset's metadata, and of what is read of a file, for why the times that are said cannot be used."""
MOVING = "zipnerf-dynamic"
"""The method that asks for them."""
MEND = "Give each frame its 'time' (from 0 to 1) or 'timestamp', or train zipnerf, for which nothing moves."
"""What to do where photos have no times."""
TIME_KEYS = ("time", "timestamp")
"""Keys of a frame: from 0 to 1, or in any unit and from any beginning; the first that is there counts."""


class Times(NamedTuple):
    """What is said of time, by frame."""

    values: list[float] | None = None
    """From 0 to 1; None where nothing is said, or nothing that can be used."""
    fault: str | None = None
    """Why it cannot be used, and what to do, in one line."""


def read_times(frames: Sequence[Mapping[str, Any]], path: Path, is_whole: bool) -> Times:
    """The times of frames.

    Args:
        frames: with a ``where`` each, and their images' names.
        path: of the file.
        is_whole: whether it holds all frames of its scene, and so the first and the last moment.
    """
    key = next((key for key in TIME_KEYS if any(frame.get(key) is not None for frame in frames)), None)
    if key is None:
        return Times()
    without = [str(frame["file_path"]) for frame in frames if frame.get(key) is None]
    if without:
        return Times(fault=f"{path}: '{key}' is missing for {shorten(without)}. Give it to every frame, or to none.")
    try:
        numbers = [to_number(frame[key], f"{frame['where']}: '{key}'") for frame in frames]
    except InputError as error:
        return Times(fault=str(error))
    if key == "timestamp":
        first, last = min(numbers), max(numbers)
        if not is_whole:
            mend = "Write 'time' instead, from 0 at the scene's beginning to 1 at its end."
            return Times(fault=f"{path}: 'timestamp' of one file alone does not say where in the scene it is. {mend}")
        # Where all are one, that is said of the views that are trained on.
        return Times([(number - first) / ((last - first) or 1.0) for number in numbers])
    for frame, number in zip(frames, numbers, strict=True):
        if not 0.0 <= number <= 1.0:
            mend = "It must be from 0 to 1; call it 'timestamp' if it counts seconds or frames."
            return Times(fault=f"{frame['where']}: 'time' is {frame[key]}. {mend}")
    return Times(numbers)


def settle_time_step(outputs: DataparserOutputs, data: Path, is_needed: bool) -> float | None:
    """The time from one moment to the next of the photos that are trained on; None where it is not known.

    Args:
        outputs: of a dataparser.
        data: what it read.
        is_needed: whether the model asks for times; where it does not, that they are there is said.
    Raises:
        InputError: where times are needed and cannot be used.
    """
    times = outputs.cameras.times
    moments = [] if times is None else times.double().unique()
    if is_needed:
        check_times(outputs, data)
        if len(moments) < 2:
            raise InputError(f"{data}: all photos were taken at one time ({float(moments[0]):g}). {MEND}")
    if len(moments) < 2:
        return None
    if not is_needed:
        say_once(f"{data} says when photos were taken, which this method ignores: {MOVING} is for scenes that move.")
    return float(moments.diff().median())


def cameras_at_once(cameras: Cameras) -> int:
    """Places from which photos show one moment, on average; 1 where none says its time."""
    if cameras.times is None:
        return 1
    times = cameras.times.double().reshape(-1, 1)
    places = torch.cat([times, cameras.camera_to_worlds[..., 3].double().reshape(-1, 3)], dim=1).unique(dim=0)
    return round(len(places) / len(times.unique()))


def check_times(outputs: DataparserOutputs, data: Path) -> None:
    """Checks that photos have times, for a model that needs them.

    Args:
        outputs: of a dataparser.
        data: what it read.
    Raises:
        InputError: saying why there are none, and what to do.
    """
    times = outputs.cameras.times
    if times is None:
        fault = outputs.metadata.get(TIME_FAULT)
        raise InputError(fault or f"{data} does not say when photos were taken. {MEND}")
    if not ((times >= 0.0) & (times <= 1.0)).all():
        low, high = float(times.min()), float(times.max())
        raise InputError(f"{data}: photos' times go from {low:g} to {high:g}. Bring them to 0 to 1.")
