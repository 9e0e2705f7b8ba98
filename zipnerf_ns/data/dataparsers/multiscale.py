"""Any scene at several scales: the same views at 1, 1/2, 1/4 and 1/8 of their size, as images of their own.

The reduced images are written once, so that every method of nerfstudio can train on them and be measured on them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.colors import get_color

from zipnerf_ns.data.checks import check_images
from zipnerf_ns.data.dataparsers.exact import CenteringNerfstudioConfig, exact, settled
from zipnerf_ns.data.dataparsers.formats import FORMATS, find_format, format_of, with_reader
from zipnerf_ns.data.dataparsers.mipnerf360 import MipNerf360DataParserConfig
from zipnerf_ns.data.dataparsers.names import scene_folder
from zipnerf_ns.data.dataparsers.reduction import reduce_image, reduce_mask, write_reduced
from zipnerf_ns.data.metadata import SCALES, find_scales
from zipnerf_ns.errors import InputError


@dataclass
class MultiscaleDataParserConfig(DataParserConfig):
    """Any scene at several scales; the folder decides which of the three parsers reads it."""

    _target: type = field(default_factory=lambda: MultiscaleDataParser)
    """Dataparser class."""
    data: Path = Path()
    """Folder, or transforms file, of the scene at its full size."""
    scales: tuple[int, ...] = (1, 2, 4, 8)
    """Sides of a pixel, in pixels of the full size."""
    cache_dir: Path = Path("multiscale")
    """Where reduced images are kept; relative to the scene's folder."""
    alpha_color: str | None = None
    """Painted behind transparent pixels, for methods that do not read alpha; by default alpha is kept."""
    nerfstudio: NerfstudioDataParserConfig = field(default_factory=CenteringNerfstudioConfig)
    """Reads a scene that has transforms.json."""
    blender: BlenderDataParserConfig = field(default_factory=lambda: BlenderDataParserConfig(alpha_color=None))
    """Reads a scene that has transforms_train.json."""
    mipnerf360: MipNerf360DataParserConfig = field(default_factory=MipNerf360DataParserConfig)
    """Reads a COLMAP model in the layout of the mip-NeRF 360 benchmark."""

    def source(self) -> DataParserConfig:
        """The configuration of the parser that reads this scene at its full size."""
        # Where nothing is found the last one says what it misses.
        found = find_format(self.data) or FORMATS[-1]
        return with_reader(dataclasses.replace(getattr(self, found.name), data=self.data))


def source_config(config: DataParserConfig) -> DataParserConfig:
    """The configuration of the parser that reads the scene's own files."""
    return config.source() if isinstance(config, MultiscaleDataParserConfig) else config


def check_files(config: DataParserConfig) -> None:
    """Nerfstudio's parsers mix all poses when they recenter: only the files themselves say which frame is wrong.

    Raises:
        InputError: naming it.
    """
    parser = source_config(config)
    if (scene_format := format_of(parser)) is not None:
        scene_format.check(parser)


def settled_source(config: DataParserConfig, center: str) -> DataParserConfig:
    """:func:`settled`, also where a parser at several scales reads through another one."""
    if isinstance(config, MultiscaleDataParserConfig):
        return dataclasses.replace(config, nerfstudio=settled(config.nerfstudio, center))
    return settled(config, center)


