"""Trained runs from their config.yml, for tools that ask a model instead of rendering its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from zipnerf_ns.engine.messages import quiet_dependencies
from zipnerf_ns.errors import InputError

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline


def load_run(config: Path) -> Pipeline:
    """The trained pipeline without its images.

    Raises:
        InputError: if there is no such run.
    """
    if not config.is_file():
        raise InputError(f"{config} does not exist. Give the config.yml that ns-train wrote.")
    quiet_dependencies()
    # Late: it loads every method's entry point, which takes seconds.
    from nerfstudio.utils.eval_utils import eval_setup

    return eval_setup(config, test_mode="inference")[1]


def data_frame(pipeline: Pipeline) -> tuple[Float[np.ndarray, "3 4"], float]:
    """What the dataparser did to the data set's poses: first the transform, then the scale."""
    outputs = pipeline.datamanager.train_dataparser_outputs
    return outputs.dataparser_transform.double().numpy(), float(outputs.dataparser_scale)
