"""Zip-NeRF as a Nerfstudio model: wires the parts together and sums the losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nerfstudio.cameras.camera_optimizers import CameraOptimizer
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model

from zipnerf_ns import losses
from zipnerf_ns.cameras import corrections as camera_poses
from zipnerf_ns.cameras.fineness import Photos, beside_photos, square_for
from zipnerf_ns.cameras.lens import LensCorrections
from zipnerf_ns.cameras.moments import at_moment, stopped_time
from zipnerf_ns.cameras.rays import ImageRays, rays_of_bundle
from zipnerf_ns.data.metadata import SceneHints, find_hints
from zipnerf_ns.field import ZipNerfField
from zipnerf_ns.model_config import (
    FORMAT_VERSION,
    TOLD_ALL,
    ZipNerfModelConfig,
    adapt_resolutions,
    check_config,
    check_state_dict,
    check_table_memory,
    explain_implementation,
    named_grids,
    prefilters_of,
)
from zipnerf_ns.render.chunks import ChunkLimit, evaluating, render_in_chunks
from zipnerf_ns.render.metrics import ImageMetrics, psnr
from zipnerf_ns.render.monitor import CollisionMonitor, feature_sizes
from zipnerf_ns.render.outputs import EXTRA_COST, EXTRA_OUTPUTS, Outputs, Seen
from zipnerf_ns.render.pictures import area_mean, blend, depths_of_nothing, evaluation_pictures, straight_alpha
from zipnerf_ns.render.viewer import UNCHANGED, Asked, View, ViewerControls
from zipnerf_ns.zipnerf import ZipNerf


class ZipNerfModel(Model):
    """Zip-NeRF (Barron et al., ICCV 2023)."""

    config: ZipNerfModelConfig

    def populate_modules(self) -> None:
        """Builds fields, sampler and metrics.

        Raises:
            InputError: if the tables do not fit into memory, a grid cannot be built, or the implementation of the
                encoding is unknown or absent.
        """
        super().populate_modules()
        config = self.config
        # Again: a config.yml that was edited by hand has not been through __post_init__.
        check_config(config)
        hints = find_hints(self.kwargs.get("metadata"))
        motion = config.motion.settled(*((None, None) if hints is None else (hints.cameras_at_once, hints.time_step)))
        self.config = config = dataclasses.replace(config, motion=motion)
        device = torch.device(self.kwargs.get("device", "cpu"))
        explain_implementation(config, device)
        is_bounded = config.scene_bounds == "box" or (
            config.scene_bounds == "auto" and hints is not None and hints.bounded
        )
        if config.scene_adapted_resolution and hints is not None:
            config = adapt_resolutions(config, hints.longest_side)
        check_table_memory(config, device)
        bandwidth = 1.0
        if config.ipe_bandwidth == "scene_scale":
            bandwidth = 0.5 / float((self.scene_box.aabb[1] - self.scene_box.aabb[0]).mean())
        num_photos = self.num_train_data if config.use_appearance else 0
        # Where it will be: initial values of 70 million entries take a CPU half a second.
        with device:
            self.zipnerf = ZipNerf(config, self.scene_box.aabb.clone() if is_bounded else None, num_photos, bandwidth)
        self.register_buffer("format_version", torch.tensor(FORMAT_VERSION))
        self.register_buffer("background", torch.full((3,), float(self._is_background_white(hints))))
        if config.camera_optimizer.mode != "off":
            self.camera_optimizer = config.camera_optimizer.setup(num_cameras=self.num_train_data, device="cpu")
        self.lens = LensCorrections(self.num_train_data) if config.optimize_lens else None
        self.view = ViewerControls(len(self.field.encoding.grid.levels), num_photos, prefilters_of(config))
        self.metrics = ImageMetrics(config.lpips_weights)
        self.monitor = CollisionMonitor(config.collision_check_steps)
        self.chunk_limit = ChunkLimit()
        # What renders a picture together with other processes, from what is asked and its number of rays.
        self.shared: Callable[[Asked, int], dict[str, Tensor]] | None = None
        self.has_time = config.motion.kind != "none"
        self.shutter = (hints and hints.time_step) or 0.0
        self.stopped_time = stopped_time() if self.has_time else None
        self.photos: Photos | None = None  # As the pipeline knows them.

    def _is_background_white(self, hints: SceneHints | None) -> bool:
        if self.config.background_color == "auto":
            return hints is not None and hints.background == "white"
        return self.config.background_color == "white"

    @property
    def field(self) -> ZipNerfField:
        """The field of the rendered round."""
        return self.zipnerf.field

    @property
    def corrections(self) -> CameraOptimizer | None:
        """Corrections of the training cameras' poses; None where they are not optimized.

        The attribute is then absent: a model that has it makes Nerfstudio's viewer move every camera again and again.
        """
        return getattr(self, "camera_optimizer", None)

    @property
    def uses_kernels(self) -> bool:
        """Whether Triton's kernels run the hot path where the model is now."""
        return self.zipnerf.ops.name == "triton"

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Hash tables, networks and, where learned, appearance, cameras and lenses: each has its own learning rate."""
        tables, networks = self.zipnerf.parameter_groups()
        groups = {"hash_tables": tables, "networks": networks}
        others = {"appearance": self.zipnerf.appearance, "camera_opt": self.corrections, "lens": self.lens}
        groups |= {name: list(part.parameters()) for name, part in others.items() if part is not None}
        return groups

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Keeps the share of the training that is done, from which all schedules follow."""
        trainer = training_callback_attributes.trainer
        total = trainer.config.max_num_iterations if trainer is not None else 1

        def set_progress(step: int) -> None:
            self.zipnerf.set_progress(min(step / max(total, 1), 1.0))
            self.monitor.step = step
            if self.lens is not None:
                self.lens.is_learned = self.lens.learns_at(self.zipnerf.progress)

        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], set_progress)]

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Colors, opacity and distances along unit directions, ``[rays, channels]``.

        In training the rounds that the losses need instead of distances, and colors without the background, which
        :meth:`_with_background` adds: only a ray's own last color, where nothing random is behind it, is in already.
        """
        return self._render(ray_bundle, UNCHANGED if self.training else self.view.read())

    def _render(self, rays: RayBundle, view: View, side: int = 1, widening: float = 1.0) -> dict[str, Any]:
        """:meth:`get_outputs` with the viewer's differences; see :class:`Asked` for the others."""
        config = self.config
        if self.training:
            rays = camera_poses.corrected_bundle(rays, self.corrections, self.lens)
        rays = rays_of_bundle(rays, config.near_plane, config.far_plane, self.zipnerf.aabb, self.shutter)
        if self.has_time and not self.training:
            rays = at_moment(rays, self.stopped_time)
        if view.cone_scale != 1.0:
            rays = rays._replace(radius=rays.radius * view.cone_scale)
        looks = {"prefilter": view.prefilter, "finest_level": view.num_active, "widening": widening}
        rendering = self.zipnerf(rays, photo=view.photo, side=side, **looks)
        rgb, accumulation, rounds, radiance = rendering
        if not self.training:
            rgb = self._over_background(rgb, accumulation, radiance.colors, view)
            outputs = Outputs(rgb=rgb, accumulation=accumulation, **self.zipnerf.distances(rounds))
            seen = Seen(self.zipnerf, rays, rendering, looks)
            for name, compute in EXTRA_OUTPUTS.items():
                outputs.defer(name, lambda compute=compute: compute(seen))
            return outputs
        if config.background_color == "last_sample" and not config.random_background:
            rgb = torch.addcmul(rgb, 1.0 - accumulation, radiance.colors[:, -1].to(rgb.dtype))
        self.monitor.observe(self.field, rays, rounds[-1].tdist, config.grid)
        return {"rgb": rgb, "accumulation": accumulation, "rendering": rendering}

    def _over_background(self, rgb: Tensor, accumulation: Tensor, colors: Tensor, view: View) -> Tensor:
        """Rendered colors over the background of evaluation, the viewer's, or Nerfstudio's override."""
        background = self.background
        if renderers.BACKGROUND_COLOR_OVERRIDE is not None:
            background = renderers.BACKGROUND_COLOR_OVERRIDE.to(rgb.device)
        elif view.background is not None:
            background = self.background.new_tensor(view.background)
        elif self.config.background_color == "last_sample":
            background = colors[:, -1].float()
        return (rgb + background * (1.0 - accumulation)).clamp(0.0, 1.0)

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR of the batch, distortion and the latest collision shares."""
        prediction, target = self._with_background(outputs, batch)
        metrics = {"psnr": psnr(prediction.detach(), target)}
        if self.training:
            metrics.update(self.monitor.shares)
            metrics.update(camera_poses.correction_metrics(self.corrections))
        return metrics

    def feature_sizes(self) -> dict[str, float]:
        """Root mean square of the features of each hash level, by ``GRID/level_INDEX``; waits for the device."""
        return feature_sizes(dict(zip(named_grids(self.config), self.zipnerf.tables(), strict=True)))

    def _with_background(self, outputs: dict[str, Any], batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Rendered and true colors over the same background, drawn at random in training.

        Both are kept in ``outputs``, so that metrics and losses see the same draw.
        """
        if "target" in outputs:
            return outputs["composited"], outputs["target"]
        image = batch["image"].to(outputs["rgb"].device)
        prediction = outputs["rgb"]
        background = self._truth_background(prediction.device)
        if self.training:
            if self.config.random_background:
                background = torch.rand_like(prediction)
            prediction = torch.addcmul(prediction + background, background, outputs["accumulation"], value=-1.0)
        target = blend(image, background)
        outputs["composited"], outputs["target"] = prediction, target
        return prediction, target

    def get_loss_dict(
        self,
        outputs: dict[str, Any],
        batch: dict[str, Any],
        metrics_dict: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Every loss, scaled; at evaluation only the color's."""
        prediction, target = self._with_background(outputs, batch)
        ray_weights = None
        if self.training and "loss_weight" in batch:
            ray_weights = batch["loss_weight"].to(prediction.device)[:, 0]
        if not self.training:
            return {"rgb_loss": losses.color_loss(self.config.rgb_loss, prediction, target)}
        loss_dict = self.zipnerf.losses(outputs["rendering"], prediction, target, ray_weights)
        if self.corrections is not None:
            self.corrections.get_loss_dict(loss_dict)
        return loss_dict

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and (where their weights are there) LPIPS of a whole picture, and pictures to look at.

        What the batch's mask ignores does not count: see :class:`~zipnerf_ns.render.metrics.ImageMetrics`.
        """
        device = outputs["rgb"].device
        truth = blend(batch["image"].to(device), self._truth_background(device))
        mask = batch["mask"].to(device) if "mask" in batch else None
        return self.metrics(outputs["rgb"].clamp(0.0, 1.0), truth, mask), evaluation_pictures(outputs, truth, mask)

    def _truth_background(self, device: torch.device) -> Tensor:
        """What the truth's transparent parts are put over at evaluation; black under "last_sample"."""
        black = self.config.background_color == "last_sample"
        return (torch.zeros_like(self.background) if black else self.background).to(device)

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Straight-alpha RGBA: the background taken out again, the opacity as alpha."""
        alpha = outputs[output_name.replace("rgb", "accumulation")]
        background = self.background.to(alpha.device)
        if renderers.BACKGROUND_COLOR_OVERRIDE is not None:
            background = renderers.BACKGROUND_COLOR_OVERRIDE.to(alpha.device)
        elif self.config.background_color == "last_sample":
            # Each ray continues in its own last color, so what is rendered already is the color without background.
            return torch.cat([outputs[output_name], alpha], dim=-1)
        return straight_alpha(outputs[output_name], alpha, background)

    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """A whole picture ``[height, width, channels]``, its rays generated chunk by chunk."""
        asked = self.asked(camera, obb_box)
        rays = ImageRays(asked.source, self.device, obb_box, self.config.implementation, asked.side)
        return self._picture(asked, len(rays), lambda output: area_mean(rays.picture(output), asked.times))

    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> dict[str, Tensor]:
        """A whole picture from its rays, in chunks."""
        flat, shape = camera_ray_bundle.flatten(), camera_ray_bundle.origins.shape[:-1]
        return self._picture(Asked(flat), len(flat), lambda output: output.view(*shape, -1))

    def learn_of(self, photos: Cameras) -> None:
        """Keeps how finely and from where training photos were taken: what the networks know, pictures are told of."""
        self.photos = Photos.of(photos)
        cones = self.photos.cones.to(self.device)
        self.zipnerf.photos = cones if len(cones) else None

    def asked(self, camera: Cameras, obb_box: OrientedBox | None = None) -> Asked:
        """A camera's picture. Where its pixels are larger than the photos' it is the mean of a larger one, if that is
        quick and no viewer waits for it; where they are smaller they see by cones as wide as a photo's."""
        enlarges = self.uses_kernels and self.view.read() is UNCHANGED
        camera, times, natural = beside_photos(camera, self.photos, enlarges)
        side = square_for(natural) if self.config.picture_square == "auto" else self.config.picture_square
        return Asked(camera, obb_box, side=side, times=times, widening=max(natural, 1.0))

    @torch.no_grad()
    def render_part(self, asked: Asked, start: int, end: int) -> dict[str, Tensor]:
        """Outputs ``[rays, channels]`` of some of a picture's rays, from the first number up to the second: both whole
        numbers of squares."""

        def render(rays: RayBundle) -> dict[str, Tensor]:
            outputs = self._render(rays, asked.view, asked.side, asked.widening)
            return outputs if asked.names is None else {name: outputs[name] for name in asked.names}

        source, most = asked.source, self.config.eval_num_rays_per_chunk
        if isinstance(source, Cameras):
            bundle = ImageRays(source, self.device, asked.obb_box, self.config.implementation, asked.side).bundle
        else:
            bundle = lambda first, last: source[first:last].to(self.device)  # noqa: E731
        with evaluating(self):
            return render_in_chunks(
                render, self.device, self.uses_kernels, lambda first, last: bundle(start + first, start + last),
                end - start, most if asked.names is None else most // EXTRA_COST, self.chunk_limit, asked.side**2,
            )  # fmt: skip

    def _picture(self, asked: Asked, num_rays: int, shaped: Callable[[Tensor], Tensor]) -> Outputs:
        """A picture of so many rays, with the outputs that cost more deferred, or in the viewer as it asks.

        ``shaped`` makes pictures of what the rays see. The viewer looks outputs up when training has gone on already:
        there none can be left for later.
        """
        view = self.view.read()

        def rendered(names: tuple[str, ...] | None) -> dict[str, Tensor]:
            share = self.shared or (lambda what, count: self.render_part(what, 0, count))
            parts = share(asked._replace(names=names, view=view), num_rays)
            return {name: shaped(output) for name, output in parts.items()}

        outputs = Outputs(depths_of_nothing(rendered(None)))
        if view.extra_outputs:
            outputs.update(rendered(tuple(EXTRA_OUTPUTS)))
        elif view is UNCHANGED:
            for name in EXTRA_OUTPUTS:
                outputs.defer(name, lambda name=name: rendered((name,))[name])
        return outputs

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a checkpoint of exactly this configuration.

        Nerfstudio retries with ``strict=False`` after a RuntimeError and would then render noise without a word.

        Raises:
            InputError: if names, shapes or the format's version differ.
        """
        check_state_dict(state_dict, self.state_dict())
        self.field.can_be_untold &= int(state_dict["format_version"]) != TOLD_ALL
        return super().load_state_dict(state_dict, strict=True, assign=assign)
