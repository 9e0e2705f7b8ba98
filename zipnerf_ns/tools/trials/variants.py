"""What the ablation varies: one table of differences from a method's own settings."""

from __future__ import annotations

from typing import Any

BASE = "full"
"""The method as it is."""

_MODEL = "pipeline.model"


def _model(**fields: Any) -> dict[str, Any]:
    """Differences of the model's fields."""
    return {f"{_MODEL}.{name}": value for name, value in fields.items()}


def _samples(each: int) -> dict[str, Any]:
    """As many intervals in each of the two proposal rounds and in the rendered one."""
    rounds = {f"{_MODEL}.proposals.{index}.num_samples": each for index in (0, 1)}
    return {**rounds, f"{_MODEL}.num_samples": each}


def _table_size(log2: int) -> dict[str, Any]:
    return {f"{_MODEL}.grid.log2_hashmap_size": log2}


VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "prefilter multisample": _model(prefilter="multisample"),
    "prefilter ipe": _model(prefilter="ipe"),
    "prefilter none": _model(prefilter="none"),
    "distillation": _model(distillation_loss_mult=0.01),
    "no distillation": _model(distillation_loss_mult=0.0),
    "no interlevel": _model(interlevel_loss_mult=0.0),
    "distillation instead of interlevel": _model(interlevel_loss_mult=0.0, distillation_loss_mult=0.01),
    "level consistency": _model(level_consistency_mult=0.01),
    "no level consistency": _model(level_consistency_mult=0.0),
    "distortion": _model(distortion_loss_mult=0.05),
    "distortion of 0.01": _model(distortion_loss_mult=0.01),
    "no distortion": _model(distortion_loss_mult=0.0),
    "hash decay": _model(hash_decay_mult=0.1),
    "no hash decay": _model(hash_decay_mult=0.0),
    "progressive levels": _model(progressive_levels=True),
    "all levels at once": _model(progressive_levels=False),
    "scene-adapted resolutions": _model(scene_adapted_resolution=True),
    "fixed resolutions": _model(scene_adapted_resolution=False),
    "Charbonnier": _model(rgb_loss="charbonnier"),
    "squared error": _model(rgb_loss="mse"),
    "root mean squared error": _model(rgb_loss="rmse"),
    "48 samples a ray": _samples(16),
    "96 samples a ray": _samples(32),
    "192 samples a ray": _samples(64),
    "384 samples a ray": _samples(128),
    "tables of 2^18": _table_size(18),
    "tables of 2^19": _table_size(19),
    "tables of 2^20": _table_size(20),
    "tables of 2^21": _table_size(21),
    "tables of 2^22": _table_size(22),
    "gradient scaling": _model(use_gradient_scaling=True),
    "no gradient scaling": _model(use_gradient_scaling=False),
    "appearance": _model(use_appearance=True),
    "no appearance": _model(use_appearance=False),
    "camera optimization": {f"{_MODEL}.camera_optimizer.mode": "SO3xR3"},
    "scales weighted by area": {"pipeline.datamanager.scale_weighting": "area"},
    "scales weighted evenly": {"pipeline.datamanager.scale_weighting": "even"},
}
"""Fields by their dotted names. A variant that changes nothing, because the method is so already, is not trained; of
the color losses the one that "auto" stands for is, for only the scene tells which that is."""

NEEDS_SCALES: tuple[str, ...] = ("scales weighted by area", "scales weighted evenly")
"""Variants that are the base on scenes of one scale."""
