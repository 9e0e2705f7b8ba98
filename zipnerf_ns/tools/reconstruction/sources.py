"""What a person gave: photographs and videos found, named, and checked before any long work."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import features

from zipnerf_ns.errors import InputError, shorten

PLAIN = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif"})
HEIF = frozenset({".heic", ".heif"})
RAW = frozenset({".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"})
PHOTOS = PLAIN | HEIF | RAW
VIDEOS = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mts"})
"""Endings of file names, in lower case."""
MASKS = "masks"
"""Name of the folder beside or within a folder of photographs in which their masks are looked for."""
MIN_PHOTOS = 3


@dataclass(frozen=True)
class Photo:
    """A photograph that was given, or a frame that was taken from a video."""

    path: Path
    stem: str
    """Name of its copy, without the ending; no other copy has it."""
    sequence: int
    """Number of the folder or video that it comes from, in which photographs follow one another."""
    mask: Path | None = None
    video: Path | None = None


@dataclass(frozen=True)
class Sources:
    """Everything that was given, in its order."""

    photos: tuple[Photo, ...]
    videos: tuple[tuple[int, Path], ...]
    """Each with the number of its sequence."""
    passed_over: tuple[Path, ...]
    """RAW files beside which the same photograph lies developed."""


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A key by which IMG_2 comes before IMG_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())]


def find_sources(given: Sequence[Path], masks: Path | None = None) -> Sources:
    """The photographs and videos in files and folders; of folders, those that lie directly within.

    Args:
        given: files and folders.
        masks: folder of the photographs' masks; by default a folder "masks" in or beside each folder.

    Raises:
        InputError: if something is missing, of an unknown kind, or nothing is found.
    """
    photos: list[Photo] = []
    videos: list[tuple[int, Path]] = []
    passed_over: list[Path] = []
    taken: set[str] = set()
    listed = _by_folder(given)
    if masks is not None and not masks.is_dir():
        raise InputError(f"--masks {masks} is not a folder.")
    sequence = 0
    mask_folders = {folder: [masks] if masks else [folder / MASKS, folder.parent / MASKS] for folder in listed}
    named = {each: _by_stem(each) for folders in mask_folders.values() for each in folders}
    for folder, files in listed.items():
        images = [path for path in dict.fromkeys(files) if path.suffix.lower() in PHOTOS]
        developed = {path.stem for path in images if path.suffix.lower() not in RAW}
        twice = [path for path in images if path.suffix.lower() in RAW and path.stem in developed]
        passed_over += twice
        for path in sorted(set(images) - set(twice), key=natural_order):
            mask = find_mask(path, [named[each] for each in mask_folders[folder]])
            photos.append(Photo(path, unique_stem(path.stem, taken), sequence, mask))
        for path in (path for path in dict.fromkeys(files) if path.suffix.lower() in VIDEOS):
            sequence += 1
            videos.append((sequence, path))
        sequence += 1
    if not photos and not videos:
        raise InputError(f"no photographs or videos directly in {shorten(map(str, given))}: {_endings()}.")
    if not videos and len(photos) < MIN_PHOTOS:
        raise InputError(f"{len(photos)} photographs are too few: {MIN_PHOTOS} at least, 50 to 200 for a good scene.")
    unnamed = [folder for folder in named if named[folder] or folder == masks]
    if unnamed and photos and not any(photo.mask for photo in photos):
        raise InputError(
            f"{unnamed[0]} has no mask of any photograph: {photos[0].path.stem}.png, for instance. Rename the masks, "
            "or the folder if it holds none."
        )
    require_readers([photo.path for photo in photos], bool(videos))
    return Sources(tuple(photos), tuple(videos), tuple(passed_over))


def _by_folder(given: Sequence[Path]) -> dict[Path, list[Path]]:
    """The files that were given, by their folders: those that a shell's star named one by one follow each other as
    those of a folder do."""
    listed: dict[Path, list[Path]] = {}
    for path in given:
        if not path.exists():
            raise InputError(f"{path} does not exist.")
        if path.is_dir():
            # A Mac leaves ._IMG_1.jpg beside IMG_1.jpg on other disks.
            files = (each for each in path.glob("[!.]*") if not each.is_dir())
            listed.setdefault(path, []).extend(sorted(files, key=natural_order))
        elif path.suffix.lower() in PHOTOS | VIDEOS:
            listed.setdefault(path.parent, []).append(path)
        else:
            raise InputError(f"{path} is neither a photograph nor a video that can be read: {_endings()}.")
    return listed


def _by_stem(folder: Path) -> dict[str, Path]:
    """The images in a folder, which need not be there, by their names without endings, in lower case."""
    return {path.stem.lower(): path for path in sorted(folder.glob("[!.]*")) if path.suffix.lower() in PLAIN}


def find_mask(photo: Path, folders: Iterable[Mapping[str, Path]]) -> Path | None:
    """The mask of a photograph, named like it without or with its ending, or with "_mask" after that.

    Args:
        folders: the images in each, by :func:`_by_stem`.
    """
    names = [f"{name}{end}".lower() for name in (photo.stem, photo.name) for end in ("", "_mask")]
    return next((images[name] for images in folders for name in names if name in images), None)


def unique_stem(stem: str, taken: set[str]) -> str:
    """A name of letters that every file system and program takes, not yet taken; it is then."""
    clean = re.sub(r"[^A-Za-z0-9_-]+", "_", stem) or "photo"
    name, number = clean, 1
    while name.lower() in taken:
        number += 1
        name = f"{clean}_{number}"
    taken.add(name.lower())
    return name


def require_readers(paths: Sequence[Path], has_videos: bool) -> None:
    """Checks that what reads these files is installed.

    Raises:
        InputError: with the package to install.
    """
    endings = {path.suffix.lower() for path in paths}
    missing = []
    if endings & HEIF and importlib.util.find_spec("pillow_heif") is None:
        missing.append(("HEIC", "'pillow-heif>=1,<2'"))
    if ".avif" in endings and not features.check("avif"):
        missing.append(("AVIF", "'Pillow>=11.3'"))
    if endings & RAW and importlib.util.find_spec("rawpy") is None:
        missing.append(("RAW", "'rawpy>=0.21,<1'"))
    if has_videos and importlib.util.find_spec("imageio_ffmpeg") is None:
        missing.append(("video", "'imageio-ffmpeg>=0.5,<1'"))
    if missing:
        kinds, packages = zip(*missing, strict=True)
        raise InputError(f"{' and '.join(kinds)} files cannot be read yet: pip install {' '.join(packages)}.")


def _endings() -> str:
    return ", ".join(sorted(ending[1:] for ending in PHOTOS | VIDEOS))
