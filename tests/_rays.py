"""What the tests of the parts share: seeded rays, intervals and histograms, a tiny configuration and its model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox

from zipnerf_ns.data.datamanager import SCENE_HINTS, SceneHints
from zipnerf_ns.encoding import AntiAliasedHashEncoding, HashGridConfig
from zipnerf_ns.functional.cones import Cones
from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.model_config import ZipNerfModelConfig
from zipnerf_ns.rays import Rays, Round
from zipnerf_ns.zipnerf import ProposalConfig

TINY_GRID = HashGridConfig(num_levels=4, features_per_level=2, base_res=4, max_res=32, log2_hashmap_size=9)
"""Two dense levels (4 and 8 cells a side) and two hashed ones (16 and 32)."""


def rng(seed: int) -> torch.Generator:
    """A generator of this seed; no test depends on the order in which tests run."""
    return torch.Generator().manual_seed(seed)


def uniform(shape: Sequence[int], seed: int, low: float = 0.0, high: float = 1.0, dtype=torch.float32) -> Tensor:
    """Numbers spread evenly over [low, high)."""
    return (low + (high - low) * torch.rand(*shape, generator=rng(seed), dtype=torch.float64)).to(dtype)


def normal(shape: Sequence[int], seed: int, dtype=torch.float32) -> Tensor:
    """Standard normal numbers, for cotangents: ones would hide permutations and wrong signs."""
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def unit_vectors(count: int, seed: int, dtype=torch.float32) -> Tensor:
    """Directions spread evenly over the sphere."""
    vectors = normal((count, 3), seed, torch.float64)
    return (vectors / vectors.norm(dim=-1, keepdim=True)).to(dtype)


def make_bundle(count: int, seed: int = 0, **changes: Any) -> RayBundle:
    """Rays from cameras at distance 1.5 that look roughly at the origin."""
    origins = 1.5 * unit_vectors(count, seed)
    directions = 0.4 * normal((count, 3), seed + 1) - origins
    fields = {
        "origins": origins,
        "directions": directions / directions.norm(dim=-1, keepdim=True),
        "pixel_area": torch.full((count, 1), 1e-4),
        "camera_indices": torch.arange(count)[:, None] % 3,
    }
    return RayBundle(**{**fields, **changes})


def missed_crop() -> RayBundle:
    """Rays that miss the crop box, as nerfstudio marks them."""
    missed = torch.full((4, 1), 1e10)
    return make_bundle(4, nears=missed, fars=missed)


def assert_same_bundle(bundle: RayBundle, before: RayBundle) -> None:
    """Every field of the bundle is what it was in a deep copy made before."""
    for field in dataclasses.fields(RayBundle):
        now, then = getattr(bundle, field.name), getattr(before, field.name)
        if isinstance(then, Tensor):
            assert torch.equal(now, then), field.name
        else:
            assert now == then, field.name


def copy_bundle(bundle: RayBundle) -> RayBundle:
    """A deep copy."""
    return copy.deepcopy(bundle)


def make_rays(count: int, seed: int = 0, near: float = 0.2, far: float = 1e6, **changes: Any) -> Rays:
    """The rays of :func:`make_bundle`, all valid."""
    bundle = make_bundle(count, seed)
    rays = Rays(
        bundle.origins,
        bundle.directions,
        torch.full((count, 1), 5.8e-3),
        torch.full((count, 1), near),
        torch.full((count, 1), far),
        torch.ones(count, 1, dtype=torch.bool),
        bundle.camera_indices,
    )
    return rays._replace(**changes)


def short_intervals(rays: int = 4, bins: int = 5, dtype=torch.float32, **changes: Any) -> tuple[Rays, Tensor]:
    """Rays and fenceposts near the origin, where the contraction is the identity; visibly wide cones."""
    tdist = 0.1 + 0.3 * uniform((rays, bins + 1), 20, dtype=torch.float64).sort(dim=-1).values
    made = make_rays(
        rays,
        origins=(0.3 * normal((rays, 3), 21).clamp(-1.0, 1.0)).to(dtype),
        directions=unit_vectors(rays, 22, dtype),
        radius=torch.full((rays, 1), 0.058, dtype=dtype),
    )
    return made._replace(**changes), tdist.to(dtype)


def make_cones(
    rays: int = 3, bins: int = 4, seed: int = 0, dtype=torch.float32, turned: bool = False,
    aabb: Tensor | None = None,
) -> Cones:  # fmt: skip
    """Cones near the origin, from thin ones to ones much wider than the tiny grid's finest cells."""
    tdist = 0.2 + 0.6 * uniform((rays, bins + 1), seed, dtype=torch.float64).sort(dim=-1).values
    return Cones(
        0.2 * normal((rays, 3), seed + 1, dtype).clamp(-1.5, 1.5),
        unit_vectors(rays, seed + 2, dtype),
        torch.logspace(-2.0, 0.0, rays, dtype=dtype)[:, None],
        tdist.to(dtype),
        uniform((rays, bins), seed + 3, 0.0, 2.0, dtype) if turned else None,
        aabb,
    )


