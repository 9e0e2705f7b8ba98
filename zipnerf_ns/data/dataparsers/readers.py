"""Nerfstudio's parsers of transforms files, given what our own reading of the file has understood.

Whatever a parser raises becomes one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras
from nerfstudio.data.dataparsers import nerfstudio_dataparser
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import Blender
from nerfstudio.data.dataparsers.dnerf_dataparser import DNeRF
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGP
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.data.utils import dataparsers_utils
from nerfstudio.utils.colors import get_color
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.data.dataparsers.names import REDUCED, is_file, reduced_paths
from zipnerf_ns.data.dataparsers.reduction import tell_of_others
from zipnerf_ns.data.moving.times import TIME_FAULT
from zipnerf_ns.data.transforms import read_transforms, transforms_file
from zipnerf_ns.errors import InputError, shorten


def load_from_json(path: Path) -> dict[str, Any]:
    """What our own reading understood of a file; by Nerfstudio's name, under which others stand before its parsers."""
    return read_transforms(path, needs_images=False).meta


class Checked:
    """Put before a parser: what it raises names the data, and no two images are one file."""

    config: DataParserConfig

    def get_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        """The parser's outputs.

        Raises:
            InputError: for whatever the parser raises.
        """
        try:
            outputs = super().get_dataparser_outputs(split, **kwargs)
        except (InputError, np.linalg.LinAlgError, torch.linalg.LinAlgError):
            # Of poses that cannot be oriented: whoever stands before this says so.
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__} {error}".split())
            raise InputError(
                f"{self.config.data} cannot be read, split {split} ({reason}). "
                f"Check its files, and the options of its parser, {type(self.config).__name__}."
            ) from error
        names = [str(name) for name in outputs.image_filenames]
        if len(set(names)) < len(names):
            repeated = shorten(sorted({name for name in names if names.count(name) > 1}))
            raise InputError(
                f"{repeated} is read for several frames of {self.config.data}: reduced images must have their "
                "originals' subfolders, or names that differ. Or read the full size, --downscale-factor 1."
            )
        return outputs


class NerfstudioReader(Checked, Nerfstudio):
    """Nerfstudio's own format, with the frames' times."""

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        meta = load_from_json(transforms_file(self.config.data))
        self._reduced: list[tuple[Path, Path]] = []
        self._named: dict[Path, Path] = {}
        with _given(meta):
            outputs = super()._generate_dataparser_outputs(split)
        if split == "train":
            tell_of_others(self._reduced)
        frames = {Path(frame["file_path"]): frame for frame in meta["frames"]}
        outputs.cameras.times = _times([frames[self._named[path]] for path in outputs.image_filenames])
        outputs.metadata.update(_faults(meta))
        return outputs

    def _get_fname(self, filepath: Path, data_dir: Path, downsample_folder_prefix: str = "images_") -> Path:
        """An image's file at the reduction that is read; Nerfstudio's own knows reduced ones by their bare names."""

        def reduced(factor: int) -> Path | None:
            below = reduced_paths(filepath, factor, downsample_folder_prefix)
            return next((data_dir / path for path in below if is_file(data_dir / path)), None)

        if self.downscale_factor is None:
            self.downscale_factor = self.config.downscale_factor or _fitting_factor(data_dir / filepath, reduced)
        self._named[data_dir / filepath] = filepath
        if self.downscale_factor == 1:
            return data_dir / filepath
        # Where none is there, the name of the likeliest is what is then said to be missing.
        likeliest = next(reduced_paths(filepath, self.downscale_factor, downsample_folder_prefix))
        found = reduced(self.downscale_factor) or data_dir / likeliest
        self._reduced.append((data_dir / filepath, found))
        self._named[found] = filepath
        return found


class BlenderReader(Checked, Blender):
    """The layout of the NeRF-synthetic scenes, with any lens and any kind of image."""

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        outputs, points = _read_split(self, split, self.alpha_color_tensor), self.config.ply_path
        if points is not None:
            outputs.metadata.update(self._load_3D_points(self.data / points))
        return outputs


class DNeRFReader(Checked, DNeRF):
    """The layout of the D-NeRF scenes: that of the NeRF-synthetic ones, with the frames' times."""

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        return _read_split(self, split, None if self.alpha_color is None else get_color(self.alpha_color))


class InstantNGPReader(Checked, InstantNGP):
    """The format of instant-ngp, with each frame's lens."""

    def _generate_dataparser_outputs(self, split: str = "train") -> DataparserOutputs:
        path, scale = transforms_file(self.config.data), self.config.scene_scale
        meta = load_from_json(path)
        indices = _split_indices(self.config, meta, split)
        frames = [meta["frames"][index] for index in indices]
        half = 0.5 * meta.get("aabb_scale", 1)
        return DataparserOutputs(
            **_outputs(meta, frames, path.parent, scale),
            scene_box=SceneBox(aabb=torch.tensor([[-half] * 3, [half] * 3], dtype=torch.float32)),
        )


