"""How Zip-NeRF meets Nerfstudio: the settings beside the method's own, each with its line, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
import tyro
from torch import Tensor

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.config_utils import to_immutable_dict
from nerfstudio.models.base_model import ModelConfig

from zipnerf_ns.data.memory import check_room
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.encoding.moving import MotionConfig
from zipnerf_ns.errors import InputError, shorten
from zipnerf_ns.functional.hash_grid import Prefilter
from zipnerf_ns.ops import resolve_ops, tcnn
from zipnerf_ns.settings import MIN_ACTIVE_LEVELS, ZipNerfConfig

BYTES_PER_VALUE = 4
"""What a value of a hash table takes: float32."""

FORMAT_VERSION = 3
"""Raised whenever a checkpoint's tensors change their meaning without changing their shape."""
TOLD_ALL = 2
"""Format that is read as well: its networks were told the prefilter's weights at every step."""

CAMERA_MODES = ("off", "SO3xR3", "SE3")
"""Nerfstudio's forms of a camera's correction."""


def _model_class() -> type:
    # Late, for the model is made of its configuration.
    from zipnerf_ns.model import ZipNerfModel

    return ZipNerfModel


@dataclass
class ZipNerfModelConfig(ModelConfig, ZipNerfConfig):
    """Hyper-parameters of Zip-NeRF; defaults are the paper's unless their line says otherwise."""

    _target: type = field(default_factory=_model_class)
    """Model class."""
    enable_collider: tyro.conf.Suppress[bool] = False
    """Nerfstudio's; near_plane and far_plane bound the rays instead."""
    collider_params: tyro.conf.Suppress[dict[str, float] | None] = to_immutable_dict({})
    """Nerfstudio's; without a collider there are none."""
    loss_coefficients: tyro.conf.Suppress[dict[str, float]] = to_immutable_dict({})
    """Nerfstudio's; each loss has a multiplier of its own below."""
    prompt: tyro.conf.Suppress[str | None] = None
    """Nerfstudio's, for models that read text."""
    eval_num_rays_per_chunk: int = 262_144
    """The most rays rendered at once at evaluation; fewer where memory is short."""
    picture_square: Literal["auto", 1, 2, 4] = "auto"
    """Side of the squares of pixels whose rays share their proposals in pictures; 1: every ray has its own; auto: 2 or
    4 where a pixel of the photos is as wide, else 1."""
    lpips_weights: Path | None = None
    """Folder with VGG-16's weights, for the metric lpips, and AlexNet's, for lpips_alex, as torchvision names the files
    (vgg16-397923af.pth, alexnet-owt-7be5be79.pth); torch hub's cache if none."""

    near_plane: float = 0.05
    """Nearest distance that can be seen, world units after the dataparser's scaling."""
    far_plane: float = 1e6
    """Farthest distance that can be seen, world units."""
    scene_bounds: Literal["auto", "unbounded", "box"] = "auto"
    """Contract all of space, or use the scene box; auto: the box for blender-data, else unbounded."""
    background_color: Literal["auto", "white", "black", "last_sample"] = "auto"
    """Background at evaluation; auto: the dataparser's, else white for images with alpha and black without."""
    random_background: bool = True
    """Composite on random colors in training, so that emptiness cannot hide behind a background's color."""

    ipe_bandwidth: Literal["one", "scene_scale"] = "one"
    """Lambda of prefilter ipe, for no other: 1, or 0.5 over the mean side of the scene box in world units."""

    use_appearance: bool = False
    """Learn each training image's exposure and white balance: on where they differ. Views get their mean."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=CameraOptimizerConfig)
    """Corrects the training cameras' poses while the scene is learned: mode SO3xR3; off for benchmarks."""

    optimize_lens: bool = False
    """Corrects the calibration that all photos of a lens share, in the first half of the training."""

    scene_adapted_resolution: bool = False
    """Resolutions of all grids by the longest image side s, pixels: base max(16, s/100), finest min(max_res, 10 s)."""
    collision_check_steps: int = 5000
    """Steps between measurements of hash collisions; 0 never measures."""

    def __post_init__(self) -> None:
        check_config(self)


def check_config(config: ZipNerfModelConfig) -> None:
    """Refuses settings that cannot work, or that would have no effect beside the others.

    Raises:
        InputError: naming the field and its range, or the fields and the mend.
    """
    _check_ranges(config)
    for name, grid in named_grids(config).items():
        try:
            grid.make()
        except ValueError as error:
            raise InputError(f"--pipeline.model.{name}: {error}") from error
    _check_combinations(config)


