"""The pieces of a training step, each by itself on the state of a real batch, with what each needs at least."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zipnerf_ns import losses
from zipnerf_ns.cameras.rays import PixelRays
from zipnerf_ns.encoding import AntiAliasedHashEncoding, HashGridConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.field import ZipNerfDensityField, ZipNerfField
from zipnerf_ns.functional.cones import Cones
from zipnerf_ns.ops import Ops
from zipnerf_ns.tools.benchmark.floors import SECTOR_BYTES, Cost, LevelCount, count_levels, num_bytes
from zipnerf_ns.tools.benchmark.setup import Batch, Bench, capture, model_rays
from zipnerf_ns.tools.benchmark.timing import Effort, time_stages

Tensors = tuple[Tensor, ...]

WORK_PARTS = ("encode", "mlp", "rays", "loss")
"""The benchmark's parts that consist of works."""
SCALING_EFFORT = Effort(2, 5, 15, 0.08)
SAMPLES = (16, 24, 32, 48, 64)
FEATURES = (1, 2, 4, 8)
TOLERANCE = 0.15
"""By which an exponent may miss 1 and still be called linear: caches and launches are not free of size."""


@dataclass
class Work:
    """One piece of a step."""

    part: str
    """Of the benchmark."""
    name: str
    """Within the part."""
    run: Callable[[], Tensors]
    """The forward pass."""
    reads: Tensors
    """What it must read, a hash table apart."""
    leaves: Tensors = ()
    """What the backward pass gives gradients to; none where there is no backward pass."""
    products: float = 0.0
    """Operations of the forward pass's matrix products."""
    touched: LevelCount = LevelCount(0.0, 0.0)
    """Of a hash table, all levels together."""

    def forward(self, _: Any = None) -> Tensors:
        """The outputs, with what the backward pass needs if there is one."""
        with torch.set_grad_enabled(bool(self.leaves)):
            return self.run()

    def cotangents(self, outputs: Tensors) -> Tensors:
        """Random ones for the outputs that have gradients, laid out in memory as these are."""
        return tuple(torch.randn_like(output) for output in outputs if output.requires_grad)

    def backward(self, outputs: Tensors, cotangents: Tensors) -> Sequence[Tensor | None]:
        """The leaves' gradients."""
        differentiable = [output for output in outputs if output.requires_grad]
        return torch.autograd.grad(differentiable, self.leaves, cotangents, allow_unused=True)

    def costs(self) -> tuple[Cost, ...]:
        """What the forward pass, and the backward pass if there is one, need at least; runs the former once."""
        outputs, reads = self.forward(), num_bytes(self.reads)
        memory = reads + num_bytes(outputs) + self.touched.distinct * SECTOR_BYTES
        forward = Cost(memory, self.touched.per_ray * SECTOR_BYTES, self.products)
        if not self.leaves:
            return (forward,)
        cotangents = num_bytes([output for output in outputs if output.requires_grad])
        memory = reads + cotangents + num_bytes(self.leaves)
        return forward, Cost(memory, 0.0, 2.0 * self.products, self.touched.per_ray)

    def time(self, device: torch.device, effort: Effort) -> tuple[float, ...]:
        """Median times of the forward pass, and of the backward pass if there is one, ms."""
        if not self.leaves:
            return time_stages(device, [self.forward], effort)
        cotangents = self.cotangents(self.forward())
        return time_stages(device, [self.forward, lambda outputs: self.backward(outputs, cotangents)], effort)


Counts = Sequence[Sequence[LevelCount]]
"""Of each round's grid, level by level."""


def measure_works(bench: Bench, parts: Collection[str]) -> None:
    """Times the works of some parts at the largest number of rays, on every implementation."""
    rays = bench.rays[-1]
    bench.model.train()
    batch = capture(bench.model, bench.bundle(rays))
    counts = count_rounds(bench, batch)
    for ops in bench.implementations:
        with bench.using(ops):
            own = batch.in_rows() if bench.is_twin(ops) else batch
            for work in _works_of(bench, own, counts, parts):
                # A twin's work costs what the method's own does.
                costs = (None, None)[: 1 + bool(work.leaves)] if bench.is_twin(ops) else work.costs()
                stages = zip(("forward", "backward"), costs, strict=False)
                rows = [bench.row(work.part, work.name, rays, stage, cost) for stage, cost in stages]
                with bench.lacking(ops, rows):
                    for row, milliseconds in zip(rows, work.time(bench.device, bench.effort(ops)), strict=True):
                        row.ms[ops.name] = milliseconds


