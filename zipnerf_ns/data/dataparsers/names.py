"""Images by the names that a scene's file has for them, which another machine may have written."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

EXTENSIONS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp", ".tif", ".tiff")
"""Tried, in this order, where a name has none that is there; NeRF-synthetic scenes leave .png out."""
REDUCED = (2, 4, 8)


class ImageFinder:
    """Finds images below a scene's folder.

    Args:
        folder: where a scene's file lies.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[Path, dict[str, str | None]] = {}

    def find(self, name: str) -> tuple[str, Path | None]:
        """An image's name as it is on disk, and a file of it, which may be a reduced one; None if there is none.

        Slashes of Windows are turned and an extension is added. Of a path on another machine the end counts that is
        there; letters may be of another case, or composed otherwise, if one file alone is meant.
        """
        slashed = name.replace("\\", "/")
        for each in dict.fromkeys((name, slashed)):
            for ending in ("", *EXTENSIONS):
                there = next(filter(is_file, self._places(f"{each}{ending}")), None)
                if there is not None:
                    return f"{each}{ending}", there
        parts = PurePosixPath(slashed).parts
        is_absolute = slashed.startswith("/") or bool(PureWindowsPath(name).drive)
        for first in range(1, len(parts)) if is_absolute else (0,):
            alike = self._alike(parts[first:])
            if alike is not None:
                return alike.relative_to(self._folder).as_posix(), alike
        return slashed, None

    def _places(self, name: str) -> Iterator[Path]:
        yield self._folder / name
        for factor in REDUCED:
            for path in reduced_paths(Path(name), factor):
                yield self._folder / path

    def _alike(self, parts: tuple[str, ...]) -> Path | None:
        """The one file below the folder whose path differs in no more than the letters' case and composition."""
        path = self._folder
        for part in parts:
            if path not in self._listed:
                self._listed[path] = names = {}
                for entry in path.iterdir() if path.is_dir() else ():
                    names[_key(entry.name)] = None if _key(entry.name) in names else entry.name
            found = self._listed[path].get(_key(part))
            if found is None:
                return None
            path = path / found
        return path if is_file(path) else None


def scene_folder(data: Path) -> Path:
    """The folder of the scene that ``--data`` names, itself or by a file in it."""
    return data.parent if data.suffix == ".json" else data


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def reduced_paths(path: Path, factor: int, prefix: str = "images_") -> Iterator[Path]:
    """Where the image of a frame may be that is reduced by a factor, below the scene's folder, the likeliest first."""
    folder = Path(f"{prefix}{factor}")
    if not path.is_absolute():
        yield folder.joinpath(*path.parts[1:])
        yield folder / path
    yield folder / path.name


def is_file(path: Path) -> bool:
    """Whether a file is there; names that no file can have are none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