def make_round(sdist: Tensor, weights: Tensor, tdist: Tensor | None = None) -> Round:
    """A round of sampling whose distances are the normalized ones if not given."""
    return Round(sdist, sdist if tdist is None else tdist, weights)


def random_posts(rays: int, bins: int, seed: int, dtype=torch.float64) -> Tensor:
    """Fenceposts from 0 to 1, no interval narrower than 1/(10 bins)."""
    widths = uniform((rays, bins), seed, 0.1, 1.0, torch.float64)
    ends = widths.cumsum(dim=-1) / widths.sum(dim=-1, keepdim=True)
    return torch.cat([torch.zeros_like(ends[:, :1]), ends], dim=-1).to(dtype)


def random_weights(rays: int, bins: int, seed: int, total: float = 0.9, dtype=torch.float64) -> Tensor:
    """Uneven positive weights ``[rays, bins]`` that sum to ``total``."""
    weights = uniform((rays, bins), seed, 0.0, 1.0, torch.float64).square() + 1e-3
    return (total * weights / weights.sum(dim=-1, keepdim=True)).to(dtype)


def make_encoding(prefilter: str = "multisample", spread: float = 0.1, seed: int = 0, **changes: Any):
    """An encoding on the tiny grid whose table holds visible values: at its initial 1e-5 all else would round away."""
    encoding = AntiAliasedHashEncoding(dataclasses.replace(TINY_GRID, **changes), prefilter)
    with torch.no_grad():
        encoding.hash_table.copy_(spread * normal(encoding.hash_table.shape, seed))
    return encoding


def tiny_config(**changes: Any) -> ZipNerfModelConfig:
    """Every part of the model, as small as it goes."""
    fields = {
        "grid": TINY_GRID,
        "proposals": (
            ProposalConfig(8, HashGridConfig(3, 1, 4, 16, 9), 16, 0.03),
            ProposalConfig(8, HashGridConfig(3, 1, 4, 32, 9), 16, 0.003),
        ),
        "num_samples": 6,
        "hidden_dim": 16,
        "bottleneck_dim": 8,
        "color_layers": 2,
        "color_dim": 16,
        "eval_num_rays_per_chunk": 64,
        "collision_check_steps": 0,
    }
    return ZipNerfModelConfig(**{**fields, **changes})


def make_model(
    config: ZipNerfModelConfig | None = None,
    hints: SceneHints | None = None,
    side: float = 2.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ZipNerfModel:
    """The model of a configuration for a scene box of this side, in evaluation mode, on its device."""
    torch.manual_seed(seed)
    box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]) * (side / 2.0))
    metadata = {} if hints is None else {SCENE_HINTS: hints}
    model = ZipNerfModel(config or tiny_config(), scene_box=box, num_train_data=3, metadata=metadata, device=device)
    return model.to(device).eval()


def sphere_batch(count: int, seed: int, channels: int = 3) -> tuple[RayBundle, dict]:
    """Rays at a ball of radius 0.5 with a color gradient, before a grey (or transparent) background."""
    bundle = make_bundle(count, seed)
    along = (bundle.origins * bundle.directions).sum(-1, keepdim=True)
    root = along.square() - bundle.origins.square().sum(-1, keepdim=True) + 0.25
    hit = root > 0.0
    surface = bundle.origins + (-along - root.clamp_min(0.0).sqrt()) * bundle.directions
    image = torch.where(hit, surface + 0.5, 0.3 if channels == 3 else 0.0)
    if channels == 4:
        image = torch.cat([image, hit.float()], dim=-1)
    return bundle, {"image": image}
