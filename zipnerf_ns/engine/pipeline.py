"""Nerfstudio's pipeline whose evaluation finds held-out cameras, and says how each scale and each image does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.comms import get_rank
from nerfstudio.utils.rich_utils import CONSOLE, get_progress

from zipnerf_ns.cameras.held_out import describe, drift, moved_bundle, moved_camera, refine
from zipnerf_ns.cameras.lens import through_lens
from zipnerf_ns.cameras.moments import let_time_run_along_paths, refuse_stopped_time
from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.data.memory import limit_memory
from zipnerf_ns.data.metadata import find_scales, mean_metrics, means_by_scale, per_image_rows
from zipnerf_ns.engine.messages import quiet_dependencies, tell_in_any_program
from zipnerf_ns.engine.parallel.pictures import SharedPictures
from zipnerf_ns.engine.parallel.processes import join_to_look
from zipnerf_ns.errors import InputError
from zipnerf_ns.functional.similarity import Similarity
from zipnerf_ns.render.pictures import save_picture

PER_IMAGE = "per_image.json"
"""Written beside the pictures of an evaluation: every image's metrics."""
NONE_HELD_OUT = (
    "no image is held out, so there is nothing to evaluate on. Nerfstudio's parser holds out one in ten, and none of "
    "nine or fewer: end the command of the training with nerfstudio-data --eval-mode interval --eval-interval 8."
)
"""Said of small captures."""


@dataclass
class ZipNerfPipelineConfig(VanillaPipelineConfig):
    """Settings of the pipeline."""

    _target: type = field(default_factory=lambda: ZipNerfPipeline)
    """Pipeline class."""
    eval_pose_steps: int = 0
    """Gradient steps that fit each held-out pose to its own photo before scoring on it; 0 never looks at the photo."""

    gpu_memory: float | None = None
    """GiB of the GPU's memory that this program may take, for GPUs that are shared; None: all that is free."""

    def __post_init__(self) -> None:
        if self.eval_pose_steps < 0:
            raise InputError(f"eval_pose_steps is {self.eval_pose_steps}: it must not be negative.")
        if self.gpu_memory is not None and not self.gpu_memory > 0.0:
            raise InputError(f"gpu_memory is {self.gpu_memory}: it must be positive, or left out.")


