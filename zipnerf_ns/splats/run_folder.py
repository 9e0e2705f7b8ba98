"""A run of splatfacto whose Gaussians were not trained by it: what Nerfstudio's programs take as their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from zipnerf_ns.data.dataparsers.multiscale import settled_source
from zipnerf_ns.engine.safety.files import write_whole
from zipnerf_ns.splats.gaussians import Gaussians

METHOD = "splatfacto"


def splatfacto_config(pipeline: Any, gaussians: Gaussians, output_dir: Path, experiment: str, timestamp: str) -> Any:
    """The configuration of a run of splatfacto on a field's data.

    Args:
        pipeline: of the field.
        gaussians: that the run will hold.
        output_dir, experiment, timestamp: name the run's folder, as in ``ns-train``.
    """
    # Late, for it loads every method's entry point, this project's among them.
    from nerfstudio.configs.method_configs import all_methods

    config = copy.deepcopy(all_methods[METHOD])
    config.output_dir, config.experiment_name, config.timestamp = output_dir, experiment, timestamp
    manager, model = config.pipeline.datamanager, config.pipeline.model
    of_field = pipeline.config.datamanager
    # With the center that was chosen: Nerfstudio's parsers choose none.
    manager.dataparser = settled_source(copy.deepcopy(of_field.dataparser), pipeline.datamanager.describe().center)
    manager.data = config.data = of_field.data or of_field.dataparser.data
    # What a checkpoint replaces; its points would be sent to a GPU, and all neighbors be found.
    model.random_init, model.num_random = True, 100
    model.sh_degree = gaussians.degree
    model.rasterize_mode = "antialiased" if gaussians.antialiased else "classic"
    model.background_color = "white" if bool(pipeline.model.background.min() > 0.5) else "black"
    return config


def write_run(config: Any, pipeline: Any, gaussians: Gaussians, step: int) -> Path:
    """Writes a run's checkpoint and then its config.yml, whose path it gives.

    Args:
        config: of :func:`splatfacto_config`.
        pipeline: of the field.
        gaussians: in the field's frame.
        step: that the checkpoint is named after.
    """
    folder, checkpoints = config.get_base_dir(), config.get_checkpoint_dir()
    checkpoints.mkdir(parents=True, exist_ok=True)
    path = checkpoints / f"step-{step:09d}.ckpt"
    state = {"step": step, "pipeline": model_state(gaussians), "optimizers": {}, "schedulers": {}, "scalers": {}}
    write_whole(state, path, checkpoints / "unfinished.tmp")
    pipeline.datamanager.train_dataparser_outputs.save_dataparser_transform(folder / "dataparser_transforms.json")
    (folder / "config.yml").write_text(yaml.dump(config), encoding="utf-8")
    return folder / "config.yml"


def model_state(gaussians: Gaussians) -> dict[str, Tensor]:
    """Gaussians as a checkpoint of splatfacto names them, in main memory."""
    values = {
        "means": gaussians.means, "scales": gaussians.scales, "quats": gaussians.quats,
        "features_dc": gaussians.sh[:, 0], "features_rest": gaussians.sh[:, 1:],
        "opacities": gaussians.opacities[:, None],
    }  # fmt: skip
    state = {f"_model.gauss_params.{name}": value.detach().cpu().contiguous() for name, value in values.items()}
    # A parameter of all of Nerfstudio's models, without values.
    return {**state, "_model.device_indicator_param": torch.empty(0)}
