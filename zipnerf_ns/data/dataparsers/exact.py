"""Nerfstudio's parsers with poses that are checked and centered in float64 before they are cast to float32.

The parsers read poses within one long method. What they read is caught where they call for it: COLMAP's frames from a
method of their own, JSON's from the name ``load_from_json`` of their module; and so is what orients them. The transform
that they return is then completed in float64 by what was centered and applied, so that exports in the data's frame are
right at any distance. They choose the scene's center where the configuration leaves that open.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras import camera_utils
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.dnerf_dataparser import DNeRFDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data.dataparsers.colmap import ColmapReader
from zipnerf_ns.data.dataparsers.readers import NerfstudioReader
from zipnerf_ns.data.metadata import CENTER, FRAME_KEY
from zipnerf_ns.data.poses import PoseSet, check_axes, check_poses, read_similarity, rounds_too_much, spread_of_views
from zipnerf_ns.errors import InputError, say

JSON_PARSERS = (
    NerfstudioDataParserConfig, BlenderDataParserConfig, DNeRFDataParserConfig, InstantNGPDataParserConfig
)  # fmt: skip
"""Parsers whose frames are read by their module's ``load_from_json``."""
_orient = camera_utils.auto_orient_and_center_poses
OLD_TRANSFORM = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
"""What Nerfstudio's parser takes for the applied transform of scenes of an old ``ns-process-data``."""
PARALLEL = 1e-3
"""Least :func:`spread_of_views`, of two degrees, with which the axes' common place is certain enough."""
CONVERGENT = 0.2
"""The same of cameras that go around something, 95 degrees of a circle at least: 0.31 of fox, 0.6 of bonsai and lego;
0.12 of books, before which the camera hardly turns."""
SEES, MOST = math.cos(math.radians(45.0)), 0.9
"""Cosine of the angle from its axis within which a camera sees a place, and the share of cameras that have to."""
SAID = {
    "poses": "The scene is centered among its cameras, not on what they look at as by --center-method focus.",
    "focus": "The scene is centered on what its cameras look at, not among them as by --center-method poses.",
}
"""What a person is told of a center that was chosen."""


@dataclass
class CenteringNerfstudioConfig(NerfstudioDataParserConfig):
    """Nerfstudio's own format, centered where a scene's cameras look if they look at one place."""

    _target: type = field(default_factory=lambda: ExactNerfstudio)
    """Dataparser class."""
    center_method: Literal["auto", "poses", "focus", "none"] = "auto"
    """The origin: among the cameras (poses), what they look at (focus), as the data have it (none), or focus where
    cameras go around something and poses elsewhere (auto)."""


@dataclass
class CenteringColmapConfig(ColmapDataParserConfig):
    """COLMAP's models, centered where a scene's cameras look if they look at one place."""

    _target: type = field(default_factory=lambda: ExactColmap)
    """Dataparser class."""
    center_method: Literal["auto", "poses", "focus", "none"] = "auto"
    """The origin: among the cameras (poses), what they look at (focus), as the data have it (none), or focus where
    cameras go around something and poses elsewhere (auto)."""


CENTERING: dict[type[DataParserConfig], type[DataParserConfig]] = {
    NerfstudioDataParserConfig: CenteringNerfstudioConfig,
    ColmapDataParserConfig: CenteringColmapConfig,
}
"""By Nerfstudio's configuration of a parser, ours that leaves the center open."""


def exact(config: DataParserConfig) -> DataParserConfig:
    """The configuration of the same parser with exact poses; of a parser that reads in its own way, as it is."""
    parser = config._target
    if not isinstance(config, (*JSON_PARSERS, ColmapDataParserConfig)) or issubclass(parser, ExactPoses):
        return config
    return dataclasses.replace(config, _target=type(parser.__name__, (ExactPoses, parser), {}))


