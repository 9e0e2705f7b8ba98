"""What disks say, in one line, and files that several processes write and read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from zipnerf_ns.errors import InputError, say

ELSEWHERE = "Choose another place: --pipeline.datamanager.pixels.folder FOLDER."


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turns what a disk says into one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}. {ELSEWHERE}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process at a time write; the others find it done."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1.0)
    except Timeout:
        say(f"Another process writes to {path.parent}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_fully(file: FileIO, values: npt.NDArray[Any]) -> None:
    """Writes an array's bytes where the file is."""
    left = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    while left:
        left = left[file.write(left) :]


def read_fully(file: FileIO, place: int, values: npt.NDArray[Any]) -> None:
    """Reads an array's bytes; where the file ends before, the rest is zeros."""
    file.seek(place)
    whole = values.reshape(-1).view(np.uint8)
    left = memoryview(whole)
    while left and (count := file.readinto(left)):
        left = left[count:]
    whole[len(whole) - len(left) :] = 0
