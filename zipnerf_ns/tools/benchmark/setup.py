"""What the benchmark measures on: the method `zipnerf`, trained a little, and the state of one of its batches."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallbackLocation

from zipnerf_ns.cameras.rays import rays_of_bundle
from zipnerf_ns.config import zipnerf
from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.engine.trainer import EAGER_STEPS, ZipNerfTrainer, ZipNerfTrainerConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.field import ZipNerfDensityField
from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.model_config import ZipNerfModelConfig
from zipnerf_ns.ops import TORCH_OPS, Ops, resolve_ops
from zipnerf_ns.rays import Rays, Round
from zipnerf_ns.tools.benchmark.floors import Ceilings, Cost
from zipnerf_ns.tools.benchmark.timing import BRIEF, THOROUGH, TINY, Effort, synchronize
from zipnerf_ns.zipnerf import ProposalConfig


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
    ms: dict[str, float | None] = field(default_factory=dict)
    """Median time by implementation; None where it was left out, which ``notes`` explain."""
    floor_ms: float | None = None
    """The least time that it can take on this device."""
    bound_by: str | None = None
    """What that time goes into."""
    cost: Cost | None = None
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

    @property
    def ops(self) -> Ops:
        """What the model runs on now."""
        return self.model.zipnerf.ops

    def is_twin(self, ops: Ops) -> bool:
        """Whether an implementation is not the one that the method uses."""
        return ops is not self.implementations[0]

    def effort(self, ops: Ops, own: Effort = THOROUGH, twin: Effort = BRIEF) -> Effort:
        """How often an implementation is measured."""
        return TINY if self.sizes.is_tiny else twin if self.is_twin(ops) else own

    def set_rays(self, rays: int) -> None:
        """Sets the rays of a training step."""
        manager = self.trainer.pipeline.datamanager
        manager.config.train_num_rays_per_batch = rays
        manager.train_pixel_sampler.set_num_rays_per_batch(rays)

    def bundle(self, rays: int) -> RayBundle:
        """A batch of training rays."""
        self.set_rays(rays)
        return self.trainer.pipeline.datamanager.next_train(0)[0]

    @contextmanager
    def using(self, ops: Ops) -> Iterator[None]:
        """Within, the model runs on an implementation."""
        config, before = self.model.config, self.model.config.implementation
        config.implementation = ops.name
        try:
            # Asking for the operations tells all parts of the model.
            _ = self.ops
            yield
        finally:
            config.implementation = before
            _ = self.ops

    def row(self, part: str, name: str, rays: int, stage: str = "whole", cost: Cost | None = None) -> Row:
        """The report's row of that name and stage; begun if there is none, with the floor of its cost."""
        known = [row for row in self.rows if (row.part, row.name, row.stage) == (part, name, stage)]
        if known:
            return known[0]
        row = Row(part, name, rays, stage, cost=cost)
        if cost is not None:
            row.floor_ms, row.bound_by = self.ceilings.floor(cost)
        self.rows.append(row)
        return row

    @contextmanager
    def lacking(self, ops: Ops, rows: Sequence[Row]) -> Iterator[None]:
        """Within, the twin may run out of memory, which its rows then say."""
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            if not self.is_twin(ops):
                raise
            torch.cuda.empty_cache()
            leave_out(rows, ops, "out of memory")


def leave_out(rows: Sequence[Row], ops: Ops, reason: str) -> None:
    """Says of rows why an implementation was not measured."""
    for row in rows:
        row.ms[ops.name] = None
        row.notes.append(f"{ops.name}: {reason}")


def bench_config(data: Path, output: Path, warm_steps: int, sizes: Sizes, implementation: str) -> ZipNerfTrainerConfig:
    """The method `zipnerf` as `ns-train` would run it on a scene, with a schedule as long as the training beforehand.

    Args:
        data: in any format that multiscale-data reads.
        output: folder for what the trainer writes.
        warm_steps: of the training beforehand, at whose end the schedules end.
        sizes: tiny ones also shrink the model.
        implementation: of everything that has several.
    """
    config = copy.deepcopy(zipnerf.config)
    config.output_dir, config.experiment_name, config.timestamp = output, "bench", "run"
    config.vis, config.max_num_iterations = "tensorboard", warm_steps
    config.viewer.quit_on_train_completion = True
    manager, model = config.pipeline.datamanager, config.pipeline.model
    manager.data, manager.train_num_rays_per_batch = data, sizes.warm_rays
    manager.dataparser = MultiscaleDataParserConfig(data=data).source()
    model.implementation = manager.ray_implementation = implementation
    if sizes.is_tiny:
        config.pipeline.model = shrunken(model)
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


def start_trainer(config: ZipNerfTrainerConfig) -> ZipNerfTrainer:
    """A trainer as `ns-train` sets it up, with fixed random numbers.

    Raises:
        InputError: if the scene's cameras are of a kind whose rays the method does not draw itself.
    """
    torch.manual_seed(0)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    if trainer.pipeline.datamanager.pixels is None:
        raise InputError("the scene's cameras are equirectangular or cropped fisheyes: give another with --data.")
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


def model_rays(model: ZipNerfModel, bundle: RayBundle) -> Rays:
    """A bundle's rays as the model takes them."""
    return rays_of_bundle(bundle, model.config.near_plane, model.config.far_plane, model.zipnerf.aabb)


@torch.no_grad()
def capture(model: ZipNerfModel, bundle: RayBundle) -> Batch:
    """Everything that the model computes of a bundle; in training mode with training's random numbers."""
    rays = model_rays(model, bundle)
    rendering = model.zipnerf(rays)
    *proposals, _ = rendering.rounds
    pairs = list(zip(model.proposal_networks, proposals, strict=True))
    densities = [network.density(rays, proposal.tdist) for network, proposal in pairs]
    channels = [network.channels(rays, proposal.tdist) for network, proposal in pairs]
    radiance = rendering.radiance
    return Batch(
        rays, tuple(rendering.rounds), (*densities, radiance.density), (*channels, radiance.channels), radiance.colors
    )
