"""Nerfstudio's pipeline whose evaluation also says how each scale does, and what each image got."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE, get_progress

from zipnerf_ns.checks import InputError
from zipnerf_ns.messages import quiet_dependencies
from zipnerf_ns.scales import find_scales, mean_metrics, means_by_scale

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

    _target: Type = field(default_factory=lambda: ZipNerfPipeline)
    """Pipeline class."""


class ZipNerfPipeline(VanillaPipeline):
    """Pipeline that adds ``psnr_scale_2`` and its like to the averages of data with several scales."""

    config: ZipNerfPipelineConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Here, for every program makes a pipeline.
        quiet_dependencies()
        super().__init__(*args, **kwargs)

    def get_average_eval_image_metrics(
        self, step: Optional[int] = None, output_path: Optional[Path] = None, get_std: bool = False
    ) -> Dict[str, float]:
        """Mean metrics over all held-out images, then over those of each scale where there are several.

        Args:
            step: of the training.
            output_path: folder for pictures and every image's own metrics.
            get_std: also give standard deviations.
        Raises:
            InputError: if no image is held out.
        """
        if len(self.datamanager.eval_dataset) == 0:
            raise InputError(NONE_HELD_OUT)
        self.eval()
        per_image: List[Dict[str, float]] = []
        if output_path is not None:
            output_path.mkdir(exist_ok=True, parents=True)
        views = self.datamanager.fixed_indices_eval_dataloader
        with get_progress("Evaluating all images") as progress:
            for index, (camera, batch) in enumerate(progress.track(views, total=len(views))):
                start = perf_counter()
                outputs = self.model.get_outputs_for_camera(camera=camera)
                metrics, pictures = self.model.get_image_metrics_and_images(outputs, batch)
                if output_path is not None:
                    for name, picture in pictures.items():
                        _save_picture(picture, output_path / f"eval_{name}_{index:04d}.png")
                frames = 1.0 / (perf_counter() - start)
                num_rays = int(camera.height) * int(camera.width)
                per_image.append({**metrics, "num_rays_per_sec": frames * num_rays, "fps": frames})
        dataset = self.datamanager.eval_dataset
        scales = find_scales(dataset.image_filenames, dataset.metadata, Path(self.datamanager.get_datapath()))
        if output_path is not None:
            _write_per_image(output_path / PER_IMAGE, dataset.image_filenames, scales, per_image)
        self.train()
        return _averages(per_image, scales, get_std)


def _save_picture(picture: Tensor, path: Path) -> None:
    pixels = (picture.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy()
    Image.fromarray(np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels).save(path)


def _averages(per_image: List[Dict[str, float]], scales: Optional[Tuple[int, ...]], get_std: bool) -> Dict[str, float]:
    averages = mean_metrics(per_image)
    if get_std:
        for name in list(averages):
            values = torch.tensor([metrics[name] for metrics in per_image if name in metrics])
            averages[f"{name}_std"] = float(values.std()) if len(values) > 1 else 0.0
    for scale, means in means_by_scale(per_image, scales).items():
        averages.update({f"{name}_scale_{scale}": value for name, value in means.items()})
    return averages


def _write_per_image(
    path: Path, images: Sequence[Path], scales: Optional[Tuple[int, ...]], per_image: List[Dict[str, float]]
) -> None:
    rows = [
        {"image": str(image), **({} if scales is None else {"scale": scales[index]}), **metrics}
        for index, (image, metrics) in enumerate(zip(images, per_image, strict=True))
    ]
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    CONSOLE.log(f"Each image's metrics: {path}")
