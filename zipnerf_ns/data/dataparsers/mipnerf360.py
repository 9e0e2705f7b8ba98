"""The scenes of the mip-NeRF 360 benchmark as they are published, read as the reference implementation reads them.

Nerfstudio's own COLMAP parser rounds the size of reduced images down, holds out views by COLMAP's numbers instead
of by file name, and turns poses by the transpose of their principal axes; each of the three changes the figures.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser, ColmapDataParserConfig
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from zipnerf_ns.data.dataparsers.colmap import FoundModel, check_colmap
from zipnerf_ns.data.poses import check_poses
from zipnerf_ns.errors import InputError

OUTDOOR_FACTOR, INDOOR_FACTOR = 4, 2
"""Reduction of the images that results are published for (mip-NeRF 360, section 5)."""
PUBLISHED_FACTORS = {
    **dict.fromkeys(("bicycle", "flowers", "garden", "stump", "treehill"), OUTDOOR_FACTOR),
    **dict.fromkeys(("room", "counter", "kitchen", "bonsai"), INDOOR_FACTOR),
}
"""The published reduction by the name of the scene's folder."""


@dataclass
class MipNerf360DataParserConfig(ColmapDataParserConfig):
    """The mip-NeRF 360 benchmark: a folder with sparse/0 and images, images_2, images_4, images_8."""

    _target: type = field(default_factory=lambda: MipNerf360DataParser)
    """Dataparser class."""
    downscale_factor: int | None = None
    """Reduction of the images; by default the published one for the folder's name: 4 outdoors, 2 indoors."""
    downscale_rounding_mode: Literal["floor", "round", "ceil"] = "round"
    """Rounding of the reduced images' sides; the published ones are rounded half up."""
    colmap_path: Path = Path("sparse/0")
    """COLMAP's model, relative to the data."""
    orientation_method: Literal["pca", "up", "vertical", "none"] = "pca"
    """pca: the cameras' principal axes, as the reference does (centering included); others: nerfstudio's."""
    load_3D_points: bool = False
    """Whether to load COLMAP's points: splatfacto starts from them, radiance fields do not use them."""


class MipNerf360DataParser(FoundModel, ColmapDataParser):
    """Nerfstudio's COLMAP parser with the reference's order, sizes and axes."""

    config: MipNerf360DataParserConfig

    def __init__(self, config: MipNerf360DataParserConfig) -> None:
        self._principal_axes = config.orientation_method == "pca"
        if self._principal_axes:
            # Done here, to all poses, before nerfstudio scales them.
            config = dataclasses.replace(config, orientation_method="none", center_method="none")
        super().__init__(config)

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> Any:
        # Whether there is a model at all comes before how its folder is named.
        check_colmap(self.config)
        self._downscale_factor = published_factor(self.config)
        _check_reduced_images(self.config, self._downscale_factor)
        return super()._generate_dataparser_outputs(split, **kwargs)

    def _get_all_images_and_cameras(self, recon_dir: Path) -> dict[str, Any]:
        """Nerfstudio's frames by file name, in the frame of their principal axes."""
        meta = super()._get_all_images_and_cameras(recon_dir)
        meta["frames"].sort(key=lambda frame: frame["file_path"])
        if self._principal_axes:
            _turn_to_principal_axes(meta, recon_dir)
        return meta


def published_factor(config: MipNerf360DataParserConfig) -> int:
    """The reduction that was asked for, or the published one of the scene.

    Raises:
        InputError: for a folder that does not bear the name of a published scene.
    """
    if config.downscale_factor is not None:
        return config.downscale_factor
    name = config.data.resolve().name.lower()
    if name not in PUBLISHED_FACTORS:
        raise InputError(
            f"{config.data} is not named like a scene of the benchmark ({', '.join(PUBLISHED_FACTORS)}). "
            "Say which images to use: --downscale-factor 4 outdoors, 2 indoors, 1 for images."
        )
    return PUBLISHED_FACTORS[name]


def principal_axes(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The rotation to the principal axes of points, the longest first, right-handed.

    Args:
        positions: ``[n, 3]``.
    Returns:
        ``[3, 3]``, whose rows are the axes.
    """
    centered = positions - positions.mean(axis=0)
    # Ascending, so turned round.
    axes = np.linalg.eigh(centered.T @ centered)[1][:, ::-1].T
    if np.linalg.det(axes) < 0:
        axes = axes * np.array([[1.0], [1.0], [-1.0]])
    return axes


def _turn_to_principal_axes(meta: dict[str, Any], model: Path) -> None:
    """Centers all poses, turns them to their principal axes with the cameras upright, and says so in the transform."""
    matrices, names = zip(*((frame["transform_matrix"], frame["file_path"]) for frame in meta["frames"]), strict=True)
    poses = check_poses(matrices, names, model, is_whole=False).matrices
    axes = principal_axes(poses[:, :3, 3])
    if (axes @ poses[:, :3, 1].mean(axis=0))[2] < 0:
        axes = axes * np.array([[1.0], [-1.0], [-1.0]])
    turn = np.eye(4)
    turn[:3, :3], turn[:3, 3] = axes, -axes @ poses[:, :3, 3].mean(axis=0)
    for frame, pose in zip(meta["frames"], poses, strict=True):
        frame["transform_matrix"] = turn @ pose
    applied = np.eye(4)
    applied[:3] = meta.get("applied_transform", applied[:3])
    meta["applied_transform"] = (turn @ applied)[:3].tolist()


def _check_reduced_images(config: MipNerf360DataParserConfig, factor: int) -> None:
    """Nerfstudio would ask on the terminal whether to write absent images, rounded its own way."""
    images = config.data / config.images_path
    folder = images if factor == 1 else images.with_name(f"{images.name}_{factor}")
    if not folder.is_dir():
        raise InputError(
            f"{folder} is missing. Take the published images of the scene, or choose others with "
            "--downscale-factor (1 for those as large as COLMAP's cameras)."
        )


mipnerf360_data = DataParserSpecification(
    config=MipNerf360DataParserConfig(),
    description="The mip-NeRF 360 benchmark's scenes by its protocol: images, split, axes.",
)