def tell(text: str) -> None:
    """Says what was chosen of a scene, or left out of it, in one line however long."""
    CONSOLE.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def split_file(data: Path, split: str) -> Path:
    """The file of a NeRF-synthetic scene's split; those of ``val`` and ``test`` serve for each other.

    Raises:
        InputError: if no file holds images out.
    """
    if split == "train":
        return data / "transforms_train.json"
    others = [split, *({"val", "test"} - {split})]
    found = next((path for each in others if (path := data / f"transforms_{each}.json").is_file()), None)
    if found is None:
        raise InputError(
            f"{data} has neither transforms_val.json nor transforms_test.json. Move a tenth of the frames of "
            "transforms_train.json into transforms_test.json: they are held out and measured."
        )
    return found


def make_cameras(meta: Mapping[str, Any], frames: Sequence[Mapping[str, Any]], scale: float) -> Cameras:
    """The cameras of frames as :func:`read_transforms` gives them, their positions scaled."""
    poses = torch.from_numpy(np.array([frame["transform_matrix"] for frame in frames]).astype(np.float32))
    poses = poses.reshape(-1, 4, 4)[:, :3]
    poses[..., 3] *= scale
    numbers = {
        key: torch.tensor([frame[key] for frame in frames], dtype=torch.float32)[:, None]
        for key in ("fl_x", "fl_y", "cx", "cy")
    }
    sizes = torch.tensor([[frame["w"], frame["h"]] for frame in frames], dtype=torch.int64).reshape(-1, 2)
    distortion = torch.tensor([frame["distortion_params"] for frame in frames], dtype=torch.float32)
    return Cameras(
        camera_to_worlds=poses,
        fx=numbers["fl_x"],
        fy=numbers["fl_y"],
        cx=numbers["cx"],
        cy=numbers["cy"],
        width=sizes[:, :1],
        height=sizes[:, 1:],
        distortion_params=distortion if distortion.any() else None,
        camera_type=CAMERA_MODEL_TO_TYPE[meta["camera_model"]],
        times=_times(frames),
        metadata={key: meta[key] for key in ("fisheye_crop_radius",) if key in meta},
    )


def _times(frames: Sequence[Mapping[str, Any]]) -> Float[Tensor, "frames 1"] | None:
    """When frames were taken, from 0 to 1; None where nothing is said of it that can be used."""
    if not frames or "time" not in frames[0]:
        return None
    return torch.tensor([frame["time"] for frame in frames], dtype=torch.float32)[:, None]


def _faults(meta: Mapping[str, Any]) -> dict[str, str]:
    return {key: meta[key] for key in (TIME_FAULT,) if key in meta}


def _read_split(parser: Blender | DNeRF, split: str, background: Tensor | None) -> DataparserOutputs:
    """One of the files of a NeRF-synthetic scene."""
    meta = load_from_json(split_file(parser.data, split))
    return DataparserOutputs(
        **_outputs(meta, meta["frames"], parser.data, parser.scale_factor),
        alpha_color=background,
        scene_box=SceneBox(aabb=torch.tensor([[-1.5] * 3, [1.5] * 3])),
    )


def _outputs(
    meta: Mapping[str, Any], frames: Sequence[Mapping[str, Any]], folder: Path, scale: float
) -> dict[str, Any]:
    """Images, cameras and masks of frames, and how the data came into their frame."""
    masks = [folder / frame["mask_path"] for frame in frames if "mask_path" in frame]
    return {
        "image_filenames": [folder / frame["file_path"] for frame in frames],
        "cameras": make_cameras(meta, frames, scale),
        "mask_filenames": masks or None,
        "dataparser_transform": torch.tensor(meta.get("applied_transform", torch.eye(4)[:3].tolist())),
        "dataparser_scale": scale * meta.get("applied_scale", 1.0),
        "metadata": _faults(meta),
    }


def _split_indices(config: Any, meta: Mapping[str, Any], split: str) -> list[int]:
    names = [frame["file_path"] for frame in meta["frames"]]
    if f"{split}_filenames" in meta:
        listed = set(meta[f"{split}_filenames"])
        return [index for index, name in enumerate(names) if name in listed]
    arguments = {"fraction": [config.train_split_fraction], "interval": [config.eval_interval]}
    divide = getattr(dataparsers_utils, f"get_train_eval_split_{config.eval_mode}")
    train, held_out = divide(names, *arguments.get(config.eval_mode, []))
    return (train if split == "train" else held_out).tolist()


def _fitting_factor(image: Path, reduced: Any) -> int:
    """The reduction that brings an image to Nerfstudio's greatest size as far as there are reduced ones."""
    if not is_file(image):
        return next((factor for factor in REDUCED if reduced(factor)), 1)
    with Image.open(image) as opened:
        side = max(opened.size)
    factor = 1
    while side / factor > nerfstudio_dataparser.MAX_AUTO_RESOLUTION and reduced(2 * factor):
        factor *= 2
    return factor


@contextmanager
def _given(meta: dict[str, Any]) -> Iterator[None]:
    """Nerfstudio's parser is given this instead of what it would read from its file."""
    load = nerfstudio_dataparser.load_from_json
    nerfstudio_dataparser.load_from_json = lambda path: meta
    try:
        yield
    finally:
        nerfstudio_dataparser.load_from_json = load