def _works_of(bench: Bench, batch: Batch, counts: Counts, parts: Collection[str]) -> Iterator[Work]:
    yield from (work for work in works(bench, batch, counts) if work.part in parts)
    if "rays" in parts:
        yield pixel_work(bench, len(batch.rays.origins))
    if "encode" in parts:
        yield from level_works(bench, batch, counts)


def count_rounds(bench: Bench, batch: Batch) -> Counts:
    """What a batch touches of all rounds' tables."""
    return [
        count_levels(network.encoding.grid, network.cones(batch.rays, a_round.tdist), network.encoding.prefilter)
        for (_, network), a_round in zip(bench.networks, batch.rounds, strict=True)
    ]


def works(bench: Bench, batch: Batch, counts: Counts) -> list[Work]:
    """All pieces between rays and losses; without gradients, and without losses, if the model is in evaluation mode."""
    pieces = []
    for index, (name, network) in enumerate(bench.networks):
        cones = network.cones(batch.rays, batch.rounds[index].tdist)
        dtype = batch.channels[index].dtype
        pieces.append(_encode("encode", name, network.encoding, cones, dtype, counts[index]))
        pieces.append(_network(name, network, batch, index))
    pieces += [_draw(bench, batch), _weights(batch, bench.ops), _render(batch, bench.ops)]
    if bench.model.training:
        return [*pieces, *_losses(bench, batch)]
    return [dataclasses.replace(piece, leaves=()) for piece in pieces]


def _encode(
    part: str, name: str, encoding: AntiAliasedHashEncoding, cones: Cones, dtype: torch.dtype,
    counts: Sequence[LevelCount] = (),
) -> Work:  # fmt: skip
    touched = LevelCount(sum((count.per_ray for count in counts), 0.0), sum((count.distinct for count in counts), 0.0))
    reads = tuple(tensor for tensor in cones if tensor is not None)
    return Work(part, name, lambda: (encoding(cones, dtype=dtype),), reads, (encoding.hash_table,), touched=touched)


def level_works(bench: Bench, batch: Batch, counts: Counts) -> Iterator[Work]:
    """The encodings level by level, each of them a table by itself."""
    for index, (name, network) in enumerate(bench.networks):
        cones, whole = network.cones(batch.rays, batch.rounds[index].tdist), network.encoding
        for level, count in zip(whole.grid.levels, counts[index], strict=True):
            n, features = level.resolution, whole.grid.features_per_level
            log2_size = max((level.size - 1).bit_length(), 4)
            alone = _encoding(bench, HashGridConfig(1, features, n, n, log2_size))
            with torch.no_grad():
                alone.hash_table.copy_(whole.hash_table[level.offset : level.offset + level.size])
            yield _encode("level", f"{name} {n}", alone, cones, batch.channels[index].dtype, [count])


def _encoding(bench: Bench, config: HashGridConfig) -> AntiAliasedHashEncoding:
    """One by itself, on what the model runs on."""
    encoding = AntiAliasedHashEncoding(config, bench.model.config.prefilter).to(bench.device)
    encoding.ops = bench.ops
    return encoding


@contextmanager
def _given(network: ZipNerfDensityField, channels: Tensor) -> Iterator[None]:
    """Within, a field reads these channels instead of its encoding's: what is left is its network."""
    network.channels = lambda *_: channels
    try:
        yield
    finally:
        del network.channels


def _network(name: str, network: ZipNerfDensityField, batch: Batch, index: int) -> Work:
    channels = batch.channels[index].detach().requires_grad_()
    tdist, is_rendered = batch.rounds[index].tdist, isinstance(network, ZipNerfField)

    def run() -> Tensors:
        with _given(network, channels):
            if is_rendered:
                return tuple(network(batch.rays, tdist)[:2])
            return (network.density(batch.rays, tdist),)

    leaves = (channels, *(p for key, p in network.named_parameters() if not key.endswith("hash_table")))
    reads = (*leaves, batch.rays.directions) if is_rendered else leaves
    return Work("mlp", name, run, reads, leaves, 2.0 * _num_weights(network, len(channels), len(tdist)))


