"""What the benchmark measures on: the method `zipnerf`, trained a little, and the state of one of its batches."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallbackLocation

from zipnerf_ns.cameras.rays import rays_of_bundle
from zipnerf_ns.config import zipnerf
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.engine.trainer import EAGER_STEPS, ZipNerfTrainer, ZipNerfTrainerConfig
from zipnerf_ns.field import ZipNerfDensityField
from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.model_config import ZipNerfModelConfig
from zipnerf_ns.ops import TORCH_OPS, Ops, resolve_ops
from zipnerf_ns.rays import Rays, Round
from zipnerf_ns.tools.benchmark.floors import Ceilings, Cost
from zipnerf_ns.tools.benchmark.timing import BRIEF, THOROUGH, TINY, Effort, synchronize
from zipnerf_ns.zipnerf import ProposalConfig

PAPER_GRIDS = ((6, 1, 16, 512, 21), (8, 1, 16, 2048, 21), (10, 4, 16, 8192, 21))
"""Levels, features, coarsest and finest resolution and log2 of the entries a level, round by round (Zip-NeRF)."""
PAPER_SAMPLES = (64, 64, 32)
"""Intervals a ray, round by round."""


class BenchError(Exception):
    """The benchmark cannot run; the message is all that the person needs."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is that is measured."""

    rays: tuple[int, ...]
    """Of a step; the largest number is that of the operations measured singly."""
    warm_rays: int
    """Of a step of the training beforehand."""
    pictures: tuple[tuple[int, int], ...]
    """Width and height of what is rendered."""
    log2_tables: tuple[int, ...]
    """Log2 of the entries a level for which scaling is measured."""
    loop_steps: tuple[int, int]
    """The fewest and the most steps of the trainer's own loop, multiples of its steps between two logs."""
    is_tiny: bool = False
    """Small tables and networks, few repetitions: to see whether it works, for which its times are no matter."""


FULL = Sizes((4096, 16_384, 65_536), 8192, ((800, 800), (1920, 1080)), (19, 20, 21, 22, 23), (50, 300))
TINY_SIZES = Sizes((16, 32), 32, ((16, 12), (24, 16)), (8, 9, 10), (4, 4), True)


@dataclass
class Row:
    """One line of the report."""

    part: str
    """Of the benchmark, as ``--only`` names it."""
    name: str
    """What was measured."""
    rays: int
    """That it was measured on."""
    stage: str
    """"forward", "backward" or "whole"."""
    ms: dict[str, Optional[float]] = field(default_factory=dict)
    """Median time by implementation; None where it was left out, which ``notes`` explain."""
    floor_ms: Optional[float] = None
    """The least time that it can take on this device."""
    bound_by: Optional[str] = None
    """What that time goes into."""
    cost: Optional[Cost] = None
    """What it needs at least."""
    values: dict[str, Any] = field(default_factory=dict)
    """What else was measured; the name says of what and in which unit."""
    notes: list[str] = field(default_factory=list)


class Batch(NamedTuple):
    """What the model computes of some rays, without gradients, before its losses."""

    rays: Rays
    rounds: tuple[Round, ...]
    """The rendered one last."""
    densities: tuple[Tensor, ...]
    """``[rays, n]`` of each round."""
    channels: tuple[Tensor, ...]
    """The encoding's output for each round."""
    colors: Tensor
    """``[rays, n, 3]`` of the rendered round."""

    def in_rows(self) -> "Batch":
        """The same with channels as torch's encoding lays them out."""
        return self._replace(channels=tuple(channels.contiguous() for channels in self.channels))


@dataclass
class Bench:
    """A trainer in the state on which all is measured, and what is known of the device."""

    trainer: ZipNerfTrainer
    implementations: tuple[Ops, ...]
    """The one that the method uses, then its twin if that is another."""
    ceilings: Ceilings
    sizes: Sizes
    rays: tuple[int, ...]
    """Numbers of rays a step, ascending."""
    twin_seconds: float
    """What is expected to take the twin longer is left out."""
    rows: list[Row] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return self.model.device

    @property
    def model(self) -> ZipNerfModel:
        """The trained model."""
        return self.trainer.pipeline.model

    @property
    def networks(self) -> list[tuple[str, ZipNerfDensityField]]:
        """The rounds' fields with their names, the rendered one last."""
        proposals = [(f"proposal {index}", network) for index, network in enumerate(self.model.proposal_networks)]
        return [*proposals, ("NeRF", self.model.field)]

    def effort(self, ops: Ops) -> Effort:
        """How often an implementation is measured."""
        if self.sizes.is_tiny:
            return TINY
        return THOROUGH if ops is self.implementations[0] else BRIEF

    def bundle(self, rays: int) -> RayBundle:
        """A batch of training rays."""
        set_rays(self.trainer, rays)
        return self.trainer.pipeline.datamanager.next_train(0)[0]

    @contextmanager
    def using(self, ops: Ops) -> Iterator[None]:
        """Within, the model runs on an implementation."""
        config, before = self.model.config, self.model.config.implementation
        config.implementation = ops.name
        try:
            yield
        finally:
            config.implementation = before

    def floor(self, row: Row, cost: Cost) -> Row:
        """The row, with its floor filled in."""
        row.cost = cost
        row.floor_ms, row.bound_by = self.ceilings.floor(cost)
        return row


