"""What stands before parsers of COLMAP's models: the model found, its cameras checked, lists of images completed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.utils import colmap_parsing_utils
from nerfstudio.process_data.colmap_utils import parse_colmap_camera_params

from zipnerf_ns.data.dataparsers.colmap_images import ReducingColmapDataParser
from zipnerf_ns.data.dataparsers.names import is_file
from zipnerf_ns.data.dataparsers.readers import Checked, tell
from zipnerf_ns.data.intrinsics import find_intrinsics, read_statements
from zipnerf_ns.data.transforms import SPLITS, complete_splits
from zipnerf_ns.errors import InputError, shorten

MODEL_FOLDERS = ("sparse/0", "colmap/sparse/0", "sparse", "colmap/sparse", ".")
"""Where programs leave COLMAP's model, below a scene's folder."""

MOST_OFF_UNIT = 1e-2
"""How far the length of a rotation's quaternion may be from 1."""


class FoundModel(Checked):
    """Put before a parser of COLMAP's models: finds them in any of the usual places, and completes lists."""

    def __init__(self, config: ColmapDataParserConfig) -> None:
        super().__init__(dataclasses.replace(config, colmap_path=find_model_folder(config)))

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> Any:
        check_colmap(self.config)
        return super()._generate_dataparser_outputs(split, **kwargs)

    def _load_3D_points(self, colmap_path: Path, *others: Any) -> dict[str, Any]:
        """The model's points; where it has none, Nerfstudio's parser would stop."""
        return super()._load_3D_points(colmap_path, *others) if _has_points(colmap_path) else {}

    def _get_image_indices(self, image_filenames: Sequence[Path], split: str) -> Any:
        """Nerfstudio's split, or that of the lists; where one is missing the others tell it."""
        listed = {}
        folder = self.config.data / self.config.images_path
        for each in SPLITS:
            path = self.config.data / f"{each}_list.txt"
            if not is_file(path):
                continue
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            listed[each] = [str(folder / name.replace("\\", "/")) for name in names]
            strangers = set(listed[each]).difference(map(str, image_filenames))
            if strangers:
                raise InputError(
                    f"{path} lists {shorten(sorted(strangers))}, which COLMAP's model does not have. "
                    "Write names as the model has them, or remove the line."
                )
        if not listed:
            return super()._get_image_indices(image_filenames, split)
        chosen = set(complete_splits(listed, [str(name) for name in image_filenames])[split])
        return np.array([index for index, name in enumerate(image_filenames) if str(name) in chosen], dtype=np.int32)


class ColmapReader(FoundModel, ReducingColmapDataParser):
    """COLMAP's models with images of any size."""


def find_model_folder(config: ColmapDataParserConfig) -> Path:
    """Where a scene has COLMAP's model: as it was said, else in the first usual place that holds one."""
    folders = [config.colmap_path]
    if config.colmap_path == type(config).colmap_path:
        # Nobody chose it.
        folders += map(Path, MODEL_FOLDERS)
    return next((folder for folder in folders if _model_kind(config.data / folder)), config.colmap_path)


def has_model(config: ColmapDataParserConfig) -> bool:
    """Whether a scene has COLMAP's model where the parser finds it."""
    return _model_kind(config.data / find_model_folder(config)) is not None


