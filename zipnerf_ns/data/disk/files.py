"""Files on disk: whole or as they were, however their program ends; written and read in pieces; what disks say."""

from __future__ import annotations

import json
import os
import threading
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
def whole_file(target: Path) -> Iterator[Path]:
    """Gives a place beside a file to write its contents to, and moves them there at the end; where that is not reached
    nothing is left. Several threads and processes may write the same file.

    Raises:
        OSError: where the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        yield unfinished
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file as :func:`whole_file` has it."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
