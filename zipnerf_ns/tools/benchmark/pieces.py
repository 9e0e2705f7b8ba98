"""The pieces of a step: its operations' own calls, recorded and run again one by one, with what each needs at least."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from nerfstudio.cameras.rays import RayBundle

from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.ops import Ops
from zipnerf_ns.render.viewer import Asked
from zipnerf_ns.tools.benchmark.floors import SECTOR_BYTES, Amounts, Sectors, count_sectors, floor_ms, num_bytes
from zipnerf_ns.tools.benchmark.setup import Bench
from zipnerf_ns.tools.benchmark.timing import median_ms

PART_OF = {
    "cone_encode": "encode", "join_channels": "encode", "density_mlp": "mlp", "radiance_mlp": "mlp",
    "encode_directions": "mlp", "draw_intervals": "rays", "density_to_weights": "rays", "render": "rays",
    "interlevel": "loss", "distortion": "loss", "group_channels": "mlp",
}  # fmt: skip
"""The operations that are recorded, and the part of the benchmark in which each is reported."""
PIECES = (*dict.fromkeys(PART_OF.values()), "optimizer")
"""Parts of the benchmark that together are a step."""
LEVELS = "levels"
"""The part that measures the encodings level by level, each a table by itself."""

Call = tuple[str, tuple[Any, ...]]
"""An operation's name, and its arguments."""


@dataclass(frozen=True)
class Piece:
    """One piece of a step."""

    part: str
    """Part of the benchmark, as ``--only`` names it."""
    name: str
    """Name within the part."""
    run: Callable[[], Any]
    """The forward pass."""
    reads: Sequence[Tensor]
    """What it must read, a hash table apart."""
    leaves: Sequence[Tensor] = ()
    """What the backward pass gives gradients to; none where there is no backward pass."""
    products: float = 0.0
    """Operations of the forward pass's matrix products."""
    sectors: Callable[[], Sectors] = Sectors
    """Counts what is touched of a hash table."""

    def forward(self) -> list[Tensor]:
        """The outputs, with what the backward pass needs if there is one."""
        with torch.set_grad_enabled(bool(self.leaves)):
            return tree_leaves(self.run())

    def cotangents(self) -> list[Tensor]:
        """Random ones for the outputs that have gradients, laid out in memory as these are."""
        return [torch.randn_like(output) for output in self.forward() if output.requires_grad]

    def gradients(self, cotangents: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The leaves' gradients, by a forward and a backward pass."""
        outputs = [output for output in self.forward() if output.requires_grad]
        return torch.autograd.grad(outputs, self.leaves, cotangents, allow_unused=True)

    def needs(self) -> list[Amounts]:
        """What the forward pass, and the backward pass if there is one, need at least; runs the former once."""
        outputs, reads, sectors = self.forward(), num_bytes(self.reads), self.sectors()
        memory = reads + num_bytes(outputs) + sectors.distinct * SECTOR_BYTES
        forward = Amounts(memory, sectors.per_ray * SECTOR_BYTES, self.products)
        if not self.leaves:
            return [forward]
        memory = reads + num_bytes(o for o in outputs if o.requires_grad) + num_bytes(self.leaves)
        return [forward, Amounts(memory, 0.0, 2.0 * self.products, sectors.per_ray)]


@contextmanager
def recording(model: ZipNerfModel, ops: Ops) -> Iterator[list[Call]]:
    """Within, a model runs on an implementation, and the calls of its operations are listed."""
    calls: list[Call] = []

    def noted(name: str) -> Callable:
        def call(*arguments: Any) -> Any:
            calls.append((name, arguments))
            return getattr(ops, name)(*arguments)

        return call

    recorder = ops._replace(**{name: noted(name) for name in PART_OF})
    try:
        with patch("zipnerf_ns.zipnerf.resolve_ops", lambda *_: recorder):
            yield calls
    finally:
        # Asking for the operations tells all parts of the model.
        _ = model.zipnerf.ops


def step_pieces(bench: Bench, ops: Ops, rays: int) -> list[Piece]:
    """All pieces of a training step; of a twin's without the pixels, which stay the method's own."""
    own = [] if bench.is_twin(ops) else [_pixels(bench)]
    return [*_pieces(_record_step(bench, ops, rays), ops), *own, _optimizer(bench, ops)]


def picture_pieces(bench: Bench, ops: Ops, bundle: RayBundle, asked: Asked) -> list[Piece]:
    """The pieces of rendering some rays of a picture, whole squares of them; they have no backward pass."""
    bench.model.eval()
    with torch.no_grad(), recording(bench.model, ops) as calls:
        bench.model._render(bundle, asked.view, asked.side, asked.widening)
    return [dataclasses.replace(piece, leaves=()) for piece in _pieces(calls, ops)]


def measure_pieces(bench: Bench, parts: Collection[str]) -> None:
    """Times the pieces of some parts at the largest number of rays, on every implementation."""
    rays, seconds = bench.sizes.rays[-1], bench.sizes.seconds
    for ops in bench.implementations:
        pieces: list[Piece] = []
        with bench.running(ops, "pieces"):
            pieces += [*step_pieces(bench, ops, rays), *level_pieces(bench, ops, rays)]
        for piece in pieces:
            if piece.part not in parts:
                continue
            row = bench.row(piece.part, piece.name, rays)
            with bench.running(ops, f"{piece.part} {piece.name}"):
                forward = median_ms(piece.forward, seconds)
                row.values |= {f"{ops.name} forward ms": forward, f"{ops.name} ms": forward}
                if piece.leaves:
                    run = partial(piece.gradients, piece.cotangents())
                    row.values[f"{ops.name} ms"] = median_ms(run, seconds)
                if not bench.is_twin(ops):
                    row.values["floor ms"] = least_ms(bench, [piece])


def least_ms(bench: Bench, pieces: Sequence[Piece]) -> float:
    """The least time in which the device could do some pieces one after the other, ms."""
    return floor_ms((need for piece in pieces for need in piece.needs()), bench.rates)


def _record_step(bench: Bench, ops: Ops, rays: int) -> list[Call]:
    bench.set_rays(rays)
    bench.model.train()
    with recording(bench.model, ops) as calls:
        bench.trainer.pipeline.get_train_loss_dict(step=0)
    return calls


def _pieces(calls: Sequence[Call], ops: Ops) -> Iterator[Piece]:
    """The calls as pieces, those of each operation numbered."""
    seen: Counter[str] = Counter()
    for operation, arguments in calls:
        seen[operation] += 1
        yield _piece(PART_OF[operation], f"{operation} {seen[operation]}", ops, operation, arguments)


def _piece(part: str, name: str, ops: Ops, operation: str, arguments: tuple[Any, ...]) -> Piece:
    """A call by itself: those of its tensors that had gradients are the leaves."""
    alone = tree_map_only(Tensor, lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad), arguments)
    reads = [leaf for leaf in tree_leaves(alone) if isinstance(leaf, Tensor)]
    leaves, sectors = [tensor for tensor in reads if tensor.requires_grad], Sectors
    if operation == "cone_encode":
        _, cones, _, lookup, _ = alone
        reads = [value for value in cones if isinstance(value, Tensor)]
        sectors = partial(count_sectors, lookup.grid, lookup.prefilter, cones)
    run = partial(getattr(ops, operation), *alone)
    return Piece(part, name, run, reads, leaves, 2.0 * _num_products(operation, alone), sectors)


