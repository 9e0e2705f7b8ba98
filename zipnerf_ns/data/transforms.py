"""A transforms file read once and whole: every statement that bears on the picture is honoured or refused by name.

What comes out says everything once, for each frame, and in Nerfstudio's words; nothing is left to a parser's default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, CameraType

from zipnerf_ns.data.checks import check_images
from zipnerf_ns.data.dataparsers.names import ImageFinder
from zipnerf_ns.data.intrinsics import CAMERA_KEYS, find_intrinsics, find_model, read_statements
from zipnerf_ns.data.moving.times import TIME_FAULT, TIME_KEYS, read_times
from zipnerf_ns.data.poses import read_pose, read_similarity
from zipnerf_ns.errors import InputError, shorten

OPTIONAL_FILES = {
    "mask_path": "Give every image a mask (all white where everything is used), or none.",
    "depth_file_path": "Depth is not used: remove it from the frames.",
}
"""Files that a frame of Nerfstudio's format may name; its parser wants them of all frames or of none."""
SPLITS = ("train", "val", "test")
ORIENTATIONS = ("pca", "up", "vertical", "none")
TOP_KEYS = CAMERA_KEYS | {
    "frames", "applied_transform", "orientation_override", "ply_file_path", *(f"{split}_filenames" for split in SPLITS)
}  # fmt: skip
FRAME_KEYS = CAMERA_KEYS | {"file_path", "transform_matrix", "downscale", *TIME_KEYS, *OPTIONAL_FILES}
WITHOUT_EFFECT = {
    "colmap_im_id", "sharpness", "rotation", "name", "id", "n_frames", "version", "comment", "note",
    "demo_scene", "sample_seed", "light_gains",
}  # fmt: skip
"""Keys that nothing reads and nothing is lost with."""


class Transforms(NamedTuple):
    """What a transforms file says."""

    meta: dict[str, Any]
    """In Nerfstudio's format; lenses are the frames' own, split lists are all there or none."""
    warnings: list[str]
    """What was chosen or left out, each in one line."""


def read_transforms(path: Path, needs_images: bool = True) -> Transforms:
    """Reads and checks a transforms file of Nerfstudio, of instant-ngp, or of one split of a NeRF-synthetic scene.

    Args:
        path: the file; nothing is written beside it.
        needs_images: every image must be there and open; else only those are opened whose size nothing states.
    Raises:
        InputError: naming the file, the frame, the field and the mend.
    """
    meta = _read_json(path)
    top = read_statements(meta, f"{path}")
    frames, warnings = _distinct_frames(path, meta, needs_images)
    statements = [read_statements(frame, frame["where"]) for frame in frames]
    models = _camera_models(path, top, frames, statements)
    sizes = _sizes(path, top, frames, statements)
    if len(set(sizes)) > 1 and any(key in top and key not in own for own in statements for key in ("cx", "cy")):
        warnings.append(f"{path}: images have several sizes, but 'cx' or 'cy' is one for all. Give each frame its own.")
    result: dict[str, Any] = {"camera_model": models[0], "frames": []}
    for frame, own, model, size in zip(frames, statements, models, sizes, strict=True):
        read = {key: frame[key] for key in ("file_path", "downscale") if key in frame}
        read["transform_matrix"] = read_pose(frame.get("transform_matrix"), frame["where"]).tolist()
        read |= find_intrinsics(own, top, model, size, frame["where"])
        read |= {key: frame[key] for key in OPTIONAL_FILES if frame.get(key)}
        result["frames"].append(read)
    times = read_times(frames, path, path.stem.removeprefix("transforms_") not in SPLITS)
    for read, time in zip(result["frames"], times.values or [], strict=False):
        read["time"] = time
    if times.fault is not None:
        result[TIME_FAULT] = times.fault
    result |= _read_top(path, meta)
    for key in ("applied_scale", "aabb_scale"):
        if key in top:
            result[key] = top[key]
    result |= _crop_radius(path, models[0], top, statements, warnings)
    result |= _splits(path, meta, frames, warnings)
    unknown = set(meta) - TOP_KEYS - WITHOUT_EFFECT
    unknown |= {key for frame in meta["frames"] for key in frame.keys() - FRAME_KEYS - WITHOUT_EFFECT - {"where"}}
    if unknown:
        names = shorten((f"'{key}'" for key in sorted(unknown)), most=6)
        warnings.append(f"{path}: {names} is not read. If it bears on the picture, apply it to images or poses first.")
    return Transforms(result, warnings)


def transforms_file(data: Path) -> Path:
    """The transforms file that ``--data`` names, itself or by its folder."""
    return data if data.suffix == ".json" else data / "transforms.json"


