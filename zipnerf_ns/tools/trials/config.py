"""The configuration of a trial: a method as nerfstudio registers it, on a scene, with the schedule that fits."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.external import TCNN_EXISTS

from zipnerf_ns.data.checks import check_images
from zipnerf_ns.data.dataparsers.formats import format_of
from zipnerf_ns.data.dataparsers.mipnerf360 import MipNerf360DataParserConfig
from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig
from zipnerf_ns.data.metadata import find_scales
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.trials.trial import Trial

PUBLISHED_RADIUS = 2.0 / 1.5
"""NeRF-synthetic scenes lie within 1.5 of the origin and are looked at from 2 nearer to 2 farther than the cameras."""

MODEL_STEPS: dict[str, tuple[str, ...]] = {
    "NerfactoModelConfig": ("proposal_warmup", "proposal_weights_anneal_max_num_iters"),
    # reset_alpha_every counts refinements, which stay as frequent as they are.
    "SplatfactoModelConfig": (
        "warmup_length", "resolution_schedule", "sh_degree_interval", "stop_screen_size_at", "stop_split_at",
        "reset_alpha_every",
    ),
}  # fmt: skip
"""Fields of other methods' models that count training steps."""


@dataclasses.dataclass
class Prepared:
    """A configuration that is ready to be set up."""

    config: Any
    """Nerfstudio's TrainerConfig."""
    has_alpha: bool
    """Whether the scene's pictures are transparent; everything is then seen and measured over white."""
    own_steps: int
    """The number of steps that the method's own schedule is for."""
    is_ours: bool
    """Whether its schedule follows the number of steps by itself."""
    notes: list[str]
    """What a reader of the result must know."""


def prepare(trial: Trial, folder: Path) -> Prepared:
    """The trial's configuration, before the number of steps is known.

    Args:
        trial: what is asked for.
        folder: where nerfstudio writes.
    Raises:
        InputError: if the method or a field of ``changes`` is not known, or the scene cannot be read.
    """
    config = copy.deepcopy(registered(trial.method))
    prepared = Prepared(config, False, config.max_num_iterations, _is_ours(config), [])
    _quieten(config, trial, folder)
    parser, outputs = _scene_parser(trial, config, folder)
    prepared.has_alpha = check_images(outputs.image_filenames)
    if prepared.has_alpha:
        parser = _object_settings(prepared, parser, outputs, trial)
    config.pipeline.datamanager.data = Path(trial.scene)
    config.pipeline.datamanager.dataparser = parser
    camera_optimizer = getattr(config.pipeline.model, "camera_optimizer", None)
    if camera_optimizer is not None and camera_optimizer.mode != "off":
        camera_optimizer.mode = "off"
        prepared.notes.append("camera optimization off: held-out cameras are not optimized")
    if getattr(config.pipeline.model, "implementation", None) == "tcnn" and not TCNN_EXISTS:
        prepared.notes.append("tiny-cuda-nn is not installed: the method's own torch implementation")
    sizes = {tuple(size) for size in torch.cat([outputs.cameras.width, outputs.cameras.height], dim=-1).tolist()}
    several_sizes = len(sizes) > 1 or type(parser) is MultiscaleDataParserConfig
    if several_sizes and not prepared.is_ours and hasattr(config.pipeline.datamanager, "pixel_sampler"):
        prepared.notes.append("pictures of several sizes: nerfstudio's sampler takes equally many rays from each")
    change(config, trial.changes)
    return prepared


def registered(method: str) -> Any:
    """A method's configuration from nerfstudio's registry.

    Raises:
        InputError: if it is not there.
    """
    # Here and not above: it loads every method's entry point.
    from nerfstudio.configs.method_configs import all_methods

    config = all_methods.get(method)
    # Of methods that could be installed, nerfstudio knows a name and no settings.
    if not hasattr(config, "max_num_iterations"):
        raise InputError(f"no method {method} is installed here. ns-train --help lists those that are.")
    return config


def set_steps(prepared: Prepared, steps: int, stretch: bool) -> Any:
    """A copy of the configuration for a number of steps.

    Args:
        prepared: from :func:`prepare`.
        steps: that are planned.
        stretch: whether the schedule of another method is stretched to them.
    """
    config = copy.deepcopy(prepared.config)
    config.max_num_iterations = steps
    if prepared.is_ours or not stretch:
        return config
    share = steps / prepared.own_steps
    for group in config.optimizers.values():
        if group["scheduler"] is not None:
            _stretch(group["scheduler"], ("warmup_steps", "warm_up_end", "max_steps", "milestones"), share)
    model = config.pipeline.model
    _stretch(model, MODEL_STEPS.get(type(model).__name__, ()), min(share, 1.0))
    return config


def _stretch(settings: Any, names: Sequence[str], share: float) -> None:
    for name in names:
        value = getattr(settings, name, None)
        if isinstance(value, tuple):
            setattr(settings, name, tuple(max(1, round(each * share)) for each in value))
        elif value:
            # Two at least where a decay divides by it less the warm-up.
            setattr(settings, name, max(2 if name == "max_steps" else 1, round(value * share)))


def change(config: Any, changes: Mapping[str, Any]) -> None:
    """Sets fields by their dotted names, in place; entries of tuples and dictionaries by number and key.

    Raises:
        InputError: for a field that is not there, or a value of another kind.
    """
    for path, value in changes.items():
        *parents, name = path.split(".")
        owner = config
        try:
            for parent in parents:
                owner = _entry(owner, parent)
            old = _entry(owner, name)
        except (AttributeError, KeyError, IndexError, ValueError) as error:
            raise InputError(f"this version has no setting {path}") from error
        if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if old is not None and type(value) is not type(old):
            raise InputError(f"{path} is {old!r}: it cannot become {value!r}.")
        setattr(owner, name, value)