class ExactOutputs(DataparserOutputs):
    """Outputs whose transform is float64, and with it the way back to the data's frame."""

    def transform_poses_to_original_space(
        self, poses: Float[Tensor, "cameras 3 4"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "cameras 3 4"]:
        """Poses of the model's frame in the data's, in float64."""
        return super().transform_poses_to_original_space(poses.double(), *args, **kwargs)


def settled(config: DataParserConfig, center: str) -> DataParserConfig:
    """Nerfstudio's own configuration in place of one that leaves the center open, with what was chosen; others as they
    are."""
    plain = {ours: theirs for theirs, ours in CENTERING.items()}.get(type(config))
    if plain is None:
        return config
    values = {each.name: getattr(config, each.name) for each in dataclasses.fields(plain) if each.name != "_target"}
    return plain(**values | {"center_method": center if config.center_method == "auto" else config.center_method})


def choose_center(
    poses: Float[np.ndarray, "cameras 4 4"], times: Sequence[float | None]
) -> Literal["poses", "focus"]:
    """Whether a scene is better centered among its cameras or on what they look at.

    There its photos have their detail, and the model its finest cells. Cameras look at one place if they go around it,
    or along a part of a ring: their axes pass each other at large angles, and nearly all see where they do. Of cameras
    that stand still before a scene that moves any angles are enough: few of them, on one side of it, are far from it in
    a frame about their own middle, where only one of them sees, and clouds of one photo's colors stand before each.
    What moves before a camera that moves, too, stays about its middle: tried otherwise once, it lost 7 dB.

    Args:
        poses: centered about any place near them.
        times: of the cameras.
    """
    views = poses[:, :3, 2]
    spread = spread_of_views(views)
    if len(set(times)) > 1:
        stand_still = 2 <= len(np.unique(poses[:, :3], axis=0)) <= len(poses) / 2
        return "focus" if stand_still and spread > PARALLEL else "poses"
    if spread < CONVERGENT:
        return "poses"
    positions = poses[:, :3, 3]
    try:
        place = camera_utils.focus_of_attention(torch.from_numpy(poses), torch.from_numpy(positions.mean(axis=0)))
    except torch.linalg.LinAlgError:
        # It leaves out cameras that have their middle behind them, and the others look the same way.
        return "poses"
    towards = place.numpy() - positions
    sees = -(views * towards).sum(axis=1) > SEES * np.linalg.norm(towards, axis=1)
    return "focus" if sees.mean() >= MOST else "poses"


@dataclass
class _Read:
    """What the parser was given instead of the file's own poses."""

    source: Path
    poses: PoseSet
    applied: Float[np.ndarray, "4 4"]
    """To the file's frame from the data's original one, before the scale."""
    applied_scale: float
    left: Float[np.ndarray, "4 4"]
    """What of the applied transform the parser itself still applies: a rotation."""


class ExactPoses:
    """What goes before a parser of Nerfstudio's in a class that :func:`exact` makes."""

    config: DataParserConfig
    _split: str = "train"
    _read: _Read | None = None
    _center: str = "none"
    _said: frozenset[str] = frozenset()

    def get_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        """The parser's outputs, with the transform in float64.

        Raises:
            InputError: for poses that cannot be right, or that the configured axes or center do not fit.
        """
        self._split = split
        try:
            with self._caught():
                outputs = super().get_dataparser_outputs(split, **kwargs)
        except (np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:
            raise InputError(self._no_frame()) from error
        return self._completed(outputs)

    @contextmanager
    def _caught(self) -> Iterator[None]:
        """While the parser runs, what it reads and how it turns poses go through here."""
        modules = [sys.modules[parent.__module__] for parent in type(self).__mro__]
        caught: list[tuple[Any, str, Any]] = [(camera_utils, "auto_orient_and_center_poses", self._oriented)]
        for module in modules:
            if hasattr(module, "load_from_json"):
                caught.append((module, "load_from_json", partial(self._cleaned_json, module.load_from_json)))
                break
        before = [getattr(module, name) for module, name, _ in caught]
        try:
            for module, name, replacement in caught:
                setattr(module, name, replacement)
            yield
        finally:
            for (module, name, _), original in zip(caught, before, strict=True):
                setattr(module, name, original)

    def _oriented(self, poses: Tensor, method: str, center_method: str) -> tuple[Tensor, Tensor]:
        """Nerfstudio's oriented poses by the transform that comes with them, about the center that was decided on.

        Where its "pca" finds the scene upside down, it turns the transform's last two axes and, for want of an index,
        the second and third camera instead of those axes of all.
        """
        transform = _orient(poses, method=method, center_method=self._center)[1]
        return transform @ poses, transform

    def _cleaned_json(self, load: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
        return self._cleaned(load(path), path)

    def _get_all_images_and_cameras(self, recon_dir: Path) -> dict[str, Any]:
        """COLMAP's frames."""
        return self._cleaned(super()._get_all_images_and_cameras(recon_dir), recon_dir)

    def _cleaned(self, meta: dict[str, Any], source: Path) -> dict[str, Any]:
        """The file's entries with checked poses, centered where the parser would; what it applied is kept apart."""
        frames, config = meta["frames"], self.config
        center = getattr(config, "center_method", "none")
        folder = f"{Path(config.data).as_posix()}/"
        times = [frame.get("time", frame.get("timestamp")) for frame in frames]
        poses = check_poses(
            [frame.get("transform_matrix") for frame in frames],
            [str(frame.get("file_path")).removeprefix(folder) for frame in frames],
            source,
            is_centered=center != "none",
            is_whole=self._split == "train",
            views=[(frame.get(FRAME_KEY, 1), time) for frame, time in zip(frames, times, strict=True)],
        )
        orientation = meta.get("orientation_override", getattr(config, "orientation_method", "none"))
        if center == "auto":
            center = choose_center(poses.matrices, times)
            poses = poses._replace(notes=(*poses.notes, SAID[center]))
        check_axes(poses.matrices, orientation, center, source)
        self._center = center
        for frame, matrix in zip(frames, poses.matrices, strict=True):
            frame["transform_matrix"] = matrix
        applied, scale = read_similarity(meta.get("applied_transform"), meta.pop("applied_scale", None), source)
        left = np.eye(4)
        if meta.pop("applied_transform", None) is not None:
            meta["applied_transform"] = left[:3].tolist()
        elif isinstance(config, NerfstudioDataParserConfig) and (Path(config.data) / "colmap/sparse/0").exists():
            # The parser takes it for granted, and may write it into the file.
            left[:3] = OLD_TRANSFORM
            applied = left
        self._read = _Read(source, poses, applied, scale, left)
        for note in poses.notes:
            if note not in self._said:
                say(note)
        self._said |= set(poses.notes)
        return meta

    def _load_3D_points(
        self, path: Path, transform: Tensor | None = None, scale: float = 1.0
    ) -> dict[str, Tensor] | None:
        """Points by the transform of the poses: COLMAP's are in the original frame, others in the file's."""
        if transform is None or self._read is None:
            return super()._load_3D_points(path)
        centering = np.eye(4)
        centering[:3, 3] = -self._read.poses.center
        if isinstance(self.config, ColmapDataParserConfig):
            centering = centering @ self._read.applied
        return super()._load_3D_points(path, transform @ torch.from_numpy(centering).to(transform), scale)

    def _completed(self, outputs: DataparserOutputs) -> DataparserOutputs:
        read = self._read
        if read is None:
            raise RuntimeError("the parser read no poses through ExactPoses")
        given = outputs.dataparser_transform.double().numpy()
        turn = given[:, :3] @ np.linalg.inv(read.left[:3, :3])
        positions = read.poses.matrices[:, :3, 3] @ turn.T + given[:, 3]
        is_finite = outputs.cameras.camera_to_worlds.isfinite().all() and math.isfinite(outputs.dataparser_scale)
        # A few held-out cameras may stand close to each other.
        if not is_finite or (self._split == "train" and rounds_too_much(positions)):
            raise InputError(self._no_frame())
        transform = np.empty((3, 4))
        transform[:, :3] = turn @ read.applied[:3, :3]
        shift = (given[:, 3] - turn @ read.poses.center) / read.applied_scale
        transform[:, 3] = turn @ read.applied[:3, 3] + shift
        completed = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
        completed["dataparser_transform"] = torch.from_numpy(transform)
        completed["dataparser_scale"] = outputs.dataparser_scale * read.applied_scale
        completed["metadata"] = {**outputs.metadata, CENTER: self._center}
        return ExactOutputs(**completed)

    def _no_frame(self) -> str:
        where = self._read.source if self._read is not None else self.config.data
        return (
            f"{where}: these cameras cannot be oriented and centered in the way that was asked for. "
            "Give --orientation-method none --center-method poses."
        )


class ExactNerfstudio(ExactPoses, NerfstudioReader):
    """Nerfstudio's own format with exact poses."""


class ExactColmap(ExactPoses, ColmapReader):
    """COLMAP's models with exact poses."""
