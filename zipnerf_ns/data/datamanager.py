"""Nerfstudio's datamanager with checked input, alpha kept for random backgrounds, and one flat store of pixels."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.cameras.rays import PixelRays
from zipnerf_ns.data.checks import check_counts, check_outputs, check_points_are_found, check_train_split
from zipnerf_ns.data.dataparsers.exact import CenteringColmapConfig, CenteringNerfstudioConfig, exact
from zipnerf_ns.data.dataparsers.formats import format_of, with_reader
from zipnerf_ns.data.dataparsers.multiscale import check_files, settled_source, source_config
from zipnerf_ns.data.dataparsers.run import chosen, parser_of_run
from zipnerf_ns.data.disk.window import PixelsConfig, moving_on, open_pixels
from zipnerf_ns.data.images import CheckedDataset, read_all
from zipnerf_ns.data.metadata import SCENE_HINTS, SceneHints, area_weights, find_scales
from zipnerf_ns.data.moving.times import cameras_at_once, check_times, settle_time_step
from zipnerf_ns.data.pixels import PixelStore, Thumbnails
from zipnerf_ns.data.poses import check_scale
from zipnerf_ns.data.trained import GIVE_DATA, TrainedData
from zipnerf_ns.errors import InputError

PARSERS = {**all_dataparsers, "nerfstudio-data": CenteringNerfstudioConfig(), "colmap": CenteringColmapConfig()}
"""Nerfstudio's parsers by the names of their subcommands; ours that leave the scene's center open in place of its."""
SUBCOMMAND = tyro.conf.arg(constructor=tyro.extras.subcommand_type_from_defaults(PARSERS, prefix_names=False))
AnyParser = Annotated[DataParserConfig, SUBCOMMAND, tyro.conf.OmitSubcommandPrefixes]


@dataclass
class ZipNerfDataManagerConfig(VanillaDataManagerConfig):
    """Settings of the datamanager."""

    _target: type = field(default_factory=lambda: ZipNerfDataManager)
    """Datamanager class."""
    dataparser: AnyParser = field(default_factory=CenteringNerfstudioConfig)
    """Reads the scene."""
    images_on_gpu: bool = True
    """Draw the training pixels (8 bits a channel) on the GPU; False draws them in main memory, which is slower."""
    pixels: PixelsConfig = field(default_factory=PixelsConfig)
    """Where training pixels come from: memory, or a disk."""
    ray_implementation: Literal["auto", "triton", "torch"] = "auto"
    """What draws pixels and generates their rays: triton (CUDA), torch (anywhere), auto (the faster that runs here)."""
    scale_weighting: Literal["even", "area"] = "even"
    """Weights of the loss for data with several scales: even (every pixel the same) or area (every scale the same)."""
    uses_time: tyro.conf.Suppress[bool] = False
    """Whether the model asks when a photo was taken; the pipeline says so."""
    trained: tyro.conf.Suppress[Any] = None
    """What the checkpoint that is loaded knows of its data (TrainedData); None for a new training."""
    beside_pixels: tyro.conf.Suppress[int] = 0
    """Bytes that the rest of the training needs where it runs."""


class ZipNerfDataManager(VanillaDataManager[CheckedDataset]):
    """Vanilla datamanager with five differences.

    Input is checked before anything long begins. Images keep their alpha: the dataparser's ``alpha_color`` becomes
    the background of evaluation instead of being painted in, since a model trained with random backgrounds on
    images with a painted one learns a wall of that color. Pixels of images of any sizes are drawn uniformly from one
    flat store on the device, and drawing them and generating their rays is one kernel where that can run. Masks may
    be any kind of image; what they ignore, and what lies outside a fisheye's circle, is neither drawn nor counted
    by metrics. And held-out images are kept in memory only once batches of their pixels are asked for.
    """

    config: ZipNerfDataManagerConfig

    def __init__(self, config: ZipNerfDataManagerConfig, *args, **kwargs) -> None:
        test_mode = kwargs.get("test_mode", args[1] if len(args) > 1 else "val")
        self._is_inference = test_mode == "inference"
        self._alpha_color = getattr(config.dataparser, "alpha_color", None)
        # On a copy: a configuration may be used, or written down, again.
        config, trained = copy.copy(config), config.trained
        self._trained: TrainedData | None = trained
        parser = config.dataparser if trained is None else settled_source(config.dataparser, trained.center)
        changes = {} if self._alpha_color is None else {"alpha_color": None}
        config.dataparser = dataclasses.replace(exact(with_reader(parser)), **changes)
        self._is_set_up = False
        data = Path(config.data if config.data is not None else config.dataparser.data)
        if not data.exists() and (self._trained is None or self._trained.resumes):
            raise InputError(f"{data} does not exist. {'Check --data.' if test_mode == 'val' else GIVE_DATA}")
        is_read = data.exists() and (not self._is_inference or self._trained is None)
        if is_read and not self._is_inference:
            check_counts(config)
            check_files(dataclasses.replace(config.dataparser, data=data))
        if self._trained is not None:
            parser = parser_of_run(config.dataparser, self._trained, "val" if test_mode == "val" else "test", is_read)
            config = dataclasses.replace(config, dataparser=parser)
        self.pixels: PixelStore | None = None
        self._has_store = False
        self.eval_pixels: PixelStore | None = None
        self.image_weights: Tensor | None = None
        super().__init__(config, *args, **kwargs)
        # The viewer offers a moment to choose where the model knows moments, whatever the data say.
        self.includes_time = self.config.uses_time
        if not self._is_inference and not self._is_set_up:
            # Whoever leaves the set-up out wants each photo, as ns-render dataset does.
            self.train_dataset, self.eval_dataset = map(self._with_photos, (self.train_dataset, self.eval_dataset))

    def lacks_photos(self, dataset: CheckedDataset | None = None) -> bool:
        """Whether a run is looked at whose photos (a dataset's, by default the training's) are not all there."""
        outputs = self.train_dataparser_outputs if dataset is None else dataset._dataparser_outputs
        if self._trained is None or self._trained.resumes:
            return False
        return not all(Path(filename).is_file() for filename in outputs.image_filenames)

    def _with_photos(self, dataset: CheckedDataset) -> CheckedDataset:
        """The images of a dataset whose photos are there."""
        if not self.lacks_photos(dataset):
            return dataset
        outputs = dataset._dataparser_outputs
        there = [index for index, name in enumerate(outputs.image_filenames) if Path(name).is_file()]
        if not there:
            raise InputError(self.why_lacking)
        CONSOLE.log(f"{len(dataset) - len(there)} of {len(dataset)} photos are not there, and left out.")
        left = type(dataset)(chosen(outputs, there), dataset.scale_factor)
        return self._prepared(left, check_outputs(left._dataparser_outputs, self.config.dataparser.data))

    @property
    def why_lacking(self) -> str:
        """What to do where photos are needed that are not there."""
        return f"this needs the photos of {self.config.dataparser.data}, which are not there. {GIVE_DATA}"

    def get_datapath(self) -> Path:
        """Where the viewer keeps camera paths: with the data; where there are none any more, in the current folder."""
        data = Path(self.config.dataparser.data)
        return data if data.exists() else Path.cwd()

    def describe(self) -> TrainedData:
        """What a checkpoint should know of the data: for a run that goes on, what it knew."""
        data = Path(self.config.dataparser.data)
        if self._trained is not None:
            return dataclasses.replace(self._trained, data=data.absolute())
        held_out = self.eval_dataset._dataparser_outputs
        return TrainedData.of(data, self.train_dataparser_outputs, held_out, self.train_dataset.metadata[SCENE_HINTS])

    def create_train_dataset(self) -> CheckedDataset:
        """The training images, checked, with the scene's hints in their metadata."""
        outputs = self.train_dataparser_outputs
        has_alpha = False
        if not self._is_inference and not self.lacks_photos():
            check_train_split(len(outputs.image_filenames), self.config.dataparser.data)
            has_alpha = check_outputs(outputs, self.config.dataparser.data)
        if self._trained is not None:
            outputs.metadata[SCENE_HINTS] = self._trained.hints
            return self._prepared(super().create_train_dataset(), has_alpha)
        cameras, scene_format = self._training_cameras(), format_of(source_config(self.config.dataparser))
        background = self._alpha_color or ("white" if has_alpha else "black")
        outputs.metadata[SCENE_HINTS] = SceneHints(
            bounded=scene_format is not None and scene_format.is_bounded,
            background="white" if background == "white" else "black",
            longest_side=int(max(cameras.width.max(), cameras.height.max())),
            time_step=settle_time_step(outputs, self.config.dataparser.data, self.config.uses_time),
            cameras_at_once=cameras_at_once(outputs.cameras),
        )
        if not self._is_inference:
            space = float(outputs.scene_box.aabb[1].max()) if outputs.metadata[SCENE_HINTS].bounded else 1.0
            check_scale(cameras.camera_to_worlds[:, :, 3].double().numpy(), space, self.config.dataparser.data)
        return self._prepared(super().create_train_dataset(), has_alpha)

    def _training_cameras(self) -> Cameras:
        """The cameras of the training, in its images' size.

        For inference Nerfstudio has its parser of transforms give the full size, and open no image.
        """
        cameras = self.train_dataparser_outputs.cameras
        config = dataclasses.replace(self.config.dataparser, data=self.dataparser.config.data)
        source = source_config(config)
        if not self._is_inference or not isinstance(source, NerfstudioDataParserConfig):
            return cameras
        factor = source.downscale_factor
        if factor is None:
            parser = source.setup()
            # Where no image tells its size it is the full one, as most have it.
            parser.get_dataparser_outputs("train")
            factor = parser.downscale_factor
        if factor == 1:
            return cameras
        parser = config.setup()
        # Known, so no image is opened, nor a reduced one written.
        parser.downscale_factor = factor
        return parser.get_dataparser_outputs("train").cameras

    def create_eval_dataset(self) -> CheckedDataset:
        """The held-out images, checked."""
        dataset = super().create_eval_dataset()
        if self.config.uses_time and len(dataset) > 0:
            check_times(dataset._dataparser_outputs, self.config.dataparser.data)
        if self._is_inference or self.lacks_photos(dataset):
            return self._prepared(dataset, False)
        if len(dataset) == 0:
            CONSOLE.log("No image is held out: PSNR is measured on what is trained on alone.")
            return self._prepared(dataset, False)
        return self._prepared(dataset, check_outputs(dataset._dataparser_outputs, self.config.dataparser.data))

    def _prepared(self, dataset: CheckedDataset, has_alpha: bool) -> CheckedDataset:
        """The dataset, told what it cannot know by itself."""
        least = min((side for size in dataset.sizes for side in size), default=self.config.patch_size)
        if least < self.config.patch_size:
            raise InputError(
                f"an image is {least} pixels high or wide at camera_res_scale_factor "
                f"{self.config.camera_res_scale_factor}, fewer than patch_size {self.config.patch_size}. Change either."
            )
        dataset.has_alpha = has_alpha
        dataset.ignore_masks = self.config.pixel_sampler.ignore_mask
        radius = (dataset.cameras.metadata or {}).get("fisheye_crop_radius")
        if radius is not None:
            # It is given in pixels of the full size, which Nerfstudio forgets where it reads reduced images.
            reduction = getattr(self.dataparser, "downscale_factor", None) or 1
            dataset.crop_radius = float(radius) * self.config.camera_res_scale_factor / reduction
        return dataset

    def setup_train(self) -> None:
        """Loads all training pixels into the flat store; what that cannot draw is left to Nerfstudio's samplers.

        Programs that do not train read none before they ask for one.
        """
        self._is_set_up = True
        dataset, cameras = self.train_dataset, self.train_dataset.cameras
        if self.lacks_photos():
            CONSOLE.log(f"Photos of {self.config.dataparser.data} are not there: cameras are the checkpoint's.")
            dataset.has_stand_ins = self.eval_dataset.has_stand_ins = True
            self.pixels = PixelStore.without_photos(cameras.width, cameras.height)
            self.train_pixel_sampler = self._get_pixel_sampler(dataset, self.config.train_num_rays_per_batch)
            self.train_ray_generator = self._make_rays(cameras)
            return
        self.image_weights = self._find_image_weights()
        is_equirectangular = (cameras.camera_type == CameraType.EQUIRECTANGULAR.value).any()
        # Nerfstudio draws panoramas evenly over the sphere, but with masks evenly over pixels, as the store does.
        on_sphere = is_equirectangular and dataset._dataparser_outputs.mask_filenames is None
        if on_sphere or self.config.patch_size > 1 or self.config.train_num_images_to_sample_from != -1:
            super().setup_train()
            return
        self._has_store = True
        if self.test_mode == "val":
            self.hold_pixels()
        self.train_pixel_sampler = self._get_pixel_sampler(dataset, self.config.train_num_rays_per_batch)
        self.train_ray_generator = self._make_rays(cameras)

    def setup_eval(self) -> None:
        """Nerfstudio's loaders of whole images, and our generator of rays.

        Only where few of the held-out images at a time are asked for, batches of pixels are Nerfstudio's, too.

        Raises:
            InputError: if a held-out image of a training, or its mask, cannot be decoded: not in the middle of it.
        """
        dataset = self.eval_dataset
        if self.test_mode == "val":
            for _ in read_all(dataset, f"Checking {len(dataset)} held-out images"):
                pass
        if self.config.eval_num_images_to_sample_from != -1:
            super().setup_eval()
        else:
            workers = self.world_size * 4
            self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(
                input_dataset=dataset, device=self.device, num_workers=workers
            )
            self.eval_dataloader = RandIndicesEvalDataloader(
                input_dataset=dataset, device=self.device, num_workers=workers
            )
            self.eval_pixel_sampler = self._get_pixel_sampler(dataset, self.config.eval_num_rays_per_batch)
        self.eval_ray_generator = self._make_rays(dataset.cameras)

    def hold_pixels(self) -> None:
        """Loads the training pixels to where a training wants them, if they are not there.

        A trainer asks for it, for it may measure on views of the test split, as programs do that train nothing.
        """
        if self._has_store and self.pixels is None:
            self.pixels = self._load_pixels(self.train_dataset, is_trained_on=True)
            CONSOLE.log(f"Training on {len(self.train_dataset)} images: {self.pixels.describe()}.", highlight=False)

    def _load_pixels(self, dataset: CheckedDataset, is_trained_on: bool = False) -> PixelStore:
        # Of other programs only exports draw from it, and look at the rays alone.
        on_gpu = self.config.images_on_gpu and (is_trained_on or self.test_mode == "val")
        device, data = self.device if on_gpu else "cpu", Path(self.config.dataparser.data)
        beside = self.config.beside_pixels if on_gpu and is_trained_on else 0
        return open_pixels(dataset, device, self.config.pixels, data, beside, self.local_rank == 0)

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Nerfstudio's, and where pixels come from a disk what replaces those that are drawn from."""
        moving = moving_on(lambda: self.pixels, self.get_train_rays_per_batch(), self.config.pixels.keep)
        return [*super().get_training_callbacks(attributes), *moving]

    def _make_rays(self, cameras: Cameras) -> PixelRays:
        try:
            return PixelRays(cameras, self.device, self.config.ray_implementation)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"--pipeline.datamanager.ray-implementation: {error}") from error

    @property
    def is_capturable(self) -> bool:
        """Whether :meth:`next_train` can be part of a CUDA graph."""
        return self.pixels is not None and self.train_ray_generator.is_one_launch(self.pixels)

    def viewed_dataset(self) -> CheckedDataset | Thumbnails:
        """The training images as a viewer wants them: small, and without decoding them again where they are kept."""
        return self.train_dataset if self.pixels is None else Thumbnails(self.train_dataset, self.pixels)

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """A batch of training rays and their pixels: ``image`` [rays, 3 or 4] in [0, 1], ``indices`` [rays, 3], and
        where pixels weigh differently ``loss_weight`` [rays, 1], of mean 1 over all pixels, for the color loss."""
        if self._has_store and self.pixels is None:
            self.pixels = self._load_pixels(self.train_dataset)
        if self.test_mode != "val":
            check_points_are_found(self.get_train_rays_per_batch())
        if self.pixels is None:
            bundle, batch = super().next_train(step)
        else:
            self.train_count += 1
            bundle, batch = self.train_ray_generator.sample(self.pixels, self.get_train_rays_per_batch())
        if self.image_weights is not None:
            images = batch["indices"][:, 0].to(self.image_weights.device)
            batch["loss_weight"] = self.image_weights[images][:, None]
        return bundle, batch

    def next_eval(self, step: int) -> tuple[RayBundle, dict]:
        """A batch of held-out rays and their pixels, drawn uniformly from all the masks leave: read when asked for."""
        if self.config.eval_num_images_to_sample_from != -1:
            return super().next_eval(step)
        if self.eval_pixels is None:
            self.eval_pixels = self._load_pixels(self.eval_dataset)
        self.eval_count += 1
        return self.eval_ray_generator.sample(self.eval_pixels, self.get_eval_rays_per_batch())

    def _find_image_weights(self) -> Tensor | None:
        """What a pixel of each training image weighs; None where all weigh the same."""
        if self.config.scale_weighting == "even":
            return None
        dataset, cameras = self.train_dataset, self.train_dataset.cameras
        scales = find_scales(dataset.image_filenames, dataset.metadata, self.config.dataparser.data)
        if scales is None:
            return None
        num_pixels = (cameras.width * cameras.height).reshape(-1).tolist()
        return area_weights(scales, num_pixels).to(self.device)
