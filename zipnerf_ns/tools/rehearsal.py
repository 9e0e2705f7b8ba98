"""A method's training step, evaluation and views with few rays and without data, for what they launch on the way."""

from __future__ import annotations

import copy
import dataclasses
from itertools import product
from typing import Any, get_args

import torch

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.types import MethodSpecification

from zipnerf_ns import config as registry
from zipnerf_ns.cameras.rays import ImageRays, PixelRays, rays_of_bundle
from zipnerf_ns.data.pixels import PixelStore
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.engine.safety.determinism import repeatable
from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig
from zipnerf_ns.functional.hash_grid import Prefilter
from zipnerf_ns.functional.mlp import Precision
from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.model_config import ZipNerfModelConfig, named_grids
from zipnerf_ns.render.outputs import EXTRA_OUTPUTS
from zipnerf_ns.render.points import Moment, query_density, query_points

METHODS: dict[str, ZipNerfTrainerConfig] = {
    method.config.method_name: method.config
    for method in vars(registry).values()
    if isinstance(method, MethodSpecification)
}
"""As ns-train lists them."""
AS_CONFIGURED = "as configured"
FEATURES = (1, 2, 4, 8)
"""Features a level that the kernels read."""
RAYS, ODD_RAYS = 64, 37
"""Rays of a step and of most chunks, a multiple of 16, on which Triton's code may depend; and of a last chunk."""
PHOTOS, SIDE = 2, 16
"""Number of training images, and their sides in pixels."""
DEVICE = "cuda"
"""Where all of this seems to lie."""


def variations(config: ZipNerfModelConfig) -> dict[str, dict[str, Any]]:
    """Fields of a model that change a kernel, with the values that differ from the method's, by a name each."""
    found: dict[str, dict[str, Any]] = {
        **{f"prefilter {mode}": {"prefilter": mode} for mode in get_args(Prefilter)},
        **{f"precision {kind}": {"precision": kind} for kind in get_args(Precision)},
        **{f"cameras {mode}": {"camera_optimizer": CameraOptimizerConfig(mode=mode)} for mode in ("SO3xR3", "SE3")},
        **{f"{count} features a level": _with_features(config, count) for count in FEATURES},
        **{f"{count} color layers": {"color_layers": count} for count in (2, 3, 4)},
        **{f"colors of {count} intervals": {"color_group": count} for count in (1, 2, 4, 8, 16)},
        **{f"color network {width} wide": {"color_dim": width} for width in (64, 128, 256)},
        **{f"density network {width} wide": _with_width(config, width) for width in (32, 64, 128)},
        "scene box": {"scene_bounds": "box"},
        "progressive levels": {"progressive_levels": True},
    }
    if config.motion.kind != "none":
        kinds = ("blend", "deform", "both")
        found |= {f"motion {kind}": {"motion": dataclasses.replace(config.motion, kind=kind)} for kind in kinds}
    changing = {name: fields for name, fields in found.items() if dataclasses.replace(config, **fields) != config}
    return {AS_CONFIGURED: {}, **changing}


def _with_features(config: ZipNerfModelConfig, count: int) -> dict[str, Any]:
    def changed(grid: HashGridConfig) -> HashGridConfig:
        return dataclasses.replace(grid, features_per_level=count)

    proposals = tuple(dataclasses.replace(proposal, grid=changed(proposal.grid)) for proposal in config.proposals)
    return {"grid": changed(config.grid), "proposals": proposals}


def _with_width(config: ZipNerfModelConfig, width: int) -> dict[str, Any]:
    proposals = tuple(dataclasses.replace(proposal, hidden_dim=width) for proposal in config.proposals)
    return {"hidden_dim": width, "proposals": proposals}