def value_of(config: Any, path: str) -> Any:
    """A field by its dotted name.

    Raises:
        InputError: if it is not there.
    """
    try:
        for name in path.split("."):
            config = _entry(config, name)
    except (AttributeError, KeyError, IndexError, ValueError) as error:
        raise InputError(f"this version has no setting {path}") from error
    return config


def _entry(owner: Any, name: str) -> Any:
    if isinstance(owner, tuple):
        return owner[int(name)]
    return owner[name] if isinstance(owner, dict) else getattr(owner, name)


def _is_ours(config: Any) -> bool:
    return type(config).__module__.split(".")[0] == __name__.split(".")[0]


def _quieten(config: Any, trial: Trial, folder: Path) -> None:
    """Nothing but training happens in nerfstudio's loop: no viewer, evaluation, checkpoints or progress table."""
    config.machine.device_type, config.machine.seed, config.machine.num_devices = trial.device, trial.seed, 1
    config.output_dir, config.experiment_name, config.timestamp = folder, "trial", "run"
    config.vis = "tensorboard"
    config.viewer.quit_on_train_completion = True
    config.logging.local_writer.enable = False
    config.logging.steps_per_log = 100
    for name in ("eval_batch", "eval_image", "eval_all_images", "save"):
        setattr(config, f"steps_per_{name}", 0)


def _scene_parser(trial: Trial, config: Any, folder: Path) -> tuple[DataParserConfig, DataparserOutputs]:
    """Who reads the scene, and its training views; scenes that show several scales already are read as they are."""
    data = Path(trial.scene)
    # Beside the trials of the same scene: for all methods, and the scene's own folder may not be writable.
    cache = folder.resolve().parent / "multiscale"
    multiscale = MultiscaleDataParserConfig(data=data, scales=trial.scales or (1,), cache_dir=cache)
    source = multiscale.source()
    needs_points = type(config.pipeline.model).__name__ == "SplatfactoModelConfig"
    if isinstance(source, MipNerf360DataParserConfig):
        source.load_3D_points = needs_points
    elif isinstance(source, NerfstudioDataParserConfig):
        # Without the file nerfstudio would ask on the terminal.
        text = (data if data.suffix == ".json" else data / "transforms.json").read_text(encoding="utf-8")
        source.load_3D_points = needs_points and '"ply_file_path"' in text
    outputs = source.setup().get_dataparser_outputs("train")
    has_scales = find_scales(outputs.image_filenames, outputs.metadata, data) is not None
    if not trial.scales or has_scales:
        return source, outputs
    return dataclasses.replace(multiscale, **{format_of(source).name: source}), outputs


def _object_settings(
    prepared: Prepared, parser: DataParserConfig, outputs: DataparserOutputs, trial: Trial
) -> DataParserConfig:
    """A scene with alpha is an object in its own frame: bounded, over white, each method set up as published for it.

    (Nerfacto's and instant-ngp's settings are those of nerfstudio's benchmark of NeRF-synthetic scenes. Splatfacto is
    made for cameras within 1 of the origin, and gets them there.)
    """
    half, model = trial.half_side, prepared.config.pipeline.model
    radii = _radii(trial, parser)
    near = max(float(radii.min()) - PUBLISHED_RADIUS * half, 0.05)
    far = float(radii.max()) + PUBLISHED_RADIUS * half
    scale = 1.0
    if type(model).__name__ == "SplatfactoModelConfig":
        scale = 1.0 / float(radii.max())
        model.random_scale = 2.0 * half * scale
    settings: dict[str, dict[str, Any]] = {
        "ZipNerfModelConfig": {"scene_bounds": "box", "background_color": "white"},
        "NerfactoModelConfig": {
            "near_plane": near, "far_plane": far, "background_color": "white", "proposal_initial_sampler": "uniform",
            "use_average_appearance_embedding": False, "distortion_loss_mult": 0.0, "disable_scene_contraction": True,
        },
        "InstantNGPModelConfig": {
            "grid_levels": 1, "alpha_thre": 0.0, "cone_angle": 0.0, "near_plane": 0.01,
            "disable_scene_contraction": True,
        },
    }  # fmt: skip
    for name, value in settings.get(type(model).__name__, {}).items():
        setattr(model, name, value)
    prepared.notes.append(f"transparent pictures: over white, in the data's own frame, within {half:g} of its origin")
    return _in_own_frame(parser, half, scale)


def _in_own_frame(parser: DataParserConfig, half: float, scale: float) -> DataParserConfig:
    if isinstance(parser, MultiscaleDataParserConfig):
        inner = {name: _in_own_frame(getattr(parser, name), half, scale) for name in ("nerfstudio", "blender")}
        return dataclasses.replace(parser, **inner)
    if isinstance(parser, NerfstudioDataParserConfig):
        return dataclasses.replace(
            parser, orientation_method="none", center_method="none", auto_scale_poses=False, scale_factor=scale,
            scene_scale=half * scale,
        )  # fmt: skip
    if isinstance(parser, BlenderDataParserConfig):
        # Alpha is kept: each method puts white behind it itself.
        return dataclasses.replace(parser, alpha_color=None, scale_factor=scale)
    raise InputError("a scene with alpha must be in nerfstudio's format or NeRF-synthetic's.")


def _radii(trial: Trial, parser: DataParserConfig) -> torch.Tensor:
    """Distances of the training cameras from the data's own origin."""
    source = parser.source() if isinstance(parser, MultiscaleDataParserConfig) else parser
    outputs = _in_own_frame(source, trial.half_side, 1.0).setup().get_dataparser_outputs("train")
    return outputs.cameras.camera_to_worlds[:, :3, 3].norm(dim=-1)