def _num_products(operation: str, arguments: tuple[Any, ...]) -> float:
    """Multiplications of an operation's matrix products: those over the view direction once a ray."""
    if operation == "density_mlp":
        features, hidden, _, density, *_ = arguments
        return float(len(features) * (hidden.numel() + density.numel()))
    if operation == "radiance_mlp":
        features, view, w, *_ = arguments
        matrices = (w.hidden, w.density, w.first, *w.middle, w.last, w.last_hidden, w.rgb)
        per_ray = w.first_view.numel() + w.last_view.numel()
        return float(len(features) * sum(matrix.numel() for matrix in matrices) + len(view) * per_ray)
    return 0.0


def level_pieces(bench: Bench, ops: Ops, rays: int) -> Iterator[Piece]:
    """A training step's encodings level by level, each on a table by itself."""
    calls = _record_step(bench, ops, rays)
    encodings = [arguments for operation, arguments in calls if operation == "cone_encode"]
    for number, (table, cones, scales, lookup, half) in enumerate(encodings, start=1):
        for index, level in enumerate(lookup.grid.levels):
            rows, n = slice(level.offset, level.offset + level.size), level.resolution
            config = HashGridConfig(1, lookup.grid.features_per_level, n, n, max((level.size - 1).bit_length(), 4))
            alone = (
                table[rows].clone(), cones, scales[index : index + 1], lookup._replace(grid=config.make()),
                half and half._replace(values=half.values[rows].clone()),
            )  # fmt: skip
            yield _piece(LEVELS, f"{number}, {n} cells a side", ops, "cone_encode", alone)


def _pixels(bench: Bench) -> Piece:
    """Drawing a batch's pixels, and generating their rays."""

    def run() -> list[Tensor]:
        bundle, batch = bench.trainer.pipeline.datamanager.next_train(0)
        return [batch["image"], batch["indices"], bundle.origins, bundle.directions, bundle.pixel_area]

    return Piece("rays", "pixels and rays", run, ())


def _optimizer(bench: Bench, ops: Ops) -> Piece:
    """The hash tables' step with the gradients of the last one trained, at rate 0: the tables stay as they are."""
    tables, _ = bench.model.zipnerf.parameter_groups()
    config = bench.trainer.config.optimizers["hash_tables"]["optimizer"]
    optimizer = dataclasses.replace(config, lr=0.0, implementation=ops.name).setup(tables)
    optimizer.adopt(bench.model.zipnerf.tables())

    def run() -> list[Tensor]:
        optimizer.step()
        # Values and two moments are written; read are these and gradients.
        return tables * 3

    return Piece("optimizer", "hash tables", run, tables * 4)
