"""Files of torch's that are whole or absent, and whether one still is as it was written."""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from zipnerf_ns.errors import InputError, say_once

FOLDER = 0x10
"""The mark of a folder among a zip file's parts."""


def write_whole(state: dict[str, Any], path: Path, unfinished: Path) -> None:
    """Writes a state so that a kill at any moment leaves ``path`` as it was or complete.

    Args:
        state: what torch.save takes.
        path: the file.
        unfinished: where it grows; on the same file system. It is removed if it cannot be finished.
    Raises:
        OSError: where the disk refuses.
    """
    try:
        with open(unfinished, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        # Torch's writer stumbles over what it could not write, and speaks of positions: the cause is the disk's.
        while error is not None and not isinstance(error, OSError):
            error = error.__context__
        if error is not None:
            raise error from None
        raise


def is_whole(path: Path) -> bool:
    """Whether every part of a file has the checksum that torch wrote beside it; each file is read once.

    Args:
        path: of a file that is there.
    """
    status = path.stat()
    return _is_whole(path.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _is_whole(path: Path, size: int, changed: int) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            # What torch writes is not compressed: parts that are larger than the file were made to fill the memory.
            # And of a part that is marked as a folder torch's reader reads nothing, and gives what lay in the memory.
            if sum(part.file_size for part in parts) > size or any(part.external_attr & FOLDER for part in parts):
                return False
            return archive.testzip() is None
    # Of an altered list of parts, Python's reader may stumble over anything.
    except Exception:
        return False


def newest_whole(found: dict[int, Path]) -> int:
    """The step of the last checkpoint that is as it was written; says so where a later one is not.

    Args:
        found: the checkpoints by their steps, at least one.
    Raises:
        InputError: if none is.
    """
    for step in sorted(found, reverse=True):
        if is_whole(found[step]):
            return step
        say_once(f"Checkpoint {found[step]} is cut short or altered: the one before it is used.")
    raise InputError(f"every checkpoint in {found[max(found)].parent} is cut short or altered. Train anew.")
