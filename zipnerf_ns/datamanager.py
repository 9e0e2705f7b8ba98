"""Nerfstudio's datamanager with checked input, alpha kept for random backgrounds, and one flat store of pixels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Literal, Optional, Tuple, Type

import numpy as np
import numpy.typing as npt
from PIL import Image

from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset

from zipnerf_ns.camera_rays import PixelRays
from zipnerf_ns.checks import InputError, check_cameras, check_images, check_train_split, check_transforms
from zipnerf_ns.dataparsers.multiscale import source_config
from zipnerf_ns.pixel_store import PixelStore
from zipnerf_ns.scales import area_weights, find_scales
from zipnerf_ns.scene_hints import SCENE_HINTS, SceneHints


class CheckedDataset(InputDataset):
    """Nerfstudio's image dataset whose errors name the file; grey, palette and 16-bit images become 8-bit RGB(A)."""

    has_alpha: bool = False
    """Whether any image has an alpha channel; then all get one, for batches of images must have equal channels."""

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """The image as ``[height, width, 3 or 4]``.

        Raises:
            InputError: if its pixels cannot be decoded.
        """
        filename = self._dataparser_outputs.image_filenames[image_idx]
        try:
            with Image.open(filename) as image:
                decoded = _to_rgb_or_rgba(image, self.has_alpha)
        except OSError as error:
            raise InputError(
                f"image {filename} cannot be decoded ({error}). Replace it or remove its frame."
            ) from error
        if self.scale_factor != 1.0:
            size = (int(decoded.width * self.scale_factor), int(decoded.height * self.scale_factor))
            decoded = decoded.resize(size, resample=Image.Resampling.BOX)
        return np.array(decoded, dtype=np.uint8)


def _to_rgb_or_rgba(image: Image.Image, has_alpha: bool) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(np.round(wide / 257.0).clip(0, 255).astype(np.uint8))
    has_alpha = has_alpha or "A" in image.getbands() or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


@dataclass
class ZipNerfDataManagerConfig(VanillaDataManagerConfig):
    """Settings of the datamanager."""

    _target: Type = field(default_factory=lambda: ZipNerfDataManager)
    """Datamanager class."""
    images_on_gpu: bool = True
    """Keep the training pixels (8 bits a channel) on the GPU; turn off if they do not fit."""
    ray_implementation: Literal["auto", "triton", "torch"] = "auto"
    """What draws pixels and generates their rays: triton (CUDA), torch (anywhere), auto (the faster that runs here)."""
    scale_weighting: Literal["even", "area"] = "even"
    """Weights of the loss for data with several scales: even (every pixel the same) or area (every scale the same)."""