def _num_weights(network: ZipNerfDensityField, intervals: int, rays: int) -> float:
    """Multiplications of all matrix products: those over the view direction once a ray."""
    if isinstance(network, ZipNerfField) and network.is_foldable:
        w = network.folded()
        matrices = (w.hidden, w.density, w.first, *w.middle, w.last, w.last_hidden, w.rgb)
        per_ray = w.first_view.numel() + w.last_view.numel()
    else:
        named = network.named_parameters()
        matrices = tuple(p for key, p in named if p.ndim == 2 and not key.startswith(("encoding", "appearance.codes")))
        per_ray = 0
    return float(intervals * sum(matrix.numel() for matrix in matrices) + rays * per_ray)


def _draw(bench: Bench, batch: Batch) -> Work:
    near, far, ops = batch.rays.near, batch.rays.far, bench.ops
    jitter = torch.rand_like(near) if bench.model.training else None
    counts = bench.model.zipnerf.sampler.num_samples
    drawn_from = [(None, None), *((a_round.sdist, a_round.weights) for a_round in batch.rounds[:-1])]

    def run() -> Tensors:
        drawn = [
            ops.draw_intervals(*histogram, count, jitter, 1.0, near, far)
            for histogram, count in zip(drawn_from, counts, strict=True)
        ]
        return tuple(tensor for fenceposts in drawn for tensor in fenceposts)

    reads = (near, far, jitter, *(tensor for histogram in drawn_from[1:] for tensor in histogram))
    return Work("rays", "draw intervals", run, tuple(tensor for tensor in reads if tensor is not None))


def _weights(batch: Batch, ops: Ops) -> Work:
    leaves = tuple(density.detach().requires_grad_() for density in batch.densities[:-1])
    tdists, valid = [a_round.tdist for a_round in batch.rounds[:-1]], batch.rays.valid

    def run() -> Tensors:
        pairs = zip(leaves, tdists, strict=True)
        return tuple(ops.density_to_weights(density, tdist, valid) for density, tdist in pairs)

    return Work("rays", "proposals' weights", run, (*leaves, *tdists, valid), leaves)


def _render(batch: Batch, ops: Ops) -> Work:
    density, colors = (tensor.detach().requires_grad_() for tensor in (batch.densities[-1], batch.colors))
    reads = (density, batch.rounds[-1].tdist, batch.rays.valid, colors)
    return Work("rays", "render", lambda: tuple(ops.render(*reads)), reads, (density, colors))


def _losses(bench: Bench, batch: Batch) -> list[Work]:
    ops, widths = bench.ops, [proposal.blur_halfwidth for proposal in bench.model.config.proposals]
    rounds = [a_round._replace(weights=a_round.weights.detach().requires_grad_()) for a_round in batch.rounds]
    main, weights = rounds[-1], tuple(a_round.weights for a_round in rounds)
    histograms = (*weights, *(a_round.sdist for a_round in rounds))
    return [
        Work("loss", "interlevel", lambda: (losses.interlevel_loss(rounds, widths, ops),), histograms, weights[:-1]),
        Work(
            "loss", "distortion", lambda: (losses.distortion_loss(main, ops),), (main.tdist, main.weights), weights[-1:]
        ),
    ]  # fmt: skip


def pixel_work(bench: Bench, rays: int) -> Work:
    """Drawing a batch's pixels, generating their rays, and the rays' limits."""
    manager = bench.trainer.pipeline.datamanager
    chosen = manager.train_ray_generator
    if bench.is_twin(bench.ops):
        chosen = PixelRays(manager.train_dataset.cameras, bench.device, bench.ops.name)

    def run() -> Tensors:
        bundle, batch = chosen.sample(manager.pixels, rays)
        return (batch["image"], *(tensor for tensor in model_rays(bench.model, bundle) if tensor is not None))

    return Work("rays", "pixels and rays", run, ())


def optimizer_cost(bench: Bench) -> Cost:
    """Values, gradients and two moments are read; values and moments are written."""
    return Cost(7.0 * num_bytes([network.encoding.hash_table for _, network in bench.networks]))