def _check_ranges(config: ZipNerfModelConfig) -> None:
    positive = ("near_plane", "far_plane", "hidden_dim", "bottleneck_dim", "color_layers", "color_dim", "anneal_slope",
                "eval_num_rays_per_chunk")  # fmt: skip
    for name in positive:
        if not 0 < getattr(config, name) < math.inf:
            raise InputError(f"{name} is {getattr(config, name)}: it must be positive and finite.")
    for name in [f.name for f in dataclasses.fields(config) if f.name.endswith("_mult")]:
        if not 0.0 <= getattr(config, name) < math.inf:
            raise InputError(f"{name} is {getattr(config, name)}: a loss's weight must be finite, 0 or more.")
    if not config.proposals:
        raise InputError("proposals is empty: the sampler needs at least one proposal round.")
    for index, proposal in enumerate(config.proposals):
        if proposal.num_samples < 2 or proposal.hidden_dim < 1 or not 0.0 < proposal.blur_halfwidth < math.inf:
            raise InputError(
                f"proposals.{index}: num_samples must be at least 2, hidden_dim and blur_halfwidth positive."
            )
    if config.camera_optimizer.mode not in CAMERA_MODES:
        raise InputError(f"camera_optimizer.mode is {config.camera_optimizer.mode}: choose one of {CAMERA_MODES}.")
    if config.num_samples < 2:
        raise InputError(f"num_samples is {config.num_samples}: it must be at least 2.")
    if config.motion.hidden_dim < 0:
        raise InputError(f"motion.hidden_dim is {config.motion.hidden_dim}: it must be 0 (no layer) or more.")
    if not 0.0 <= config.motion.still_first <= 0.5:
        raise InputError(f"motion.still_first is {config.motion.still_first}: it must lie between 0 and a half.")
    if config.motion.still_every < 0 or config.motion.still_every == 1:
        raise InputError(f"motion.still_every is {config.motion.still_every}: it must be 0 (no ray) or 2 or more.")
    if config.collision_check_steps < 0:
        raise InputError(f"collision_check_steps is {config.collision_check_steps}: it must be 0 (never) or more.")


def _check_combinations(config: ZipNerfModelConfig) -> None:
    if config.near_plane >= config.far_plane:
        raise InputError(f"near_plane ({config.near_plane}) must be smaller than far_plane ({config.far_plane}).")
    if config.enable_collider:
        raise InputError("enable_collider: near_plane and far_plane bound this model's rays. Leave the collider out.")
    if config.ipe_bandwidth != "one" and config.prefilter != "ipe":
        raise InputError(
            f"ipe_bandwidth {config.ipe_bandwidth} has no effect with prefilter {config.prefilter}: "
            "choose prefilter ipe, or leave ipe_bandwidth out."
        )
    if config.progressive_levels and config.grid.num_levels <= MIN_ACTIVE_LEVELS:
        raise InputError(
            f"progressive_levels begins with {MIN_ACTIVE_LEVELS} levels and grid.num_levels is "
            f"{config.grid.num_levels}: raise num_levels, or leave progressive_levels out."
        )
    others = {
        "implementation tcnn": config.implementation == "tcnn",
        f"ipe_bandwidth {config.ipe_bandwidth}": config.ipe_bandwidth != "one",
    }
    for name in (name for name, is_set in others.items() if is_set and config.motion.kind != "none"):
        raise InputError(f"motion.kind {config.motion.kind} does not go with {name}: leave one of them out.")
    motion, usual = config.motion, MotionConfig()
    for name in ("still_first", "still_every"):
        if getattr(motion, name) != getattr(usual, name) and motion.kind not in ("auto", "blend"):
            raise InputError(
                f"motion.{name} has no effect with motion.kind {motion.kind}: choose blend (or auto, which is blend "
                f"where one camera sees each moment), or leave motion.{name} out."
            )
    if config.implementation == "tcnn":
        for name, grid in named_grids(config).items():
            prefilter = config.prefilter if name == "grid" else config.proposal_prefilter
            reason = tcnn().why_unsupported(prefilter, grid.features_per_level)
            if reason is not None:
                raise InputError(f"--pipeline.model.{name}: {reason}")


def named_grids(config: ZipNerfModelConfig) -> dict[str, HashGridConfig]:
    """The hash grids of a model by their names in its configuration, in the order of ``ZipNerf.tables``."""
    grids: dict[str, HashGridConfig] = {}
    for index, proposal in enumerate(config.proposals):
        grids[f"proposals.{index}.grid"] = proposal.grid
        if config.motion.kind != "none":
            grids[f"proposals.{index}.moving_grid"] = proposal.moving_grid
    grids["grid"] = config.grid
    if config.motion.is_blended:
        grids["motion.grid"] = config.motion.grid
    if config.motion.is_deformed:
        grids["motion.deformation"] = config.motion.deformation
    return grids