class ZipNerfPipeline(VanillaPipeline):
    """Pipeline that adds ``psnr_scale_2`` and its like to the averages of data with several scales.

    Where cameras are optimized, held-out ones are moved by the similarity by which the training ones have drifted.
    """

    config: ZipNerfPipelineConfig

    def __init__(self, config: ZipNerfPipelineConfig, device: str | torch.device, *args: Any, **kwargs: Any) -> None:
        # Here, for every program makes a pipeline.
        quiet_dependencies()
        tell_in_any_program()
        # A training has joined before.
        self._is_shared = join_to_look()
        limit_memory(torch.device(device), config.gpu_memory)
        config.datamanager.uses_time = config.model.motion.kind != "none"
        if config.datamanager.uses_time:
            let_time_run_along_paths()
            if kwargs.get("test_mode", args[0] if args else "val") == "val":
                refuse_stopped_time("A training")
        # Of several processes Nerfstudio would have torch exchange the gradients, which the trainer does.
        super().__init__(config, device, *args, **{**kwargs, "world_size": 1})
        self.model.learn_of(self.datamanager.train_dataset.cameras)
        if self.model.lens is not None:
            self.model.lens.adopt(self.datamanager.train_dataset.cameras)

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Loads a checkpoint; of several processes that look at a run, all but the first then render for that one.

        Args:
            loaded_state: the checkpoint's part.
            step: of the training.
        """
        super().load_pipeline(loaded_state, step)
        if self._is_shared:
            pictures = SharedPictures(self.model)
            pictures.lead() if get_rank() == 0 else pictures.follow()

    def get_eval_loss_dict(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Outputs, losses and metrics of a batch of held-out pixels.

        Args:
            step: of the training.
        """
        self.eval()
        bundle, batch = self.datamanager.next_eval(step)
        if self.model.lens is not None:
            bundle = self.model.lens.corrected_bundle(bundle, self.datamanager.eval_dataset.cameras)
        outputs = self.model(moved_bundle(bundle, self._drift()))
        metrics = self.model.get_metrics_dict(outputs, batch)
        losses = self.model.get_loss_dict(outputs, batch, metrics)
        self.train()
        return outputs, losses, metrics

    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Metrics and pictures of one held-out view.

        Args:
            step: of the training.
        """
        self.eval()
        camera, batch = self.datamanager.next_eval_image(step)
        similarity = self._drift()
        self._say_what_is_done(similarity)
        camera, moves = self._found_camera(camera, batch, similarity)
        outputs = self.model.get_outputs_for_camera(camera)
        metrics, pictures = self.model.get_image_metrics_and_images(outputs, batch)
        self.train()
        return {**metrics, **moves, "num_rays": int(camera.height) * int(camera.width)}, pictures

    def _drift(self) -> Similarity | None:
        return drift(self.model.corrections, self.datamanager.train_dataset.cameras.camera_to_worlds)

    def _say_what_is_done(self, similarity: Similarity | None) -> None:
        sentence = describe(similarity, self.config.eval_pose_steps)
        if sentence is not None:
            CONSOLE.log(sentence, highlight=False)

    def _found_camera(
        self, camera: Cameras, batch: dict[str, Any], similarity: Similarity | None
    ) -> tuple[Cameras, dict[str, float]]:
        """A held-out camera where it is scored, and how far its own photo has moved it."""
        camera = moved_camera(through_lens(self.model, camera), similarity)
        if self.config.eval_pose_steps == 0:
            return camera, {}
        refined = refine(self.model, camera, batch, self.config.eval_pose_steps)
        return refined.camera, {
            "pose_refined_degrees": refined.degrees, "pose_refined_distance": refined.distance,
        }  # fmt: skip

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """Mean metrics over all held-out images, then over those of each scale where there are several.

        Args:
            step: of the training.
            output_path: folder for pictures and every image's own metrics.
            get_std: also give standard deviations.
        Raises:
            InputError: if no image is held out, time is stopped, or photos of a run that was moved are not there.
        """
        if self.model.has_time:
            refuse_stopped_time("An evaluation")
        dataset = self.datamanager.eval_dataset
        if len(dataset) == 0:
            raise InputError(NONE_HELD_OUT)
        if self.datamanager.lacks_photos(dataset):
            raise InputError(self.datamanager.why_lacking)
        self.eval()
        per_image: list[dict[str, float]] = []
        if output_path is not None:
            output_path.mkdir(exist_ok=True, parents=True)
        views = self.datamanager.fixed_indices_eval_dataloader
        similarity = self._drift()
        self._say_what_is_done(similarity)
        with get_progress("Evaluating all images") as progress:
            for index, (camera, batch) in enumerate(progress.track(views, total=len(views))):
                camera, moves = self._found_camera(camera, batch, similarity)
                start = perf_counter()
                outputs = self.model.get_outputs_for_camera(camera=camera)
                metrics, pictures = self.model.get_image_metrics_and_images(outputs, batch)
                if output_path is not None:
                    for name, picture in pictures.items():
                        save_picture(picture, output_path / f"eval_{name}_{index:04d}.png")
                frames = 1.0 / (perf_counter() - start)
                num_rays = int(camera.height) * int(camera.width)
                per_image.append({**metrics, **moves, "num_rays_per_sec": frames * num_rays, "fps": frames})
        scales = find_scales(dataset.image_filenames, dataset.metadata, Path(self.datamanager.get_datapath()))
        if output_path is not None:
            write_json(output_path / PER_IMAGE, per_image_rows(dataset.image_filenames, scales, per_image))
            CONSOLE.log(f"Each image's metrics: {output_path / PER_IMAGE}")
        self.train()
        return _averages(per_image, scales, get_std)


def _averages(per_image: list[dict[str, float]], scales: tuple[int, ...] | None, get_std: bool) -> dict[str, float]:
    averages = mean_metrics(per_image)
    if get_std:
        for name in list(averages):
            values = torch.tensor([metrics[name] for metrics in per_image if name in metrics])
            averages[f"{name}_std"] = float(values.std()) if len(values) > 1 else 0.0
    for scale, means in means_by_scale(per_image, scales).items():
        averages.update({f"{name}_scale_{scale}": value for name, value in means.items()})
    return averages
