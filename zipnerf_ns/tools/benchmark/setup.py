"""What the benchmark measures on: the method `zipnerf`, trained a little on a scene."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch

from nerfstudio.engine.callbacks import TrainingCallbackLocation

from zipnerf_ns.config import zipnerf
from zipnerf_ns.data.dataparsers.formats import parser_for
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.engine.trainer import ZipNerfTrainer, ZipNerfTrainerConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.model_config import ZipNerfModelConfig
from zipnerf_ns.ops import Ops
from zipnerf_ns.settings import ProposalConfig
from zipnerf_ns.tools.benchmark.floors import Amounts


class Sizes(NamedTuple):
    """How large everything is that is measured."""

    rays: tuple[int, ...]
    """Rays of a step; pieces are measured at the largest number."""
    warm_steps: int
    """Steps of the training beforehand."""
    warm_rays: int
    """Rays of each of them."""
    pictures: tuple[tuple[int, int], ...]
    """Width and height of what is rendered."""
    loop_steps: int
    """Steps of the trainer's own loop that are timed before an evaluation, and from it on."""
    seconds: float
    """Time over which each work's calls are counted."""
    is_tiny: bool
    """Whether the model is a small one: to see whether it works, for which times are no matter."""


FULL = Sizes((8192, 65_536), 300, 8192, ((800, 800), (1920, 1080)), 200, 0.5, False)
TINY = Sizes((16, 32), 3, 32, ((16, 12), (24, 16)), 4, 0.02, True)


@dataclass
class Row:
    """One line of the report."""

    part: str
    """Part of the benchmark, as ``--only`` names it."""
    name: str
    """What was measured."""
    rays: int
    """Rays that it was measured on."""
    values: dict[str, float] = field(default_factory=dict)
    """Figures by their columns, which say of what and in which unit."""


@dataclass
class Bench:
    """A trained trainer, what is measured on it, and what was."""

    trainer: ZipNerfTrainer
    implementations: tuple[Ops, ...]
    """The one that the method uses, then its torch twin if that is another and is measured."""
    rates: Amounts
    """What the device reaches in a second."""
    sizes: Sizes
    twin_seconds: float
    """What is expected to take the twin longer is left out."""
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What was not measured, and why."""

    @property
    def model(self) -> ZipNerfModel:
        """The trained model."""
        return self.trainer.pipeline.model

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return self.model.device

    def is_twin(self, ops: Ops) -> bool:
        """Whether an implementation is not the one that the method uses."""
        return ops is not self.implementations[0]

    def set_rays(self, rays: int) -> None:
        """Sets the number of rays of a training step."""
        manager = self.trainer.pipeline.datamanager
        manager.config.train_num_rays_per_batch = rays
        manager.train_pixel_sampler.set_num_rays_per_batch(rays)

    def row(self, part: str, name: str, rays: int) -> Row:
        """The report's row of that name; begun if there is none."""
        found = next((row for row in self.rows if (row.part, row.name) == (part, name)), None)
        if found is None:
            self.rows.append(found := Row(part, name, rays))
        return found

    @contextmanager
    def running(self, ops: Ops, what: str) -> Iterator[None]:
        """Within, the model runs on an implementation; what the twin has no memory for is left out."""
        try:
            with patch.object(self.model.config, "implementation", ops.name):
                # Asking for the operations tells all parts of the model.
                _ = self.model.zipnerf.ops
                yield
        except torch.cuda.OutOfMemoryError:
            if not self.is_twin(ops):
                raise
            torch.cuda.empty_cache()
            self.left_out.append(f"{what}, {ops.name}: out of memory")
        finally:
            _ = self.model.zipnerf.ops


def training_config(
    method: ZipNerfTrainerConfig, data: Path, output: Path, steps: int, rays: int
) -> ZipNerfTrainerConfig:
    """A method's training on a scene as `ns-train` would run it, that ends by itself.

    Args:
        method: its configuration.
        data: folder or transforms file of a scene in one of our formats.
        output: folder for what the trainer writes.
        steps, rays: of the training, and of each step.
    """
    config = copy.deepcopy(method)
    config.output_dir, config.experiment_name, config.timestamp = output, "measured", "run"
    config.vis, config.max_num_iterations = "tensorboard", steps
    config.viewer.quit_on_train_completion = True
    manager = config.pipeline.datamanager
    manager.data, manager.train_num_rays_per_batch, manager.dataparser = data, rays, parser_for(data)
    return config


def bench_config(data: Path, output: Path, sizes: Sizes) -> ZipNerfTrainerConfig:
    """The method `zipnerf` as `ns-train` would run it on a scene, with a schedule as long as the training beforehand.

    Args:
        data: folder or transforms file of a scene in one of our formats.
        output: folder for what the trainer writes.
        sizes: of the training; tiny ones also shrink the model.
    """
    config = training_config(zipnerf.config, data, output, sizes.warm_steps, sizes.warm_rays)
    if sizes.is_tiny:
        config.pipeline.model = shrunken(config.pipeline.model)
    return config


def shrunken(model: ZipNerfModelConfig) -> ZipNerfModelConfig:
    """A model of the same structure for a CPU's patience."""
    proposals = (
        ProposalConfig(8, HashGridConfig(2, 1, 8, 16, 10), 32, 0.03),
        ProposalConfig(8, HashGridConfig(3, 1, 8, 32, 10), 32, 0.003),
    )
    return dataclasses.replace(
        model, proposals=proposals, num_samples=4, grid=HashGridConfig(4, 4, 8, 64, 10), hidden_dim=32,
        bottleneck_dim=8, color_dim=64,
    )  # fmt: skip


def trained(config: ZipNerfTrainerConfig) -> ZipNerfTrainer:
    """A trainer as `ns-train` sets it up, trained so far that rays meet surfaces and intervals lie where they do.

    Raises:
        InputError: if the scene's cameras are of a kind whose rays the method does not draw itself.
    """
    torch.manual_seed(0)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    if trainer.pipeline.datamanager.pixels is None:
        raise InputError("the scene's cameras are equirectangular or cropped fisheyes: give another with --data.")
    trainer.pipeline.train()
    for step in range(config.max_num_iterations):
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        trainer.train_iteration(step)
    return trainer