def rehearse(method: str, variation: str, log2_hashmap_size: int | None = None) -> None:
    """Everything of a method that launches kernels, once.

    Args:
        method: a key of ``METHODS``.
        variation: a key of what :func:`variations` gives for it.
        log2_hashmap_size: of all tables, instead of the method's.
    """
    config = copy.deepcopy(METHODS[method])
    changes = variations(config.pipeline.model)[variation]
    config.pipeline.model = dataclasses.replace(config.pipeline.model, implementation="triton", **changes)
    if log2_hashmap_size is not None:
        for grid in named_grids(config.pipeline.model).values():
            grid.log2_hashmap_size = log2_hashmap_size
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    # A GPU that is not here cannot be asked for its memory.
    device = DEVICE if torch.cuda.is_available() else "cpu"
    model = ZipNerfModel(config.pipeline.model, box, PHOTOS, device=device).to(DEVICE)
    _draw_rays()
    for is_deterministic in (False, True):
        with repeatable(is_deterministic):
            _train(model, config)
    model.eval()
    for rays in (RAYS, ODD_RAYS):
        _render(model, rays)
    _look(model)
    _refine(model)


def _cameras() -> Cameras:
    poses = torch.eye(4)[:3].repeat(PHOTOS, 1, 1)
    lens = 20.0, 20.0, SIDE / 2, SIDE / 2, SIDE, SIDE
    return Cameras(poses, *lens, camera_type=CameraType.PERSPECTIVE, times=torch.zeros(PHOTOS, 1))


def _bundle(rays: int = RAYS) -> RayBundle:
    return PixelRays(_cameras(), DEVICE, "triton")(torch.arange(rays)[:, None] % torch.tensor([PHOTOS, SIDE, SIDE]))


def _draw_rays() -> None:
    """What the datamanager and pictures ask of cameras: images with alpha and without, masked or not, or on disk."""
    rays, pixels = PixelRays(_cameras(), DEVICE, "triton"), PHOTOS * SIDE**2
    places = torch.arange(PHOTOS, device=DEVICE) * SIDE**2, torch.full([PHOTOS], SIDE, device=DEVICE)
    numbers = [torch.zeros(pixels, dtype=dtype, device=DEVICE) for dtype in (torch.int32, torch.int64)]
    for channels in (3, 4):
        colors = torch.zeros(pixels, channels, dtype=torch.uint8, device=DEVICE)
        rays.sample(PixelStore(colors, *places, None), RAYS)
        for allowed, is_gathered in product(numbers, (False, True)):
            rays.sample(PixelStore(colors, *places, allowed, is_gathered), RAYS)
    ImageRays(_cameras()[:1], DEVICE, None, "triton").bundle(0, RAYS)


def _train(model: ZipNerfModel, config: ZipNerfTrainerConfig) -> None:
    """A step halfway through the training."""
    model.train()
    model.zipnerf.set_progress(0.5)
    outputs, batch = model.get_outputs(_bundle()), {"image": torch.zeros(RAYS, 3, device=DEVICE)}
    sum(model.get_loss_dict(outputs, batch).values()).backward()
    groups = model.get_param_groups()
    # Cameras are corrected by torch alone.
    for name in ("hash_tables", "networks"):
        config.optimizers[name]["optimizer"].setup(groups[name]).step()


@torch.no_grad()
def _render(model: ZipNerfModel, rays: int) -> None:
    """What evaluation and the exporters ask."""
    outputs = model.get_outputs(_bundle(rays))
    for name in EXTRA_OUTPUTS:
        outputs.get(name)
    points, moment = torch.zeros(rays, 3, device=DEVICE), Moment(0.0, 0.0)
    query_points(model.field, points, points, 0.1, moment)
    query_density(model.field, points, 0.1, moment)


@torch.no_grad()
def _look(model: ZipNerfModel) -> None:
    """What the viewer's panel changes."""
    config, zipnerf = model.config, model.zipnerf
    rays = rays_of_bundle(_bundle(), config.near_plane, config.far_plane, zipnerf.aabb)
    for prefilter in get_args(Prefilter):
        for finest_level in (None, 1):
            rendering = zipnerf(rays, prefilter, finest_level)
            zipnerf.distances(rendering.rounds)
            zipnerf.normals(rays, rendering.rounds[-1], prefilter, finest_level)


def _refine(model: ZipNerfModel) -> None:
    """A step towards a held-out photo's pose."""
    bundle = _bundle()
    bundle.origins.requires_grad_()
    bundle.directions.requires_grad_()
    model.requires_grad_(False)
    model.get_outputs(bundle)["rgb"].sum().backward()
