"""Copies a scene with disturbed camera poses: `python -m zipnerf_ns.tools.disturb_poses SCENE OUTPUT`.

For measuring what camera optimization mends: every pose is turned by the same angle about an axis of its own, through
the camera's center, and shifted by the same length in a direction of its own. The scene is in Nerfstudio's format;
its other files are linked, and the scene itself stays the truth to compare with.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from zipnerf_ns.data.checks import check_transforms
from zipnerf_ns.errors import InputError

Splits = Literal["all", "train"]


def disturb_scene(
    scene: Path | str,
    output: Path | str,
    *,
    degrees: float = 1.0,
    percent: float = 1.0,
    seed: int = 0,
    splits: Splits = "all",
    copy_files: bool = False,
) -> Path:
    """Writes the scene with disturbed poses into the new folder `output` and returns it.

    Args:
        scene: folder with a transforms.json of Nerfstudio's and the files that it names.
        degrees: by which every camera is turned.
        percent: by which every camera is shifted, of the cameras' mean distance from their center.
        seed: of axes and directions; a frame keeps its own whichever splits are chosen.
        splits: "train" leaves the poses of frames that are not in `train_filenames` as they are.
        copy_files: copies the scene's other files instead of linking to them.

    Raises:
        InputError: the scene cannot be read, a number is out of range, or `output` exists.
    """
    scene, output = Path(scene).expanduser().resolve(), Path(output).expanduser().absolute()
    for name, value, most in (("degrees", degrees, 180.0), ("percent", percent, math.inf)):
        if not 0.0 <= value <= most or math.isinf(value):
            raise InputError(f"--{name} is {value}: it must be between 0 and {most:g}.")
    if seed < 0:
        raise InputError(f"--seed is {seed}: it must not be negative.")
    if output.exists() or output.is_symlink():
        raise InputError(f"{output} exists already. Name a new folder for the disturbed scene.")
    if scene in output.parents:
        raise InputError(f"{output} lies within the scene, whose files it would link to. Name a folder outside of it.")
    check_transforms(scene / "transforms.json")
    meta = json.loads((scene / "transforms.json").read_text(encoding="utf-8"))
    disturbed = disturb_meta(meta, degrees, percent, seed, splits)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there whole: an interrupted run leaves nothing that looks like a scene.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        folder = Path(scratch) / "scene"
        folder.mkdir()
        for entry in sorted(scene.iterdir()):
            # Other descriptions of the same pictures have the poses that are to be forgotten.
            if entry.name.startswith("transforms") and entry.suffix == ".json":
                continue
            _bring(entry, folder / entry.name, copy_files)
        text = json.dumps(disturbed, indent=2) + "\n"
        (folder / "transforms.json").write_text(text, encoding="utf-8")
        folder.rename(output)
    return output


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


def _bring(source: Path, target: Path, copies: bool) -> None:
    if not copies:
        try:
            os.symlink(source, target, target_is_directory=source.is_dir())
        except OSError as error:
            # Windows asks for a right that few have; so do some file systems.
            raise InputError(f"{source} cannot be linked to ({error}). Give --copy-files.") from error
    elif source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and writes the scene; what is wrong with the input ends with one line."""
    parser = argparse.ArgumentParser(
        prog="python -m zipnerf_ns.tools.disturb_poses",
        description="Copies a scene of Nerfstudio's with disturbed camera poses, to measure camera optimization with.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("scene", type=Path, help="folder with a transforms.json")
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--degrees", type=float, default=1.0, help="by which every camera is turned")
    parser.add_argument("--percent", type=float, default=1.0, help="shift, of their mean distance from their center")
    parser.add_argument("--seed", type=int, default=0, help="of axes and directions")
    parser.add_argument("--splits", choices=("all", "train"), default="all", help="whose poses are disturbed")
    parser.add_argument("--copy-files", action="store_true", help="copy the scene's other files, do not link to them")
    options = vars(parser.parse_args(arguments))
    try:
        folder = disturb_scene(options.pop("scene"), options.pop("output"), **options)
    except (InputError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"Disturbed scene in {folder}: give it to Nerfstudio with --data {folder}")


if __name__ == "__main__":
    main()
