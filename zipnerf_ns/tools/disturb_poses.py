"""Copies a scene with disturbed camera poses: `python -m zipnerf_ns.tools.disturb_poses SCENE OUTPUT`.

For measuring what camera optimization mends: every pose is turned by the same angle about an axis of its own, through
the camera's center, and shifted by the same length in a direction of its own. The scene is in Nerfstudio's format;
its other files are linked, and the scene itself stays the truth to compare with.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from scipy.spatial.transform import Rotation
from tyro.conf import Positional, arg

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.data.transforms import read_transforms
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.command import command

Splits = Literal["all", "train"]


def disturb_scene(
    scene: Annotated[Path, Positional, arg(metavar="SCENE")],
    output: Annotated[Path, Positional, arg(metavar="OUTPUT")],
    degrees: float = 1.0,
    percent: float = 1.0,
    seed: int = 0,
    splits: Splits = "all",
) -> Path:
    """Copies a scene with disturbed camera poses, to measure camera optimization with.

    Args:
        scene: folder with a transforms.json of Nerfstudio's and the files that it names, linked where that can be.
        output: folder to write; must not exist.
        degrees: by which every camera is turned.
        percent: by which every camera is shifted, of the cameras' mean distance from their center.
        seed: of axes and directions; a frame keeps its own whichever splits are chosen.
        splits: train leaves the poses of frames that are not in train_filenames as they are.

    Returns:
        The new folder.
    Raises:
        InputError: the scene cannot be read, a number is out of range, or ``output`` exists.
    """
    for name, value, most in (("degrees", degrees, 180.0), ("percent", percent, math.inf)):
        if not 0.0 <= value <= most or math.isinf(value):
            raise InputError(f"--{name} is {value}: it must be between 0 and {most:g}.")
    scene, output, meta = open_as_written(scene, output, seed)
    meta = disturb_meta(meta, degrees, percent, seed, splits)
    link_files(scene, output)
    # Last, for then an interrupted run leaves nothing like a scene.
    write_json(output / "transforms.json", meta)
    return output


def open_as_written(scene: Path, output: Path, seed: int) -> tuple[Path, Path, dict[str, Any]]:
    """Both folders in full, and the scene's transforms.json to the letter.

    Raises:
        InputError: the scene cannot be read, the seed is negative, or ``output`` exists or lies within the scene.
    """
    if seed < 0:
        raise InputError(f"--seed is {seed}: it must not be negative.")
    scene, output, _ = open_scene(scene, output)
    return scene, output, json.loads((scene / "transforms.json").read_text(encoding="utf-8"))


def open_scene(scene: Path, output: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Both folders in full, and what is understood of the scene's transforms.json.

    Raises:
        InputError: the scene cannot be read, or ``output`` exists or lies within the scene.
    """
    scene, output = scene.expanduser().resolve(), output.expanduser().absolute()
    if output.exists() or output.is_symlink():
        raise InputError(f"{output} exists already. Name a new folder for the copy.")
    if scene in output.parents:
        raise InputError(f"{output} lies within the scene, whose files it would link to. Name a folder outside of it.")
    return scene, output, read_transforms(scene / "transforms.json").meta


def link_files(scene: Path, output: Path) -> None:
    """Makes a folder with a scene's files; not with what describes the images, for that is to be forgotten."""
    output.mkdir(parents=True)
    for entry in scene.iterdir():
        if not (entry.name.startswith("transforms") and entry.suffix == ".json"):
            _bring(entry, output / entry.name)


def disturb_meta(
    meta: dict[str, Any], degrees: float, percent: float, seed: int, splits: Splits = "all"
) -> dict[str, Any]:
    """A copy of the contents of a transforms.json with disturbed poses; for the arguments see `disturb_scene`.

    Raises:
        InputError: only the training poses are to be disturbed, and the scene does not say which those are.
    """
    meta = copy.deepcopy(meta)
    frames = meta["frames"]
    chosen = None
    if splits == "train":
        if "train_filenames" not in meta:
            raise InputError("transforms.json has no train_filenames: add the list, or disturb --splits all.")
        chosen = set(meta["train_filenames"])
    positions = np.array([frame["transform_matrix"] for frame in frames], dtype=float)[:, :3, 3]
    shift = 0.01 * percent * np.linalg.norm(positions - positions.mean(axis=0), axis=-1).mean()
    random = np.random.default_rng(seed)
    for frame in frames:
        axis, direction = _unit_vector(random), _unit_vector(random)
        if chosen is not None and frame["file_path"] not in chosen:
            continue
        matrix = np.array(frame["transform_matrix"], dtype=float)
        matrix[:3, :3] = Rotation.from_rotvec(degrees * axis, degrees=True).as_matrix() @ matrix[:3, :3]
        matrix[:3, 3] += shift * direction
        frame["transform_matrix"] = matrix.tolist()
    return meta


def _unit_vector(random: np.random.Generator) -> np.ndarray:
    vector = random.normal(size=3)
    return vector / np.linalg.norm(vector)


def _bring(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        # Windows asks for a right that few have; some file systems know no links.
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)


def write_scene(disturb: Callable[..., Path], program: str, what: str, arguments: list[str] | None) -> None:
    """Reads the command line and writes the scene.

    Args:
        disturb: writes it, with the command line's options as its arguments, and returns its folder.
        program: the module that is run, in this package.
        what: has been written, for the line that says where.
        arguments: of the command line; the process's own if None.
    """
    folder = tyro.cli(disturb, prog=f"python -m zipnerf_ns.tools.{program}", args=arguments)
    print(f"{what} in {folder}: give it to Nerfstudio with --data {folder}")


@command(OSError)
def main(arguments: list[str] | None = None) -> None:
    """The command."""
    write_scene(disturb_scene, "disturb_poses", "Disturbed scene", arguments)


if __name__ == "__main__":
    sys.exit(main())