class ZipNerfDataManager(VanillaDataManager[CheckedDataset]):
    """Vanilla datamanager with four differences.

    Input is checked before anything long begins. Images keep their alpha: the dataparser's ``alpha_color`` becomes
    the background of evaluation instead of being painted in, since a model trained with random backgrounds on
    images with a painted one learns a wall of that colour. Training pixels of images of any sizes are drawn
    uniformly from one flat store on the device. And drawing them and generating their rays is one kernel where that
    can run.
    """

    config: ZipNerfDataManagerConfig

    def __init__(self, config: ZipNerfDataManagerConfig, *args, **kwargs) -> None:
        test_mode = kwargs.get("test_mode", args[1] if len(args) > 1 else "val")
        self._is_inference = test_mode == "inference"
        self._alpha_color = getattr(config.dataparser, "alpha_color", None)
        if self._alpha_color is not None:
            # On a copy: a configuration may be used, or written down, again.
            config = dataclasses.replace(config, dataparser=dataclasses.replace(config.dataparser, alpha_color=None))
        if not self._is_inference:
            _check_before_parsing(config)
        self.pixels: Optional[PixelStore] = None
        self.image_weights: Optional[Tensor] = None
        super().__init__(config, *args, **kwargs)

    def create_train_dataset(self) -> CheckedDataset:
        """The training images, checked, with the scene's hints in their metadata."""
        outputs = self.train_dataparser_outputs
        has_alpha = False
        if not self._is_inference:
            check_train_split(len(outputs.image_filenames), self.config.dataparser.data)
            has_alpha = _check_outputs(outputs)
        cameras = outputs.cameras
        background = self._alpha_color or ("white" if has_alpha else "black")
        outputs.metadata[SCENE_HINTS] = SceneHints(
            bounded=isinstance(source_config(self.config.dataparser), BlenderDataParserConfig),
            background="white" if background == "white" else "black",
            longest_side=int(max(cameras.width.max(), cameras.height.max())),
        )
        dataset = super().create_train_dataset()
        dataset.has_alpha = has_alpha
        return dataset

    def create_eval_dataset(self) -> CheckedDataset:
        """The held-out images, checked."""
        dataset = super().create_eval_dataset()
        if not self._is_inference and len(dataset) > 0:
            dataset.has_alpha = _check_outputs(dataset._dataparser_outputs)
        return dataset

    def setup_train(self) -> None:
        """Loads all training pixels into the flat store; special camera models use Nerfstudio's own samplers."""
        cameras = self.train_dataset.cameras
        self.image_weights = self._find_image_weights()
        special = (cameras.camera_type == CameraType.EQUIRECTANGULAR.value).any()
        special = special or "fisheye_crop_radius" in (cameras.metadata or {})
        if special or self.config.patch_size > 1 or self.config.train_num_images_to_sample_from != -1:
            super().setup_train()
            return
        self.pixels = PixelStore.load(self.train_dataset, self.device if self.config.images_on_gpu else "cpu")
        self.train_pixel_sampler = self._get_pixel_sampler(self.train_dataset, self.config.train_num_rays_per_batch)
        self.train_ray_generator = self._make_rays(cameras)

    def setup_eval(self) -> None:
        """Nerfstudio's set-up with our generator of rays."""
        super().setup_eval()
        self.eval_ray_generator = self._make_rays(self.eval_dataset.cameras)

    def _make_rays(self, cameras: Cameras) -> PixelRays:
        try:
            return PixelRays(cameras, self.device, self.config.ray_implementation)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"--pipeline.datamanager.ray-implementation: {error}") from error

    @property
    def is_capturable(self) -> bool:
        """Whether :meth:`next_train` can be part of a CUDA graph."""
        return self.pixels is not None and self.train_ray_generator.is_one_launch(self.pixels)

    def next_train(self, step: int) -> Tuple[RayBundle, Dict]:
        """A batch of training rays and their pixels: ``image`` [rays, 3 or 4] in [0, 1], ``indices`` [rays, 3], and
        where pixels weigh differently ``loss_weight`` [rays, 1], of mean 1 over all pixels, for the colour loss."""
        if self.pixels is None:
            bundle, batch = super().next_train(step)
        else:
            self.train_count += 1
            bundle, batch = self.train_ray_generator.sample(self.pixels, self.get_train_rays_per_batch())
        if self.image_weights is not None:
            images = batch["indices"][:, 0].to(self.image_weights.device)
            batch["loss_weight"] = self.image_weights[images][:, None]
        return bundle, batch

    def _find_image_weights(self) -> Optional[Tensor]:
        """What a pixel of each training image weighs; None where all weigh the same."""
        if self.config.scale_weighting == "even":
            return None
        dataset, cameras = self.train_dataset, self.train_dataset.cameras
        scales = find_scales(dataset.image_filenames, dataset.metadata, self.config.dataparser.data)
        if scales is None:
            return None
        num_pixels = (cameras.width * cameras.height).reshape(-1).tolist()
        return area_weights(scales, num_pixels).to(self.device)


def _check_before_parsing(config: ZipNerfDataManagerConfig) -> None:
    """Nerfstudio's parsers mix all poses when they recentre: only the files themselves say which frame is wrong."""
    if config.train_num_rays_per_batch < 1:
        raise InputError(f"train_num_rays_per_batch is {config.train_num_rays_per_batch}: it must be at least 1.")
    parser = config.dataparser
    data = Path(config.data if config.data is not None else parser.data)
    if not data.exists():
        raise InputError(f"{data} does not exist. Check --data.")
    parser = source_config(dataclasses.replace(parser, data=data))
    if isinstance(parser, NerfstudioDataParserConfig):
        check_transforms(data if data.suffix == ".json" else data / "transforms.json")
    elif isinstance(parser, BlenderDataParserConfig):
        for split in ("train", "val", "test"):
            if split == "train" or (data / f"transforms_{split}.json").exists():
                check_transforms(data / f"transforms_{split}.json", is_blender=True)


def _check_outputs(outputs) -> bool:
    cameras = outputs.cameras
    check_cameras(cameras.camera_to_worlds, cameras.fx, cameras.fy, outputs.image_filenames)
    sizes = list(zip(cameras.width.reshape(-1).tolist(), cameras.height.reshape(-1).tolist(), strict=True))
    return check_images(outputs.image_filenames, sizes)
