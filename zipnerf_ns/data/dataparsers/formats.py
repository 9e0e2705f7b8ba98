"""Which parser reads a scene: one row a format. A new one is its parser and its row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data.checks import check_transforms
from zipnerf_ns.data.dataparsers.mipnerf360 import MipNerf360DataParserConfig


class SceneFormat(NamedTuple):
    """How a scene's files are laid out."""

    name: str
    """What its settings are called in ``multiscale-data``; with ``-data``, the parser's subcommand."""
    marker: str
    """What in the scene's folder tells the format."""
    parser: type[DataParserConfig]
    """Configuration of the parser that reads it."""
    check: Callable[[Path], None] = lambda data: None
    """Checks the scene's files before the parser reads them; takes the folder or file that ``--data`` names."""
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


def _transforms(data: Path) -> Path:
    return data if data.suffix == ".json" else data / "transforms.json"


def _check_nerfstudio(data: Path) -> None:
    check_transforms(_transforms(data))


def _names_points(data: Path) -> bool:
    # Without the file nerfstudio would ask on the terminal.
    return '"ply_file_path"' in _transforms(data).read_text(encoding="utf-8")


def _check_blender(data: Path) -> None:
    for split in ("train", "val", "test"):
        path = data / f"transforms_{split}.json"
        if split == "train" or path.exists():
            check_transforms(path, is_blender=True)


FORMATS = (
    SceneFormat(
        "nerfstudio", "transforms.json", NerfstudioDataParserConfig, check=_check_nerfstudio, reads_reduced=True,
        has_points=_names_points, box_setting="scene_scale",
        own_frame={"orientation_method": "none", "center_method": "none", "auto_scale_poses": False},
    ),
    SceneFormat(
        "blender", "transforms_train.json", BlenderDataParserConfig, check=_check_blender, is_bounded=True,
        own_frame={"alpha_color": None},
    ),
    # COLMAP's models are checked by their parser.
    SceneFormat(
        "mipnerf360", "sparse/0", MipNerf360DataParserConfig, reads_reduced=True, has_points=lambda data: True
    ),
)  # fmt: skip
"""The formats; the first whose marker is there is a scene's."""


def find_format(data: Path) -> SceneFormat | None:
    """The format of a scene's folder or transforms file; None if no marker is there."""
    if data.suffix == ".json":
        return FORMATS[0]
    return next((row for row in FORMATS if (data / row.marker).exists()), None)


def format_of(parser: DataParserConfig) -> SceneFormat | None:
    """The format that a parser reads; None for those without a row, such as Nerfstudio's other parsers."""
    return next((row for row in FORMATS if isinstance(parser, row.parser)), None)