def check_colmap(config: ColmapDataParserConfig, tells: bool = False) -> None:
    """Checks COLMAP's model and its cameras before Nerfstudio reads it.

    Args:
        config: of the parser.
        tells: prints what is chosen and what is left out.
    Raises:
        InputError: naming the file, the camera and the mend.
    """
    chosen = find_model_folder(config)
    folder = config.data / chosen
    kind = _model_kind(folder)
    if kind is None:
        raise InputError(
            f"{folder} holds no COLMAP model (cameras.bin or cameras.txt). Give the folder of one scene with --data; "
            "a model elsewhere is named with --colmap-path."
        )
    siblings = [path for path in sorted(folder.parent.glob("[0-9]*")) if path != folder and _model_kind(path)]
    if tells and chosen != config.colmap_path:
        tell(f"COLMAP's model is read from {folder}.")
    if tells and siblings:
        told = shorten(f"{path.name} with {_count_images(path)}" for path in siblings)
        tell(
            f"{folder.parent} holds several models, which COLMAP could not join: {chosen.name} with "
            f"{_count_images(folder)} images is read, {told} not. Another is read with --colmap-path "
            f"{chosen.parent.as_posix()}/NUMBER."
        )
    if tells and config.masks_path is None and (config.data / "masks").is_dir():
        tell(f"{config.data / 'masks'} is not used. Masks are read with --masks-path masks.")
    models: dict[Any, str] = {}
    for number, camera in _read_model(folder, kind).items():
        where = f"{folder / f'cameras.{kind}'}: camera {number}"
        try:
            said = read_statements(parse_colmap_camera_params(camera), where)
        except (NotImplementedError, IndexError) as error:
            raise InputError(
                f"{where} has the model {camera.model} with {len(camera.params)} parameters, which is not read. "
                "Undistort the images with COLMAP's image_undistorter, or estimate OPENCV or OPENCV_FISHEYE instead."
            ) from error
        find_intrinsics(said, {}, said["camera_model"], (int(said["w"]), int(said["h"])), where)
        models.setdefault(CAMERA_MODEL_TO_TYPE[said["camera_model"]], f"{number} ({camera.model})")
    if len(models) > 1:
        raise InputError(
            f"{folder / f'cameras.{kind}'} mixes lenses, such as cameras {' and '.join(models.values())}. "
            "Undistort the images with COLMAP's image_undistorter, or use the images of one kind of lens."
        )


def _model_kind(folder: Path) -> str | None:
    """The ending of a model's files, as Nerfstudio prefers them; None where there is none."""
    return next((kind for kind in ("txt", "bin") if is_file(folder / f"cameras.{kind}")), None)


def _read_model(folder: Path, kind: str) -> dict[int, Any]:
    """The model's cameras, where its images can be read and name no others.

    A model that is there as text and in binary form must say the same twice: one may be older.
    """
    cameras, images = (_read_file(folder, name, kind) for name in ("cameras", "images"))
    strangers = [image.name for image in images.values() if image.camera_id not in cameras]
    if strangers:
        raise InputError(f"{folder}: {shorten(strangers)} has a camera that cameras.{kind} lacks. Export it again.")
    for image in images.values():
        numbers = np.concatenate([image.qvec, image.tvec])
        if not np.isfinite(numbers).all() or abs(np.linalg.norm(image.qvec) - 1.0) > MOST_OFF_UNIT:
            raise InputError(
                f"{folder / f'images.{kind}'}: {image.name} has NaN in its pose, or a quaternion that is no "
                f"rotation: {' '.join(map(str, numbers))}. Remove the image from the model, or estimate it again."
            )
    if kind == "txt" and is_file(folder / "cameras.bin"):
        for name, found in (("cameras", cameras), ("images", images)):
            other = _read_file(folder, name, "bin")
            if found.keys() != other.keys() or not all(_is_same(found[key], other[key]) for key in found):
                raise InputError(
                    f"{folder / f'{name}.txt'} and {name}.bin are of different models. Remove the files of the older."
                )
    return cameras


def _is_same(one: Any, other: Any) -> bool:
    """Whether two cameras, or two placed images, agree as far as text tells."""
    numbers = ("width", "height", "params", "qvec", "tvec", "camera_id")
    pairs = [(getattr(one, name), getattr(other, name)) for name in numbers if hasattr(one, name)]
    return all(np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)


def _read_file(folder: Path, name: str, kind: str) -> dict[int, Any]:
    path = folder / f"{name}.{kind}"
    read = getattr(colmap_parsing_utils, f"read_{name}_{'text' if kind == 'txt' else 'binary'}")
    try:
        found = read(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing. Export COLMAP's model again, all its files.") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise InputError(f"{path} cannot be read ({reason}). Export COLMAP's model again.") from error
    if not found:
        raise InputError(f"{path} holds none: COLMAP placed no image. Choose another model with --colmap-path.")
    return found


def _count_images(folder: Path) -> int:
    try:
        return len(_read_file(folder, "images", _model_kind(folder) or "bin"))
    except InputError:
        return 0


def _has_points(folder: Path) -> bool:
    binary, text = folder / "points3D.bin", folder / "points3D.txt"
    if is_file(binary):
        # Eight bytes count them.
        return binary.stat().st_size > 8
    return is_file(text) and any(
        not line.startswith("#") and line.strip() for line in text.read_text(encoding="utf-8").splitlines()
    )
