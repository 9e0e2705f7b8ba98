"""The benchmark at its smallest: everything that it measures is there, and its pieces are the model's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.engine import trainer as trainer_module
from zipnerf_ns.functional.cones import Cones, cones_in_cube
from zipnerf_ns.functional.hash_grid import level_corners
from zipnerf_ns.ops import TORCH_OPS
from zipnerf_ns.render.viewer import Asked
from zipnerf_ns.tools import bench
from zipnerf_ns.tools.benchmark import floors, pieces, steps
from zipnerf_ns.tools.benchmark.floors import Amounts, Sectors, count_sectors
from zipnerf_ns.tools.benchmark.setup import TINY, Bench, Row, bench_config, trained
from zipnerf_ns.tools.benchmark.timing import median_ms

ROUNDS = (1, 2, 3)
LEVELS = {1: (8, 16), 2: (8, 16, 32), 3: (8, 16, 32, 64)}
EXPECTED = {
    "encode": {f"cone_encode {n}" for n in ROUNDS},
    "mlp": {f"density_mlp {n}" for n in ROUNDS} | {"encode_directions 1", "group_channels 1", "radiance_mlp 1"},
    "rays": {f"{name} {n}" for name in ("draw_intervals", "density_to_weights") for n in ROUNDS}
    | {"render 1", "pixels and rays"},
    "loss": {"interlevel 1", "interlevel 2", "distortion 1"},
    "optimizer": {"hash tables"},
    "levels": {f"{n}, {cells} cells a side" for n, levels in LEVELS.items() for cells in levels},
    "render": {"16x12", "24x16"},
    "step": {"16 rays", "32 rays"},
    "loop": {"16 rays", "32 rays"},
}  # fmt: skip
"""Names of everything that is measured, by part."""


def test_everything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture, fresh_writers: None):
    """One run: the JSON has every row with its figures, and a table shows each."""
    output = tmp_path / "results" / "bench.json"
    assert bench.main(["--tiny", "--output", str(output)]) == 0
    report, printed = json.loads(output.read_text()), capsys.readouterr().out
    rows = report["rows"]
    assert {part: {row["name"] for row in rows if row["part"] == part} for part in EXPECTED} == EXPECTED
    assert len(rows) == sum(map(len, EXPECTED.values()))
    for row in rows:
        assert all(math.isfinite(value) and value >= 0.0 for value in row["values"].values()), row
        assert row["values"]["loop / bare" if row["part"] == "loop" else "x floor"] > 0.0
        assert f"  {row['name']} " in printed
    assert report["implementations"] == ["torch"] and report["device"] and report["device"] in printed
    assert "8+8+4 intervals" in report["setup"] and "trained 3 steps" in report["setup"]
    assert all(rate > 0.0 for rate in report["rates"].values())


def test_parts_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture, fresh_writers: None):
    """Only what is asked for is measured, on as many rays as are asked for."""
    output = tmp_path / "bench.json"
    assert bench.main(["--tiny", "--only", "rays", "step", "--rays", "24", "--no-twin", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert {row["part"] for row in rows} == {"rays", "step"} and {row["rays"] for row in rows} == {24}
    assert "cone_encode" not in capsys.readouterr().out


def test_what_cannot_be_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """A folder without a scene, a machine without a GPU, and senseless numbers are one line each."""
    with pytest.raises(SystemExit) as caught:
        bench.main(["--tiny", "--data", str(tmp_path)])
    assert caught.value.code == 1 and "Give the folder of one scene with --data" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command, said in (([], "--tiny"), (["--tiny", "--rays", "4"], "--rays"), (["--only", "all"], "encode")):
        with pytest.raises(SystemExit) as caught:
            bench.main(command)
        assert caught.value.code == 2 and said in capsys.readouterr().err


@pytest.fixture
def small(tiny_scene: Path, tmp_path: Path, fresh_writers: None) -> Bench:
    """A trainer of the tiny model, trained for two steps."""
    sizes = TINY._replace(warm_steps=2, seconds=0.0)
    trainer = trained(bench_config(tiny_scene, tmp_path, sizes))
    return Bench(trainer, (TORCH_OPS,), Amounts(1e9, 1e9, 1e9, 1e9), sizes, 1.0)


def test_pieces_are_the_models_own(small: Bench):
    """Run by itself, each gives what the next one reads, and the last what is rendered; the model is as before."""
    bundle, _ = small.trainer.pipeline.datamanager.next_train(0)
    found = {piece.name: piece for piece in pieces.picture_pieces(small, TORCH_OPS, bundle, Asked(bundle))}
    outputs = {name: piece.forward() for name, piece in found.items()}
    for number in ROUNDS:
        assert torch.equal(outputs[f"cone_encode {number}"][0], found[f"density_mlp {number}"].reads[0])
        _, tdist = outputs[f"draw_intervals {number}"]
        assert any(
            read.shape == tdist.shape and torch.equal(read, tdist) for read in found[f"cone_encode {number}"].reads
        )
    assert torch.equal(outputs["density_mlp 3"][0].view_as(found["render 1"].reads[0]), found["render 1"].reads[0])
    assert torch.equal(outputs["group_channels 1"][0], found["radiance_mlp 1"].reads[0])
    with torch.no_grad():
        assert torch.equal(small.model(bundle)["accumulation"], outputs["render 1"][2])
    assert small.model.zipnerf.ops is TORCH_OPS and small.model.field.ops is TORCH_OPS


def test_levels_together_are_the_whole_encoding(small: Bench):
    """Features of every level, then their weight features."""
    store = small.trainer.pipeline.datamanager.pixels
    store.advance(0)
    torch.manual_seed(0)
    whole = next(piece for piece in pieces.step_pieces(small, TORCH_OPS, 16) if piece.name == "cone_encode 3")
    store.advance(0)
    torch.manual_seed(0)
    alone = [piece for piece in pieces.level_pieces(small, TORCH_OPS, 16) if piece.name.startswith("3,")]
    outputs = [piece.forward()[0] for piece in alone]
    together = torch.cat([*(o[:, :-1] for o in outputs), *(o[:, -1:] for o in outputs)], dim=1)
    torch.testing.assert_close(together, whole.forward()[0], rtol=1e-6, atol=1e-9)
    sectors = [piece.sectors() for piece in alone]
    assert whole.sectors() == Sectors(*(sum(counts) for counts in zip(*sectors, strict=True)))


def test_backward_passes_reach_every_leaf(small: Bench):
    """In training each piece with leaves gives gradients to all of them; the optimizer leaves the tables alone."""
    tables, _ = small.model.zipnerf.parameter_groups()
    before = [table.detach().clone() for table in tables]
    found = pieces.step_pieces(small, TORCH_OPS, 16)
    assert {piece.part for piece in found} == set(pieces.PIECES)
    for piece in found:
        if piece.leaves:
            gradients = piece.gradients(piece.cotangents())
            assert all(gradient is not None for gradient in gradients), piece.name
    (optimizer,) = (piece for piece in found if piece.part == "optimizer")
    assert optimizer.needs() == [Amounts(memory=28.0 * sum(table.numel() for table in tables))]
    assert all(torch.equal(table, was) for table, was in zip(tables, before, strict=True))
    products = {piece.name for piece in found if piece.products}
    assert products == {*(f"density_mlp {number}" for number in ROUNDS), "radiance_mlp 1"}


def test_needs_are_counted_from_sizes():
    """A product of 3 rows with a 5x4 matrix, and four sectors of a table."""
    x, w = torch.ones(3, 5), torch.ones(5, 4, requires_grad=True)
    forward, backward = pieces.Piece("mlp", "w", lambda: x @ w, (x, w), (w,), 120.0, lambda: Sectors(9.0, 4.0)).needs()
    assert forward == Amounts(memory=4.0 * (15 + 20 + 12) + 128.0, cache=288.0, products=120.0)
    assert backward == Amounts(memory=4.0 * (15 + 20 + 12 + 20), products=240.0, atomics=9.0)
    rates = Amounts(memory=1e6, cache=1e9, products=1e4, atomics=1.0)
    assert floors.floor_ms([forward], rates) == pytest.approx(12.0)
    assert floors.floor_ms([forward, backward], rates) == pytest.approx(12.0 + 9e3)


@pytest.mark.parametrize(("features", "prefilter"), [(1, "multisample"), (4, "multisample"), (8, "ipe")])
def test_sectors_are_counted_as_sets_are(monkeypatch: pytest.MonkeyPatch, features: int, prefilter: str):
    """Against Python's sets, with rays counted in several chunks."""
    monkeypatch.setattr(floors, "COUNTED_RAYS", 3)
    rays, grid = 8, HashGridConfig(3, features, 4, 64, 9).make()
    directions = torch.nn.functional.normalize(torch.randn(rays, 3), dim=-1)
    tdist = torch.linspace(0.1, 3.0, 6).expand(rays, 6)
    cones = Cones(torch.zeros(rays, 3), directions, torch.full((rays, 1), 0.01), tdist, None, None)
    positions, _ = cones_in_cube(cones, prefilter == "ipe")
    per_ray = distinct = 0
    for level in grid.levels:
        rows, _ = level_corners(positions.reshape(-1, 3), level)
        sectors = [{row * features // 8 for row in own.flatten().tolist()} for own in rows.chunk(rays)]
        per_ray, distinct = per_ray + sum(map(len, sectors)), distinct + len(set.union(*sectors))
    assert count_sectors(grid, prefilter, cones) == Sectors(float(per_ray), float(distinct))


def test_what_a_twin_has_no_time_or_memory_for_is_left_out(small: Bench, monkeypatch: pytest.MonkeyPatch):
    """The smallest step gives the time that is expected of the others."""
    # Another name of the same operations.
    small.implementations = (TORCH_OPS, TORCH_OPS._replace(name="auto"))
    small.twin_seconds = 0.0
    steps.measure_steps(small)
    assert ["auto ms" in row.values for row in small.rows] == [True, False]
    assert len(small.left_out) == 1 and small.left_out[0].startswith("step 32 rays, auto: expected to take ")
    iterate = small.trainer.train_iteration

    def without_memory(step: int) -> tuple:
        if small.model.config.implementation == "auto":
            raise torch.cuda.OutOfMemoryError
        return iterate(step)

    monkeypatch.setattr(small.trainer, "train_iteration", without_memory)
    small.model.config.implementation, small.rows, small.left_out = "torch", [], []
    steps.measure_steps(small)
    assert small.left_out == [f"step {rays} rays, auto: out of memory" for rays in small.sizes.rays]
    assert all("torch ms" in row.values and "floor ms" in row.values for row in small.rows)
    assert small.model.config.implementation == "torch"


def test_calls_are_made_more_than_once():
    calls: list[int] = []
    assert median_ms(lambda: calls.append(1), 0.0) > 0.0
    assert len(calls) >= steps.LEAST_CALLS


def test_the_loops_time_is_told_apart_from_evaluations_and_checkpoints(small: Bench, monkeypatch: pytest.MonkeyPatch):
    """By a clock of its own: steps take 10 ms, an evaluation 200, a checkpoint 100 and what an evaluation leaves 50."""
    trainer, writer, clock = small.trainer, trainer_module.writer, [0.0]

    def takes(seconds: float, result: tuple | None = None):
        def call(*_: object) -> tuple | None:
            clock[0] += seconds
            return result

        return call

    def evaluate(step: int) -> None:
        takes(0.2)()
        writer.EVENT_STORAGE.append({"write_type": writer.EventType.SCALAR})

    def write_out() -> None:
        takes(0.05 if writer.EVENT_STORAGE else 0.0)()
        writer.EVENT_STORAGE.clear()

    monkeypatch.setattr(steps, "timer", lambda: clock[0])
    monkeypatch.setattr(writer, "write_out_storage", write_out)
    monkeypatch.setattr("zipnerf_ns.engine.trainer.log_step", takes(0.0))
    for name, method in (
        ("train_iteration", takes(0.01, (None, {}, {}))), ("eval_iteration", evaluate),
        ("begin_checkpoint", takes(0.1)), ("save_checkpoint", takes(0.0)),
    ):  # fmt: skip
        monkeypatch.setattr(trainer, name, method)
    assert steps.time_loop(small) == (pytest.approx(10.0), pytest.approx(350.0))


def test_a_resized_camera_sees_as_much_from_left_to_right(small: Bench):
    """Width over focal length stays; pixels are square and the axis is in the middle."""
    camera = small.trainer.pipeline.datamanager.eval_dataset.cameras[:1]
    other = steps.resized(camera, 160, 90)
    assert torch.allclose(other.width / other.fx, camera.width / camera.fx) and torch.equal(other.fx, other.fy)
    assert (float(other.cx), float(other.cy), int(other.width), int(other.height)) == (80.0, 45.0, 160, 90)
    assert torch.equal(other.camera_to_worlds, camera.camera_to_worlds)


def test_tables_show_sums_and_what_was_left_out(capsys: pytest.CaptureFixture):
    """Pieces with their sum, which is not known where one was not measured; three digits each."""
    about = {"device": "a GPU", "versions": {}, "setup": "zipnerf", "rates": {"memory": 2.9e12}, "floor": "floor: ..."}
    values = {"triton ms": 1.25, "floor ms": 0.25, "x floor": 5.0, "torch ms": 1234.5}
    rows = [Row("encode", "cone_encode 1", 8, values), Row("encode", "cone_encode 2", 8, {**values, "torch ms": None})]
    bench.show(about | {"left out": ["encode cone_encode 2, torch: out of memory"]}, rows)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert "cone_encode 1 1.25 0.250 5.00 1,234".split() in lines and "cone_encode 2 1.25 0.250 5.00 -".split() in lines
    assert ["all", "2.50", "0.500"] in lines
    assert "left out: encode cone_encode 2, torch: out of memory".split() in lines