def complete_splits(listed: Mapping[str, list[str]], names: Sequence[str]) -> dict[str, list[str]]:
    """The images of all three splits where at least one is listed; ``val`` and ``test`` serve for each other.

    Args:
        listed: the lists that are there.
        names: of all images.
    """
    used = {name for each in listed.values() for name in each}
    rest = [name for name in names if name not in used]
    held_out = listed.get("val", listed.get("test", rest))
    found = {"train": rest, "val": held_out, "test": listed.get("test", held_out), **listed}
    return {split: found[split] for split in SPLITS}


def _read_json(path: Path) -> dict[str, Any]:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found and repr(found[key]) != repr(value):
                raise InputError(f"{path}: '{key}' is there twice, with different values. Remove the wrong one.")
            found[key] = value
        return found

    try:
        meta = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=without_repeats)
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist. Check --data, or run ns-process-data first.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}). Write it again with ns-process-data.") from error
    if not isinstance(meta, dict):
        raise InputError(f"{path} is not a JSON object with 'frames'. Write it again with ns-process-data.")
    return meta


def _distinct_frames(path: Path, meta: Mapping[str, Any], needs_images: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The frames with their images' true names and a ``where`` each, every image once."""
    if not isinstance(meta.get("frames"), list) or not meta["frames"]:
        raise InputError(f"{path}: no 'frames'. Run ns-process-data again, or list at least two images there.")
    found: dict[str, dict[str, Any]] = {}
    images, repeated = ImageFinder(path.parent), []
    for index, frame in enumerate(meta["frames"]):
        name = frame.get("file_path") if isinstance(frame, dict) else None
        if not name or not isinstance(name, str):
            raise InputError(f"{path}: frame {index} has no 'file_path'. Give it the path of its image.")
        where = f"{path}: frame {index} ({name})"
        for key in OPTIONAL_FILES:
            if frame.get(key) is not None and not isinstance(frame[key], str):
                raise InputError(f"{where}: '{key}' is {frame[key]}. It must be the path of a file.")
        image, there = images.find(name)
        if needs_images and there is None:
            raise InputError(f"{where}: image {path.parent / image} is missing. Restore it or remove the frame.")
        if needs_images:
            check_images([there])
        first = found.setdefault(os.path.normpath(path.parent / image), {})
        if first and _statements(frame) != _statements(meta["frames"][first["index"]]):
            raise InputError(f"{where}: frame {first['index']} is of the same image and says other things. Remove one.")
        if first:
            repeated.append(name)
        else:
            others = {key: images.find(frame[key])[0] for key in OPTIONAL_FILES if frame.get(key)}
            first |= {**frame, **others, "file_path": image, "where": where, "index": index, "stated": name}
    frames = list(found.values())
    for key, mend in OPTIONAL_FILES.items():
        without = [str(frame["file_path"]) for frame in frames if not frame.get(key)]
        if 0 < len(without) < len(frames):
            raise InputError(f"{path}: '{key}' is missing for {shorten(without)}. {mend}")
    warnings = []
    if repeated:
        warnings.append(f"{path}: {shorten(repeated)} is there in several frames; each image is used once.")
    if (path.parent / "masks").is_dir() and not frames[0].get("mask_path"):
        warnings.append(f"{path.parent / 'masks'} is not used: give each frame the 'mask_path' of its mask.")
    return frames, warnings


def _statements(frame: Mapping[str, Any]) -> str:
    return repr({key: frame[key] for key in sorted(FRAME_KEYS & frame.keys()) if key != "file_path"})


def _camera_models(
    path: Path, top: Mapping[str, Any], frames: Sequence[Mapping[str, Any]], statements: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Every frame's camera model, all of one kind: Nerfstudio's parser knows one a scene."""
    stated = find_model(top, f"{path}")
    own = [find_model(said, frame["where"]) for frame, said in zip(frames, statements, strict=True)]
    models = [each or stated or "OPENCV" for each in own]
    expected = stated or models[0]
    for frame, each in zip(frames, models, strict=True):
        if CAMERA_MODEL_TO_TYPE[each] != CAMERA_MODEL_TO_TYPE[expected]:
            raise InputError(
                f"{frame['where']} has 'camera_model' {each}, but all frames have the one at the file's top, or else "
                f"frame 0's, here {expected}. Write it there, or undistort the images of a scene that mixes models."
            )
    return models


def _sizes(
    path: Path, top: Mapping[str, Any], frames: Sequence[Mapping[str, Any]], statements: Sequence[Mapping[str, Any]]
) -> list[tuple[int, int]]:
    """Width and height of each frame, as stated or else as its image has them."""
    sizes: list[tuple[int, int]] = []
    for frame, own in zip(frames, statements, strict=True):
        stated = [own.get(key, top.get(key)) for key in ("w", "h")]
        if None in stated:
            image = path.parent / frame["file_path"]
            try:
                with Image.open(image) as opened:
                    found = opened.size
            except OSError as error:
                raise InputError(
                    f"{frame['where']}: 'w' and 'h' are missing, and so is {image} that would tell them. Give both."
                ) from error
            for key, said, true in zip(("w", "h"), stated, found, strict=True):
                if said not in (None, true):
                    raise InputError(f"{frame['where']}: '{key}' is {said:g}, but {image} has {true}. Correct it.")
            if sizes and found != sizes[0] and not {"fl_x", "camera_angle_x", "x_fov"} & own.keys():
                raise InputError(
                    f"{frame['where']}: image {os.path.normpath(image)} has {found[0]}x{found[1]} pixels, that of "
                    f"frame 0 {sizes[0][0]}x{sizes[0][1]}, but one focal length is said of both. Give each its own."
                )
            stated = list(found)
        sizes.append((int(stated[0]), int(stated[1])))
    return sizes


def _read_top(path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of the scene as a whole, beside cameras and splits."""
    result: dict[str, Any] = {}
    if meta.get("applied_transform") is not None:
        result["applied_transform"] = read_similarity(meta["applied_transform"], None, path)[0][:3].tolist()
    orientation = meta.get("orientation_override")
    if orientation is not None:
        if orientation not in ORIENTATIONS:
            known = ", ".join(ORIENTATIONS)
            raise InputError(f"{path}: 'orientation_override' is {orientation}. It must be one of {known}.")
        result["orientation_override"] = orientation
    points = meta.get("ply_file_path")
    if points is not None:
        if not isinstance(points, str):
            raise InputError(f"{path}: 'ply_file_path' is {points}. It must be the path of a file.")
        result["ply_file_path"] = points.replace("\\", "/")
    return result


def _crop_radius(
    path: Path, model: str, top: Mapping[str, Any], statements: Sequence[Mapping[str, Any]], warnings: list[str]
) -> dict[str, float]:
    radii = {said.get("fisheye_crop_radius", top.get("fisheye_crop_radius")) for said in statements}
    if radii == {None}:
        return {}
    if CAMERA_MODEL_TO_TYPE[model] not in (CameraType.FISHEYE, CameraType.FISHEYE624):
        warnings.append(f"{path}: 'fisheye_crop_radius' is not used, for 'camera_model' is {model}.")
        return {}
    if len(radii) > 1:
        raise InputError(f"{path}: 'fisheye_crop_radius' differs between frames. Give one at the top, or masks.")
    return {"fisheye_crop_radius": radii.pop()}


def _splits(
    path: Path, meta: Mapping[str, Any], frames: Sequence[Mapping[str, Any]], warnings: list[str]
) -> dict[str, list[str]]:
    """The three lists of Nerfstudio's format by the images' true names, none where the file has none."""
    known: dict[Path, str] = {}
    for frame in frames:
        image = Path(frame["file_path"])
        for name in (image, Path(frame["stated"]), Path(frame["stated"].replace("\\", "/"))):
            known.setdefault(name, frame["file_path"])
    for frame in frames:
        known.setdefault(Path(frame["file_path"]).with_suffix(""), frame["file_path"])
    listed: dict[str, list[str]] = {}
    for split in SPLITS:
        names = meta.get(f"{split}_filenames")
        # An empty list of held-out images says no more than a missing one.
        if names is None or (names == [] and split != "train"):
            continue
        where = f"{path}: '{split}_filenames'"
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{where} is no list of names. List images by their 'file_path', or remove it.")
        slashed = [Path(name) if Path(name) in known else Path(name.replace("\\", "/")) for name in names]
        strangers = [str(name) for name in slashed if name not in known]
        if strangers:
            raise InputError(
                f"{where} lists {shorten(strangers)}, which is no frame's 'file_path'. "
                f"Write names as frames have them, such as {frames[0]['file_path']}."
            )
        listed[split] = list(dict.fromkeys(known[name] for name in slashed))
    if not listed:
        return {}
    found = complete_splits(listed, [frame["file_path"] for frame in frames])
    if not found["train"]:
        raise InputError(f"{path}: 'train_filenames' is empty. List the images to train on, or remove the key.")
    warnings += [f"{path}: {note}" for note in _odd_splits(found, listed, frames)]
    return {f"{split}_filenames": names for split, names in found.items()}


def _odd_splits(
    found: Mapping[str, list[str]], listed: Mapping[str, list[str]], frames: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """What a person should know of the images of each split."""
    trained = set(found["train"])
    if both := [name for name in dict.fromkeys(found["val"] + found["test"]) if name in trained]:
        yield f"{shorten(both)} is held out and trained on: its PSNR says little."
    used = {name for names in found.values() for name in names}
    if unused := [frame["file_path"] for frame in frames if frame["file_path"] not in used]:
        yield f"{shorten(unused)} is in no list of images and not used."
    if absent := [split for split in SPLITS if split not in listed]:
        counts = ", ".join(f"{split} {len(found[split])}" for split in SPLITS)
        yield f"'{absent[0]}_filenames' is missing; images of each split: {counts}."
