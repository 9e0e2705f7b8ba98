"""The configuration of a trial: a method as nerfstudio registers it, on a scene, with the schedule that fits."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.utils.external import TCNN_EXISTS

from zipnerf_ns.data.checks import check_images
from zipnerf_ns.data.dataparsers.exact import settled
from zipnerf_ns.data.dataparsers.formats import format_of, with_reader
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

DATAPARSER = "pipeline.datamanager.dataparser."
"""Before the names of the settings of the parser that reads the scene."""


class Prepared(NamedTuple):
    """A configuration that is ready to be set up."""

    config: Any
    """Nerfstudio's TrainerConfig, with the number of steps that the method's own schedule is for."""
    has_alpha: bool
    """Whether the scene's images are transparent; everything is then seen and measured over white."""
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
    config, notes = copy.deepcopy(registered(trial.method)), []
    is_ours = type(config).__module__.startswith("zipnerf_ns.")
    _quieten(config, trial, folder)
    manager, model, data = config.pipeline.datamanager, config.pipeline.model, Path(trial.scene)
    # Reduced images are beside the trials of the same scene, for all methods: its own folder may not be writable.
    cache = folder.resolve().parent / "multiscale"
    multiscale = MultiscaleDataParserConfig(data=data, scales=trial.scales or (1,), cache_dir=cache)
    # Nerfstudio's methods have the center that it gives them.
    parser = multiscale.source() if is_ours else with_reader(settled(multiscale.source(), "poses"))
    # At once: they say which images are read at all.
    of_parser = {path: value for path, value in trial.changes.items() if path.startswith(DATAPARSER)}
    change(parser, {path.removeprefix(DATAPARSER): value for path, value in of_parser.items()})
    scene_format = format_of(parser)
    if type(model).__name__ == "SplatfactoModelConfig" and scene_format.has_points(data):
        parser.load_3D_points = True
    outputs = parser.setup().get_dataparser_outputs("train")
    has_alpha = check_images(outputs.image_filenames)
    if has_alpha:
        parser = _object_settings(model, parser, trial.half_side)
        within = f"within {trial.half_side:g} of its origin"
        notes.append(f"transparent images: over white, in the data's own frame, {within}")
    sizes = torch.cat([outputs.cameras.width, outputs.cameras.height], dim=-1).unique(dim=0)
    # Scenes that show several scales already are read as they are.
    reduced = bool(trial.scales) and find_scales(outputs.image_filenames, outputs.metadata, data) is None
    if reduced:
        parser = dataclasses.replace(multiscale, **{scene_format.name: parser})
    manager.data, manager.dataparser = data, parser
    camera_optimizer = getattr(model, "camera_optimizer", None)
    if camera_optimizer is not None and camera_optimizer.mode != "off":
        camera_optimizer.mode = "off"
        notes.append("camera optimization off: held-out cameras are not optimized")
    if getattr(model, "implementation", None) == "tcnn" and not TCNN_EXISTS:
        notes.append("tiny-cuda-nn is not installed: the method's own torch implementation")
    if (reduced or len(sizes) > 1) and not is_ours and hasattr(manager, "pixel_sampler"):
        notes.append("images of several sizes: nerfstudio's sampler takes equally many rays from each")
    change(config, {path: value for path, value in trial.changes.items() if path not in of_parser})
    return Prepared(config, has_alpha, is_ours, notes)


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
    share = steps / prepared.config.max_num_iterations
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


def change(config: Any, changes: Mapping[str, Any]) -> bool:
    """Sets fields by their dotted names, in place; entries of tuples and dictionaries by number and key.

    Returns:
        Whether any of them had another value.
    Raises:
        InputError: for a field that is not there, or a value of another kind.
    """
    changed = False
    for path, value in changes.items():
        *parents, name = path.split(".")
        try:
            owner = functools.reduce(_entry, parents, config)
            old = _entry(owner, name)
        except (AttributeError, KeyError, IndexError, ValueError) as error:
            raise InputError(f"this version has no setting {path}") from error
        if type(old) is float and type(value) is int:
            value = float(value)
        if old is not None and type(value) is not type(old):
            raise InputError(f"{path} is {old!r}: it cannot become {value!r}.")
        changed |= value != old
        setattr(owner, name, value)
    return changed


def _entry(owner: Any, name: str) -> Any:
    if isinstance(owner, tuple):
        return owner[int(name)]
    return owner[name] if isinstance(owner, dict) else getattr(owner, name)


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


def _object_settings(model: Any, parser: DataParserConfig, half: float) -> DataParserConfig:
    """Sets a method's model up for an object in a box of ``half`` its side about the data's own origin, over white, as
    it is published; the parser that gives the object so.

    (Nerfacto's and instant-ngp's settings are those of nerfstudio's benchmark of NeRF-synthetic scenes. Splatfacto is
    made for cameras within 1 of the origin, and gets them there.)
    """
    cameras = _in_own_frame(parser, half, 1.0).setup().get_dataparser_outputs("train").cameras
    radii = cameras.camera_to_worlds[:, :3, 3].norm(dim=-1)
    near = max(float(radii.min()) - PUBLISHED_RADIUS * half, 0.05)
    far = float(radii.max()) + PUBLISHED_RADIUS * half
    is_splats = type(model).__name__ == "SplatfactoModelConfig"
    scale = 1.0 / float(radii.max()) if is_splats else 1.0
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
        "SplatfactoModelConfig": {"random_scale": 2.0 * half * scale},
    }  # fmt: skip
    for name, value in settings.get(type(model).__name__, {}).items():
        setattr(model, name, value)
    return _in_own_frame(parser, half, scale)


def _in_own_frame(parser: DataParserConfig, half: float, scale: float) -> DataParserConfig:
    known = format_of(parser)
    if known.own_frame is None:
        raise InputError("a scene with alpha must be in nerfstudio's format or NeRF-synthetic's.")
    box = {} if known.box_setting is None else {known.box_setting: half * scale}
    return dataclasses.replace(parser, **known.own_frame, scale_factor=scale, **box)
