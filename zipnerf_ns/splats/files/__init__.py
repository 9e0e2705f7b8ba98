"""Files of Gaussians that other programs read: 3DGS's .ply, Niantic's .spz, PlayCanvas's .sog."""

from __future__ import annotations

from pathlib import Path

from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.files.ply import read_ply, write_ply
from zipnerf_ns.splats.files.sog import read_sog, write_sog
from zipnerf_ns.splats.files.spz import read_spz, write_spz
from zipnerf_ns.splats.gaussians import Gaussians

READERS = {".ply": read_ply, ".spz": read_spz, ".sog": read_sog}
WRITERS = {".ply": write_ply, ".spz": write_spz, ".sog": write_sog}


def read_gaussians(path: Path) -> Gaussians:
    """The Gaussians of a file, in the format that its name says.

    Raises:
        InputError: if there is no such file, or it holds no Gaussians in a known format.
    """
    if path.suffix not in READERS:
        raise InputError(f"{path} is in no format that is read here: {', '.join(READERS)}.")
    if not path.is_file():
        raise InputError(f"{path} is not there.")
    try:
        return READERS[path.suffix](path)
    except InputError:
        raise
    # A file that was made to may have readers stumble over anything.
    except Exception as error:
        raise InputError(f"{path} is no {path.suffix} of Gaussians, or is cut off or altered: {error}.") from error


def write_gaussians(gaussians: Gaussians, path: Path) -> None:
    """Writes Gaussians in the format that the file's name says; .spz and .sog round them.

    Raises:
        InputError: for another format.
    """
    if path.suffix not in WRITERS:
        raise InputError(f"{path} is in no format that is written here: {', '.join(WRITERS)}.")
    WRITERS[path.suffix](gaussians, path)
