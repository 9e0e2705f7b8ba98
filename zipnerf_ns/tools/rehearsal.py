"""A method's training step, evaluation and views with a handful of rays and no data: what they launch is what counts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.types import MethodSpecification

from zipnerf_ns import config as registry
from zipnerf_ns.cameras.rays import ImageRays, PixelRays
from zipnerf_ns.data.pixels import PixelStore
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig
from zipnerf_ns.functional.hash_grid import Prefilter
from zipnerf_ns.functional.mlp import Precision
from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.model_config import ZipNerfModelConfig
from zipnerf_ns.render.outputs import EXTRA_OUTPUTS
from zipnerf_ns.render.points import query_density, query_points
from zipnerf_ns.render.viewer import View

RAYS, SIDE = 64, 16
PHOTOS = 2
FEATURES = (1, 2, 4, 8)
AS_CONFIGURED = "as configured"
METHODS: dict[str, ZipNerfTrainerConfig] = {
    method.config.method_name: method.config
    for method in vars(registry).values()
    if isinstance(method, MethodSpecification)
}
"""As ns-train lists them."""


def variation_names(method: str) -> list[str]:
    """What can be changed of a method."""
    return list(variations(METHODS[method].pipeline.model))


def variations(config: ZipNerfModelConfig) -> dict[str, dict[str, Any]]:
    """Fields of a model whose change changes a kernel, by what the change is called."""
    features = {f"{count} features": _with_features(config, count) for count in FEATURES}
    return {
        AS_CONFIGURED: {},
        **{f"prefilter {mode}": {"prefilter": mode} for mode in get_args(Prefilter)},
        **{f"precision {kind}": {"precision": kind} for kind in get_args(Precision)},
        **{f"cameras {mode}": {"camera_optimizer": CameraOptimizerConfig(mode=mode)} for mode in ("SO3xR3", "SE3")},
        **features,
        "appearance": {"use_appearance": True},
        "scene box": {"scene_bounds": "box"},
        "progressive levels": {"progressive_levels": True},
        **{f"color layers {count}": {"color_layers": count} for count in (2, 4)},
        **{f"color width {width}": {"color_dim": width} for width in (64, 128, 256)},
        **{f"hidden width {width}": {"hidden_dim": width} for width in (32, 64)},
    }


def _with_features(config: ZipNerfModelConfig, count: int) -> dict[str, Any]:
    def changed(grid: HashGridConfig) -> HashGridConfig:
        return dataclasses.replace(grid, features_per_level=count)

    proposals = tuple(dataclasses.replace(each, grid=changed(each.grid)) for each in config.proposals)
    return {"grid": changed(config.grid), "proposals": proposals}


def trainer_config(method: str, changes: dict[str, Any]) -> ZipNerfTrainerConfig:
    config = copy.deepcopy(METHODS[method])
    config.pipeline.model = dataclasses.replace(config.pipeline.model, implementation="triton", **changes)
    return config


def rehearse(method: str, variation: str) -> None:
    """Everything that launches kernels, once."""
    config = trainer_config(method, variations(METHODS[method].pipeline.model)[variation])
    model = ZipNerfModel(config.pipeline.model, SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), PHOTOS)
    _train(model, config)
    _draw_rays()
    model.eval()
    _look(model)


def _cameras() -> Cameras:
    pose = torch.eye(4)[:3].repeat(PHOTOS, 1, 1)
    return Cameras(pose, 20.0, 20.0, SIDE / 2, SIDE / 2, SIDE, SIDE, camera_type=CameraType.PERSPECTIVE)


def _bundle(rays: int) -> RayBundle:
    return PixelRays(_cameras(), "cuda", "triton")(torch.zeros(rays, 3, dtype=torch.int64))


def _train(model: ZipNerfModel, config: ZipNerfTrainerConfig) -> None:
    model.train()
    model.zipnerf.set_progress(0.5)
    outputs = model.get_outputs(_bundle(RAYS))
    batch = {"image": torch.zeros(RAYS, 3)}
    metrics = model.get_metrics_dict(outputs, batch)
    sum(model.get_loss_dict(outputs, batch, metrics).values()).backward()
    for name, parameters in model.get_param_groups().items():
        config.optimizers[name]["optimizer"].setup(parameters).step()


def _draw_rays() -> None:
    """What the datamanager and pictures ask of cameras."""
    rays, starts, widths = PixelRays(_cameras(), "cuda", "triton"), torch.arange(PHOTOS) * SIDE**2, torch.tensor([SIDE, SIDE])
    for channels in (3, 4):
        colors = torch.zeros(PHOTOS * SIDE**2, channels, dtype=torch.uint8)
        for kind in (None, torch.int32, torch.int64):
            allowed = None if kind is None else torch.zeros(RAYS, dtype=kind)
            rays.sample(PixelStore(colors, starts, widths, allowed), RAYS)
    ImageRays(_cameras()[:1], "cuda", None, "triton").bundle(0, 100)


def _look(model: ZipNerfModel) -> None:
    """What evaluation, exporters and the viewer ask."""
    photo = 0 if model.config.use_appearance else None
    views = [View(), View(num_active=2, photo=photo), *(View(prefilter=mode) for mode in get_args(Prefilter))]
    with torch.no_grad():
        for view in views:
            outputs = model._render(_bundle(RAYS), view)
            for name in EXTRA_OUTPUTS:
                outputs[name]
        query_points(model.field, torch.zeros(RAYS, 3), torch.zeros(RAYS, 3), 0.1)
        query_density(model.field, torch.zeros(RAYS, 3), 0.1)
    bundle = _bundle(RAYS)
    bundle.origins.requires_grad_()
    model.get_outputs(bundle)["rgb"].sum().backward()