def bench_config(data: Path, output: Path, warm_steps: int, sizes: Sizes, implementation: str) -> ZipNerfTrainerConfig:
    """The method `zipnerf` as `ns-train` would run it on a scene, with a schedule as long as the training beforehand.

    Args:
        data: in Nerfstudio's or Blender's format.
        output: folder for what the trainer writes.
        warm_steps: of the training beforehand, at whose end the schedules end.
        sizes: tiny ones also shrink the model.
        implementation: of everything that has several.
    Raises:
        BenchError: if the scene is in neither format, or the method no longer has the paper's sizes.
    """
    config = copy.deepcopy(zipnerf.config)
    config.output_dir, config.experiment_name, config.timestamp = output, "bench", "run"
    config.vis, config.max_num_iterations = "tensorboard", warm_steps
    config.viewer.quit_on_train_completion = True
    manager, model = config.pipeline.datamanager, config.pipeline.model
    manager.data, manager.train_num_rays_per_batch = data, sizes.warm_rays
    if (data / "transforms_train.json").is_file():
        manager.dataparser = BlenderDataParserConfig()
    elif data.suffix != ".json" and not (data / "transforms.json").is_file():
        raise BenchError(f"{data} has neither transforms.json nor transforms_train.json.")
    model.implementation = manager.ray_implementation = implementation
    check_paper_sizes(model)
    if sizes.is_tiny:
        config.pipeline.model = shrunken(model)
    return config


def check_paper_sizes(model: ZipNerfModelConfig) -> None:
    """Whether what is measured is the paper's model.

    Raises:
        BenchError: naming what differs.
    """
    grids = tuple(
        (grid.num_levels, grid.features_per_level, grid.base_res, grid.max_res, grid.log2_hashmap_size)
        for grid in (*(proposal.grid for proposal in model.proposals), model.grid)
    )
    samples = (*(proposal.num_samples for proposal in model.proposals), model.num_samples)
    if (grids, samples, model.prefilter) != (PAPER_GRIDS, PAPER_SAMPLES, "multisample"):
        raise BenchError(f"the method zipnerf does not have the paper's sizes: {grids}, {samples}, {model.prefilter}.")


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


def start_trainer(config: ZipNerfTrainerConfig) -> ZipNerfTrainer:
    """A trainer as `ns-train` sets it up, with fixed random numbers.

    Raises:
        BenchError: if the scene's cameras are of a kind whose rays the method does not draw itself.
    """
    torch.manual_seed(0)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    if trainer.pipeline.datamanager.pixels is None:
        raise BenchError("the scene's cameras are equirectangular or cropped fisheyes: give another with --data.")
    return trainer


def warm_up(trainer: ZipNerfTrainer, steps: int) -> float:
    """Trains, so that rays meet surfaces and intervals lie where they lie in practice.

    Returns:
        Seconds of the first steps, up to the first that is replayed: kernels are compiled in them, or read from disk.
    """
    trainer.pipeline.train()
    device, begin, first_seconds = trainer.pipeline.model.device, time.perf_counter(), 0.0
    for step in range(steps):
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        trainer.train_iteration(step)
        if step <= EAGER_STEPS:
            synchronize(device)
            first_seconds = time.perf_counter() - begin
    return first_seconds


def choose_implementations(implementation: str, device: torch.device, with_twin: bool) -> tuple[Ops, ...]:
    """What is measured: an implementation, and its torch twin if it is another."""
    chosen = resolve_ops(implementation, device)
    return (chosen, TORCH_OPS) if with_twin and chosen.name != TORCH_OPS.name else (chosen,)


def set_rays(trainer: ZipNerfTrainer, rays: int) -> None:
    """Sets the rays of a training step."""
    manager = trainer.pipeline.datamanager
    manager.config.train_num_rays_per_batch = rays
    manager.train_pixel_sampler.set_num_rays_per_batch(rays)


def model_rays(model: ZipNerfModel, bundle: RayBundle) -> Rays:
    """A bundle's rays as the model takes them."""
    return rays_of_bundle(bundle, model.config.near_plane, model.config.far_plane, model.zipnerf.aabb)


@torch.no_grad()
def capture(model: ZipNerfModel, bundle: RayBundle, ops: Ops) -> Batch:
    """Everything that the model computes of a bundle; in training mode with training's random numbers."""
    rays = model_rays(model, bundle)
    densities: list[Tensor] = []

    def density_fn(network: ZipNerfDensityField) -> Any:
        def density(rays: Rays, tdist: Tensor) -> Tensor:
            densities.append(network.density(rays, tdist, ops))
            return densities[-1]

        return density

    sampled = model.zipnerf.sampler(rays, [density_fn(network) for network in model.proposal_networks], ops, 1.0)
    radiance = model.field(rays, sampled.tdist, ops)
    weights, _, _ = ops.render(radiance.density, sampled.tdist, rays.valid, radiance.colors)
    rounds = (*sampled.proposals, Round(sampled.sdist, sampled.tdist, weights))
    channels = [
        network.channels(rays, proposal.tdist, ops)
        for network, proposal in zip(model.proposal_networks, sampled.proposals, strict=True)
    ]
    return Batch(
        rays, rounds, (*densities, radiance.density), (*channels, radiance.channels), radiance.colors
    )
