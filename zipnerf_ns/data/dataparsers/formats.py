"""Which parser reads a scene: one row a format. A new one is its parser and its row here."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.dnerf_dataparser import DNeRFDataParserConfig
from nerfstudio.data.dataparsers.dycheck_dataparser import DycheckDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data.checks import check_train_split
from zipnerf_ns.data.dataparsers.colmap import ColmapReader, check_colmap, has_model
from zipnerf_ns.data.dataparsers.exact import CENTERING
from zipnerf_ns.data.dataparsers.mipnerf360 import MipNerf360DataParser, MipNerf360DataParserConfig
from zipnerf_ns.data.dataparsers.readers import (
    BlenderReader,
    Checked,
    DNeRFReader,
    InstantNGPReader,
    NerfstudioReader,
    split_file,
    tell,
)
from zipnerf_ns.data.moving.dycheck import DycheckReader, check_dycheck
from zipnerf_ns.data.poses import check_poses
from zipnerf_ns.data.transforms import read_transforms, transforms_file
from zipnerf_ns.errors import InputError, shorten


class SceneFormat(NamedTuple):
    """How a scene's files are laid out."""

    name: str
    """What its settings are called in ``multiscale-data``; with ``-data``, the parser's subcommand."""
    marker: str
    """What in the scene's folder tells the format."""
    parser: type[DataParserConfig]
    """Configuration of the parser that reads it."""
    reader: type[DataParser]
    """Reads it, for whoever reads through :func:`with_reader`."""
    check: Callable[[Any], None]
    """Checks the scene's files, all splits of them, before any is parsed; takes the parser's configuration."""
    is_bounded: bool = False
    """Whether everything lies within the scene box."""
    reads_reduced: bool = False
    """Whether its parser's ``downscale_factor`` takes images from the folders images_2, images_4, ..."""
    has_points: Callable[[Path], bool] = lambda data: False
    """Whether a scene holds points that its parser's ``load_3D_points`` can load."""
    own_frame: Mapping[str, Any] | None = None
    """Settings of the parser that leave poses and alpha as the data have them; None where it knows none."""
    box_setting: str | None = None
    """The parser's setting for half the side of the scene box; None where it has none."""


def _check_transforms(config: DataParserConfig) -> None:
    path = transforms_file(config.data)
    if not path.exists():
        _check_other_format(path)
    check_train_split(len(_read_telling(path)), path)


def _check_other_format(path: Path) -> None:
    """Names the parser of a folder without transforms, or what finds poses for its photographs.

    Raises:
        InputError: if the folder is one of these.
    """
    data, found = path.parent, find_format(path.parent)
    has_colmap = has_model(ColmapDataParserConfig(data=data))
    if found is not None or has_colmap:
        name = "colmap" if has_colmap else f"{found.name}-data"
        raise InputError(f"{path} does not exist. Check --data, or end the command with {name} to read {data}.")
    kinds = Image.registered_extensions()
    if any(file.suffix.lower() in kinds for folder in (data, data / "images") for file in folder.glob("*")):
        raise InputError(
            f"{path} does not exist. Check --data, or find the poses of photographs first: "
            f"python -m zipnerf_ns.tools.photos {shlex.quote(str(data))} OUT."
        )


def _check_blender(config: DataParserConfig) -> None:
    trained = {Path(frame["file_path"]) for frame in _read_telling(split_file(config.data, "train"))}
    for path in dict.fromkeys(split_file(config.data, split) for split in ("val", "test")):
        held_out = {Path(frame["file_path"]) for frame in _read_telling(path)}
        if both := sorted(map(str, held_out & trained)):
            tell(f"{path}: {shorten(both)} is held out and trained on: its PSNR says little.")


def _check_colmap(config: ColmapDataParserConfig) -> None:
    check_colmap(config, tells=True)


def _read_telling(path: Path) -> list[dict[str, Any]]:
    """The frames of a file whose images are all there, and no pose of which is impossible; says what was chosen."""
    meta, warnings = read_transforms(path)
    frames = meta["frames"]
    check_poses(
        [frame["transform_matrix"] for frame in frames], [frame["file_path"] for frame in frames], path, is_whole=False
    )
    for warning in warnings:
        tell(warning)
    return frames


def _names_points(data: Path) -> bool:
    # Without the file nerfstudio would ask on the terminal.
    return '"ply_file_path"' in transforms_file(data).read_text(encoding="utf-8")


FORMATS = (
    SceneFormat(
        "nerfstudio", "transforms.json", NerfstudioDataParserConfig, NerfstudioReader, _check_transforms,
        reads_reduced=True, has_points=_names_points, box_setting="scene_scale",
        own_frame={"orientation_method": "none", "center_method": "none", "auto_scale_poses": False},
    ),
    SceneFormat(
        "blender", "transforms_train.json", BlenderDataParserConfig, BlenderReader, _check_blender, is_bounded=True,
        own_frame={"alpha_color": None},
    ),
    SceneFormat(
        "mipnerf360", "sparse", MipNerf360DataParserConfig, MipNerf360DataParser, _check_colmap,
        reads_reduced=True, has_points=lambda data: True,
    ),
)  # fmt: skip
"""The formats that a folder shows; the first whose marker is there is a scene's."""
ASKED_FOR = (
    SceneFormat("instant-ngp", "", InstantNGPDataParserConfig, InstantNGPReader, _check_transforms),
    SceneFormat("dnerf", "", DNeRFDataParserConfig, DNeRFReader, _check_blender, is_bounded=True),
    SceneFormat("dycheck", "", DycheckDataParserConfig, DycheckReader, check_dycheck),
    SceneFormat("colmap", "", ColmapDataParserConfig, ColmapReader, _check_colmap, reads_reduced=True),
)
"""Formats that are read where their parser is named: their folders look like others'."""


def find_format(data: Path) -> SceneFormat | None:
    """The format of a scene's folder or transforms file; None if no marker is there."""
    if data.suffix == ".json":
        return FORMATS[0]
    return next((row for row in FORMATS if (data / row.marker).exists()), None)


def parser_for(data: Path) -> DataParserConfig:
    """The parser of a scene's format; where no marker is there, the last one's, which says what it misses."""
    parser = (find_format(data) or FORMATS[-1]).parser
    return CENTERING.get(parser, parser)(data=data)


def format_of(parser: DataParserConfig) -> SceneFormat | None:
    """The format that a parser reads; None for those without a row, such as Nerfstudio's other parsers."""
    rows = {row.parser: row for row in (*FORMATS, *ASKED_FOR)}
    return next((rows[kind] for kind in type(parser).__mro__ if kind in rows), None)


def with_reader(parser: DataParserConfig) -> DataParserConfig:
    """A copy of a parser's configuration that sets up our reader of its format.

    Whatever a parser raises that has no reader here becomes one line, too.
    """
    row, target = format_of(parser), parser._target
    if issubclass(target, Checked):
        return parser
    if row is not None and issubclass(row.reader, target):
        return dataclasses.replace(parser, _target=row.reader)
    return dataclasses.replace(parser, _target=type(target.__name__, (Checked, target), {}))