def look_ups(config: ZipNerfModelConfig) -> list[tuple[int, HashGridConfig, int, Prefilter]]:
    """Intervals a ray, grid, hidden units and prefilter of all that networks read; the rendered round's still grid,
    beside which what moves has no hidden units of its own, is the last."""
    early, motion, found = config.proposal_prefilter, config.motion, []
    for each in config.proposals:
        found.append((each.num_samples, each.grid, each.hidden_dim, early))
        if motion.kind != "none":
            found.append((each.num_samples, each.moving_grid, 0, early))
    if motion.is_blended:
        found.append((config.num_samples, motion.grid, 0, motion.prefilter))
    return [*found, (config.num_samples, config.grid, config.hidden_dim, config.prefilter)]


def rendered_channels(config: ZipNerfModelConfig) -> int:
    """Numbers that the rendered round's networks read of an interval."""
    grids = [config.grid, *([config.motion.grid] if config.motion.is_blended else [])]
    return sum(grid.num_levels * (grid.features_per_level + 1) for grid in grids)


def explain_implementation(config: ZipNerfModelConfig, device: torch.device) -> None:
    """Raises an InputError that names the field if an implementation is unknown or cannot run on the device."""
    try:
        resolve_ops(config.implementation, device)
        if config.implementation == "tcnn":
            tcnn().import_library()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--pipeline.model.implementation: {error}") from error


def adapt_resolutions(config: ZipNerfModelConfig, longest_side: int) -> ZipNerfModelConfig:
    """A configuration whose grids fit images of ``longest_side`` s pixels: base max(16, s/100), finest
    min(max_res, 10 s)."""
    base = max(16, round(longest_side / 100))

    def adapt(grid: HashGridConfig) -> HashGridConfig:
        return dataclasses.replace(grid, base_res=base, max_res=max(min(grid.max_res, 10 * longest_side), base))

    proposals = tuple(dataclasses.replace(proposal, grid=adapt(proposal.grid)) for proposal in config.proposals)
    return dataclasses.replace(config, grid=adapt(config.grid), proposals=proposals)


def prefilters_of(config: ZipNerfModelConfig) -> tuple[Prefilter, ...]:
    """The anti-aliasing modes in which a model's tables can be read."""
    if config.implementation != "tcnn":
        return get_args(Prefilter)
    features = config.grid.features_per_level
    return tuple(mode for mode in get_args(Prefilter) if tcnn().why_unsupported(mode, features) is None)


def table_values(config: ZipNerfModelConfig) -> dict[str, int]:
    """How many numbers each grid's table holds, by the grids' names."""
    shapes = {name: grid.make() for name, grid in named_grids(config).items()}
    return {name: shape.num_entries * shape.features_per_level for name, shape in shapes.items()}


def check_table_memory(config: ZipNerfModelConfig, device: torch.device) -> None:
    """Checks that hash tables fit into the device's memory: their values alone, for rendering takes no more.

    Raises:
        InputError: naming the largest grid's setting.
    """
    values = table_values(config)
    largest = max(values, key=lambda name: values[name])
    mend = f"Lower --pipeline.model.{largest}.log2-hashmap-size (or features-per-level)."
    check_room("the hash tables need", BYTES_PER_VALUE * sum(values.values()), device, mend)


def check_state_dict(loaded: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Checks that a checkpoint belongs to a model: the same names and shapes, and a format that is read.

    Raises:
        InputError: naming what differs.
    """
    if any(name.startswith("zipnerf.field.appearance.") for name in loaded):
        raise InputError(
            "the checkpoint's appearance is a code that changes the bottleneck, which this version does not have. "
            "Install the zipnerf-ns version that wrote it, or train anew."
        )
    mend = "Load it with the options it was trained with (its config.yml), or train anew without it."
    missing, unexpected = sorted(set(own) - set(loaded)), sorted(set(loaded) - set(own))
    if missing or unexpected:
        parts = [f"{word} {shorten(names)}" for word, names in (("lacks", missing), ("has", unexpected)) if names]
        raise InputError(f"the checkpoint is of another configuration: it {' and '.join(parts)}. {mend}")
    for name, value in own.items():
        if loaded[name].shape != value.shape:
            raise InputError(
                f"the checkpoint is of another configuration: {name} has shape {tuple(loaded[name].shape)}, "
                f"this configuration makes {tuple(value.shape)}. {mend}"
            )
    version = int(loaded["format_version"])
    if version not in (TOLD_ALL, FORMAT_VERSION):
        raise InputError(
            f"the checkpoint has format {version}, this version reads {FORMAT_VERSION}. "
            "Install the zipnerf-ns version that wrote it, or train anew."
        )
