"""Which parser reads a scene: one row a format. A new one is its parser and its row here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data.checks import check_transforms
from zipnerf_ns.data.dataparsers.mipnerf360 import MipNerf360DataParserConfig


class SceneFormat(NamedTuple):
    """How a scene's files are laid out."""

    name: str
    """Of its settings in ``multiscale-data``; with ``-data``, the parser's subcommand."""
    marker: str
    """What in the scene's folder tells the format."""
    parser: type[DataParserConfig]
    """Configuration of the parser that reads it."""
    check: Callable[[Path], None]
    """Checks the scene's files before the parser reads them; takes the folder or file that ``--data`` names."""
    is_bounded: bool
    """Whether everything lies within the scene box."""


def _check_nerfstudio(data: Path) -> None:
    check_transforms(data if data.suffix == ".json" else data / "transforms.json")


def _check_blender(data: Path) -> None:
    for split in ("train", "val", "test"):
        path = data / f"transforms_{split}.json"
        if split == "train" or path.exists():
            check_transforms(path, is_blender=True)


def _check_nothing(data: Path) -> None:
    """COLMAP's models are checked by their parser."""


FORMATS = (
    SceneFormat("nerfstudio", "transforms.json", NerfstudioDataParserConfig, _check_nerfstudio, False),
    SceneFormat("blender", "transforms_train.json", BlenderDataParserConfig, _check_blender, True),
    SceneFormat("mipnerf360", "sparse/0", MipNerf360DataParserConfig, _check_nothing, False),
)
"""The formats; the first whose marker is there is a scene's."""


def find_format(data: Path) -> SceneFormat | None:
    """The format of a scene's folder or transforms file; None if no marker is there."""
    if data.suffix == ".json":
        return FORMATS[0]
    return next((row for row in FORMATS if (data / row.marker).exists()), None)


def format_of(parser: DataParserConfig) -> SceneFormat | None:
    """The format that a parser reads; None for those without a row, such as Nerfstudio's other parsers."""
    return next((row for row in FORMATS if isinstance(parser, row.parser)), None)