def measure_optimizer(bench: Bench) -> None:
    """Times a step of the hash tables' optimizer after a real backward pass, at rate 0: the tables stay as they are."""
    bench.set_rays(bench.rays[-1])
    bench.model.train()
    bench.trainer.train_iteration(0)
    tables = [network.encoding.hash_table for _, network in bench.networks]
    if any(table.grad is None for table in tables):
        raise InputError("a training step left no gradients of the hash tables: the optimizer cannot be measured.")
    row = bench.row("optimizer", "hash tables", bench.rays[-1], cost=optimizer_cost(bench))
    config = bench.trainer.config.optimizers["hash_tables"]["optimizer"]
    for ops in bench.implementations:
        optimizer = dataclasses.replace(config, lr=0.0, implementation=ops.name).setup(tables)
        optimizer.adopt(bench.model.zipnerf.tables())
        (row.ms[ops.name],) = time_stages(
            bench.device, [lambda _, optimizer=optimizer: optimizer.step()], bench.effort(ops)
        )


def measure_scaling(bench: Bench) -> None:
    """Times how the rendered round's encoding grows with rays, samples, levels, features and entries, one by one."""
    bench.model.train()
    ops = bench.ops
    batch = capture(bench.model, bench.bundle(bench.rays[-1]))
    for sweep, values, cases in _sweeps(bench, batch):
        times = []
        for grid, cones in cases:
            work = _encode("scaling", sweep, _encoding(bench, grid), cones, batch.channels[-1].dtype)
            times.append(work.time(bench.device, bench.effort(ops, SCALING_EFFORT)))
        wholes = [sum(pair) for pair in times]
        exponent = slope(values, wholes)
        bench.row("scaling", sweep, bench.rays[-1]).values = {
            "values": list(values), f"{ops.name} forward ms": [forward for forward, _ in times],
            f"{ops.name} backward ms": [backward for _, backward in times], "ms": wholes, "exponent": exponent,
            "verdict": verdict(exponent),
        }  # fmt: skip


def _sweeps(bench: Bench, batch: Batch) -> Iterator[tuple[str, Sequence[int], Iterator[tuple[HashGridConfig, Cones]]]]:
    """What is varied, over which values, and the grid and intervals of each value, made when they are needed."""
    grid = bench.model.config.grid
    usual = bench.model.field.cones(batch.rays, batch.rounds[-1].tdist)
    near, far, before = batch.rays.near, batch.rays.far, batch.rounds[-2]

    def first(rays: int) -> Cones:
        return Cones(*(tensor if tensor is None else tensor[:rays] for tensor in usual[:-1]), usual.aabb)

    def drawn(samples: int) -> Cones:
        jitter = torch.rand_like(near)
        _, tdist = bench.ops.draw_intervals(before.sdist, before.weights, samples, jitter, 1.0, near, far)
        return bench.model.field.cones(batch.rays, tdist)

    rays = [bench.rays[-1] // part for part in (8, 4, 2, 1)]
    yield "rays", rays, ((grid, first(count)) for count in rays)
    yield "samples a ray", SAMPLES, ((grid, drawn(count)) for count in SAMPLES)
    levels = sorted({max(2, round(grid.num_levels * share)) for share in (0.4, 0.7, 1.0)})
    log2_tables = bench.sizes.log2_tables
    for sweep, name, settings, values in (
        ("levels", "num_levels", levels, levels),
        ("features a level", "features_per_level", FEATURES, FEATURES),
        ("entries a level", "log2_hashmap_size", log2_tables, [2**size for size in log2_tables]),
    ):
        yield sweep, values, ((dataclasses.replace(grid, **{name: setting}), usual) for setting in settings)


def slope(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The exponent p of the power law times = c * sizes^p that fits best, by least squares of the logarithms."""
    fit = statistics.linear_regression([math.log(size) for size in sizes], [math.log(time) for time in times])
    return fit.slope


def verdict(exponent: float) -> str:
    """An exponent in words."""
    if abs(exponent - 1.0) <= TOLERANCE:
        return "linear"
    return "less than linear" if exponent < 1.0 else "MORE THAN LINEAR"