class MultiscaleDataParser(DataParser):
    """Repeats what another parser gives, once for each scale."""

    config: MultiscaleDataParserConfig
    downscale_factor: int | None = None
    """Nerfstudio sets it where no images are needed; then none are written."""

    def __init__(self, config: MultiscaleDataParserConfig) -> None:
        super().__init__(config)
        _check_scales(config.scales)
        self.source: DataParser = exact(config.source()).setup()

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        config = self.config
        if self.downscale_factor is not None:
            self.source.downscale_factor = self.downscale_factor
        outputs = self.source.get_dataparser_outputs(split, **kwargs)
        if find_scales(outputs.image_filenames, outputs.metadata, config.data) is not None:
            raise InputError(
                f"{config.data} gives its images at several scales already. Read it without multiscale-data."
            )
        if outputs.metadata.get("depth_filenames") is not None:
            raise InputError("multiscale-data does not reduce depth images: remove depth_file_path from the frames.")
        cameras = cameras_at_scales(outputs.cameras, config.scales)
        filenames, masks = self._reduced_paths(outputs)
        if self.downscale_factor is None:
            # Before pixels are read: a file that is missing or no image is named here.
            check_images(outputs.image_filenames)
            self._write(outputs.image_filenames, filenames, outputs.mask_filenames, masks)
        alpha_color = outputs.alpha_color if config.alpha_color is None else get_color(config.alpha_color)
        count = len(outputs.image_filenames)
        return dataclasses.replace(
            outputs,
            image_filenames=[path for paths in filenames for path in paths],
            mask_filenames=None if masks is None else [path for paths in masks for path in paths],
            cameras=cameras,
            alpha_color=alpha_color,
            metadata={**outputs.metadata, SCALES: [scale for scale in config.scales for _ in range(count)]},
        )

    def _reduced_paths(self, outputs: DataparserOutputs) -> tuple[list[list[Path]], list[list[Path]] | None]:
        folder = scene_folder(self.config.data)
        cache = folder / self.config.cache_dir

        def at_scale(paths: Sequence[Path], scale: int) -> list[Path]:
            if scale == 1:
                return list(paths)
            return [cache / str(scale) / f"{_inside(path, folder)}.png" for path in paths]

        masks = outputs.mask_filenames
        return (
            [at_scale(outputs.image_filenames, scale) for scale in self.config.scales],
            None if masks is None else [at_scale(masks, scale) for scale in self.config.scales],
        )

    def _write(
        self,
        sources: Sequence[Path],
        reduced: list[list[Path]],
        masks: Sequence[Path] | None,
        reduced_masks: list[list[Path]] | None,
    ) -> None:
        """Writes the reduced images that are not there yet, or whose original has changed.

        Raises:
            InputError: where they cannot be written.
        """
        jobs = [(sources, reduced, reduce_image)]
        if masks is not None and reduced_masks is not None:
            jobs.append((masks, reduced_masks, reduce_mask))
        with ThreadPoolExecutor() as pool:
            for originals, targets, function in jobs:
                for scale, paths in zip(self.config.scales, targets, strict=True):
                    if scale > 1:
                        work = [
                            pool.submit(write_reduced, original, target, scale, function)
                            for original, target in zip(originals, paths, strict=True)
                        ]
                        for done in work:
                            done.result()


def cameras_at_scales(cameras: Cameras, scales: Sequence[int]) -> Cameras:
    """The cameras of all views at the first scale, then at the next.

    A reduced image ends with its last whole pixel; its rays are the full image's, so focal lengths and principal
    points are divided exactly.

    Raises:
        InputError: where a reduced image would have no pixel, or the camera model has sizes of its own.
    """
    if "fisheye_crop_radius" in (cameras.metadata or {}):
        raise InputError("multiscale-data cannot reduce fisheye images with a crop radius.")
    smallest = int(min(cameras.width.min(), cameras.height.min()))
    if smallest < max(scales):
        raise InputError(
            f"the smallest image is {smallest} pixels wide or high: at scale 1/{max(scales)} nothing is left of it. "
            "Give smaller --scales."
        )
    repeated = cameras[torch.arange(len(cameras)).repeat(len(scales))]
    divisor = torch.tensor(scales).repeat_interleave(len(cameras))[:, None]
    for name in ("fx", "fy", "cx", "cy"):
        setattr(repeated, name, getattr(repeated, name) / divisor)
    for name in ("width", "height"):
        setattr(repeated, name, getattr(repeated, name) // divisor)
    return repeated


def _inside(path: Path, folder: Path) -> Path:
    """The path below the scene's folder; one outside it as a path without its root."""
    path, folder = (Path(os.path.normpath(each.absolute())) for each in (path, folder))
    return path.relative_to(folder if path.is_relative_to(folder) else path.anchor)


def _check_scales(scales: Sequence[int]) -> None:
    if not scales or min(scales) < 1 or len(set(scales)) != len(scales):
        raise InputError(f"scales is {tuple(scales)}: give different whole numbers of at least 1, such as 1 2 4 8.")


multiscale_data = DataParserSpecification(
    config=MultiscaleDataParserConfig(),
    description="Any scene at several scales: the same views at 1, 1/2, 1/4 and 1/8 of their size.",
)
