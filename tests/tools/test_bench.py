"""The benchmark at its smallest: everything that it measures is there, and its pieces are the model's own."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch

from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.engine import checkpoints
from zipnerf_ns.engine import trainer as trainer_module
from zipnerf_ns.functional.cones import Cones, cones_in_cube
from zipnerf_ns.functional.hash_grid import level_corners
from zipnerf_ns.ops import TORCH_OPS
from zipnerf_ns.tools import bench
from zipnerf_ns.tools.benchmark import floors, pieces, setup, steps, timing
from zipnerf_ns.tools.benchmark.floors import Ceilings, Cost, LevelCount, count_levels
from zipnerf_ns.tools.benchmark.setup import TINY_SIZES, Bench, Row, bench_config, capture
from zipnerf_ns.tools.benchmark.table import format_report

CPU = torch.device("cpu")
ROUNDS = ("proposal 0", "proposal 1", "NeRF")
LEVELS = {"proposal 0": (8, 16), "proposal 1": (8, 16, 32), "NeRF": (8, 16, 32, 64)}
RAYS = TINY_SIZES.rays
BOTH, FORWARD, WHOLE = ("forward", "backward"), ("forward",), ("whole",)
EXPECTED = {
    **{("encode", name): BOTH for name in ROUNDS},
    **{("mlp", name): BOTH for name in ROUNDS},
    **{("level", f"{name} {level}"): BOTH for name, levels in LEVELS.items() for level in levels},
    ("rays", "draw intervals"): FORWARD,
    ("rays", "proposals' weights"): BOTH,
    ("rays", "render"): BOTH,
    ("rays", "pixels and rays"): FORWARD,
    ("loss", "interlevel"): BOTH,
    ("loss", "distortion"): BOTH,
    ("optimizer", "hash tables"): WHOLE,
    **{(part, f"{rays} rays"): WHOLE for part in ("step", "memory", "loop") for rays in RAYS},
    **{("render", f"{width}x{height}"): WHOLE for width, height in TINY_SIZES.pictures},
    **{("scaling", sweep): WHOLE for sweep in ("rays", "samples a ray", "levels", "features a level")},
    ("scaling", "entries a level"): WHOLE,
}
"""Part and name of everything that is measured, with its stages."""


def test_everything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture, fresh_writers: None):
    """One run: the JSON has every row with times, floors and costs; the table has a line for each, and comes last."""
    output = tmp_path / "results" / "bench.json"
    assert bench.main(["--tiny", "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    stages: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in report["rows"]:
        key = row["part"], row["name"]
        stages[key] = (*stages.get(key, ()), row["stage"])
    assert stages == EXPECTED
    for row in report["rows"]:
        check_row(row)
    assert report["implementations"] == ["torch"] and set(report["counting"]) > set(report["ceilings"])
    assert all(rate > 0.0 for rate in report["ceilings"].values())
    assert "8+8+4 intervals" in report["setup"] and "trained 3 steps" in report["setup"]
    assert report["versions"]["torch"] == torch.__version__ and report["device"]
    assert report["seconds"] > report["first_steps_seconds"] > 0.0
    table = capsys.readouterr().out.split("done\n")[-1].strip().splitlines()
    check_table(table)
    assert table[0].startswith(report["device"])


def check_row(row: dict) -> None:
    """A row's numbers are there, finite and positive."""
    if row["part"] == "memory":
        assert row["values"] == {"torch GiB": None} and row["notes"] == ["counted on CUDA only"]
        return
    values = {name: value for name, value in row["values"].items() if name not in ("exponent", "verdict")}
    # A difference of two times.
    assert values.pop("evaluation_ms", 0.0) >= 0.0
    numbers = [row["ms"]["torch"]] if row["part"] != "scaling" else []
    for value in values.values():
        numbers += value if isinstance(value, list) else [value]
    if row["part"] not in ("loop", "scaling"):
        numbers.append(row["floor_ms"])
    assert all(math.isfinite(number) and number > 0.0 for number in numbers), row
    if row["part"] in ("encode", "level", "mlp", "rays", "loss", "optimizer"):
        assert row["cost"]["memory"] > 0.0 and row["bound_by"] in row["cost"]
        assert (row["cost"]["products"] > 0.0) == (row["part"] == "mlp")
        accesses = "atomics" if row["stage"] == "backward" else "cache"
        assert (row["cost"][accesses] > 0.0) == (row["part"] in ("encode", "level"))
    if row["part"] == "scaling":
        assert len(row["values"]["ms"]) == len(row["values"]["values"]) >= 3
        assert math.isfinite(row["values"]["exponent"]) and "linear" in row["values"]["verdict"].lower()
    if row["part"] == "loop":
        assert {"bare_ms", "loop_only_ms", "evaluation_ms", "checkpoint_ms"} < row["values"].keys()
        assert row["values"]["checkpoint_ms"] >= row["values"]["checkpoint_blocked_ms"]


def check_table(lines: list[str]) -> None:
    """Compact, and with a line for everything."""
    assert len(lines) <= 60 and max(map(len, lines)) <= 110
    text = "\n".join(lines)
    for part, name in EXPECTED:
        label = {
            "level": f"\n{name.split()[-1]} ", "step": f"\n{name.split()[0]} ", "memory": f"\n{name.split()[0]} ",
            "loop": f"\n{name.split()[0]} ", "render": f"\n{name} ", "scaling": f"\n{name} ",
        }.get(part, f"\n{part} {name} ")  # fmt: skip
        assert label in text, label


def test_parts_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture, fresh_writers: None):
    """Only what is asked for is measured, on as many rays as are asked for."""
    output = tmp_path / "bench.json"
    command = ["--tiny", "--only", "rays", "memory", "--rays", "24", "--no-twin", "--output", str(output)]
    assert bench.main(command) == 0
    rows = json.loads(output.read_text())["rows"]
    assert {row["part"] for row in rows} == {"rays", "memory"} and {row["rays"] for row in rows} == {24}
    assert "encode" not in capsys.readouterr().out.split("done\n")[-1].split("floor:")[0]


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
    trainer = setup.start_trainer(bench_config(tiny_scene, tmp_path, 2, TINY_SIZES, "torch"))
    setup.warm_up(trainer, 2)
    ceilings = Ceilings(1e9, 1e9, 1e9, 1e9)
    return Bench(trainer, (TORCH_OPS,), ceilings, TINY_SIZES, (16,), 1.0)


def test_pieces_are_the_models_own(small: Bench):
    """Each piece, fed with a batch's state, computes what the model computed of that batch."""
    small.model.eval()
    bundle = small.bundle(16)
    batch = capture(small.model, bundle)
    with torch.no_grad():
        assert torch.equal(small.model(bundle)["accumulation"], batch.rounds[-1].weights.sum(dim=-1, keepdim=True))
    counts = pieces.count_rounds(small, batch)
    outputs = {(w.part, w.name): w.forward() for w in pieces.works(small, batch, counts)}
    for index, name in enumerate(ROUNDS):
        assert torch.equal(outputs["encode", name][0], batch.channels[index])
        assert torch.equal(outputs["mlp", name][0], batch.densities[index])
    assert torch.equal(outputs["mlp", "NeRF"][1], batch.colors)
    drawn = outputs["rays", "draw intervals"]
    for index, a_round in enumerate(batch.rounds):
        assert torch.equal(drawn[2 * index], a_round.sdist) and torch.equal(drawn[2 * index + 1], a_round.tdist)
    for index, weights in enumerate(outputs["rays", "proposals' weights"]):
        assert torch.equal(weights, batch.rounds[index].weights)
    assert torch.equal(outputs["rays", "render"][0], batch.rounds[-1].weights)
    # Levels by themselves are the whole encoding's features; their weight features depend on the level alone, too.
    alone = [work.forward()[0] for work in pieces.level_works(small, batch, counts)]
    for index, (_, network) in enumerate(small.networks):
        features, levels = network.encoding.grid.features_per_level, len(network.encoding.grid.levels)
        own, alone = alone[:levels], alone[levels:]
        per_level = torch.cat([level[:, :features] for level in own], dim=1)
        whole = torch.cat([per_level, *(level[:, features:] for level in own)], dim=1)
        torch.testing.assert_close(whole, batch.channels[index], rtol=1e-6, atol=1e-9)


def test_backward_passes_reach_every_leaf(small: Bench):
    """In training mode each piece with leaves gives gradients to all of them, and the model is as before."""
    batch = capture(small.model, small.bundle(16))
    counts = pieces.count_rounds(small, batch)
    works = pieces.works(small, batch, counts)
    assert {piece.part for piece in works} == {"encode", "mlp", "rays", "loss"}
    for piece in works:
        if piece.leaves:
            outputs = piece.forward()
            gradients = piece.backward(outputs, piece.cotangents(outputs))
            assert all(gradient is not None for gradient in gradients), piece.name
    assert not any("channels" in vars(network) for _, network in small.networks)


def test_the_optimizer_is_measured_without_moving_the_tables(small: Bench):
    """What precedes it is a training step, here at rate 0, too."""
    for group in small.trainer.optimizers.optimizers["hash_tables"].param_groups:
        group["lr"] = 0.0
    tables = [network.encoding.hash_table for _, network in small.networks]
    before = [table.detach().clone() for table in tables]
    pieces.measure_optimizer(small)
    assert all(torch.equal(table, was) for table, was in zip(tables, before, strict=True))
    (row,) = small.rows
    assert row.cost == Cost(memory=28.0 * sum(table.numel() for table in tables)) and row.ms["torch"] > 0.0


def test_costs_are_counted_from_sizes():
    """A product of 3 rows with a 5x4 matrix, and four sectors of a table."""
    x, w = torch.ones(3, 5), torch.ones(5, 4, requires_grad=True)
    work = pieces.Work("mlp", "w", lambda: (x @ w,), (x, w), (w,), 2.0 * 60, LevelCount(9.0, 4.0))
    forward, backward = work.costs()
    assert forward == Cost(memory=4.0 * (15 + 20 + 12) + 128.0, cache=288.0, products=120.0)
    assert backward == Cost(memory=4.0 * (15 + 20 + 12 + 20), products=240.0, atomics=9.0)
    ceilings = Ceilings(memory=1e6, cache=1e9, products=1e4, atomics=1.0)
    assert ceilings.floor(forward) == (pytest.approx(12.0), "products")
    assert ceilings.floor(backward) == (pytest.approx(9e3), "atomics")


@pytest.mark.parametrize(("features", "prefilter"), [(1, "multisample"), (4, "multisample"), (8, "ipe")])
def test_sectors_are_counted_as_sets_are(monkeypatch: pytest.MonkeyPatch, features: int, prefilter: str):
    """Against Python's sets, with rays counted in several chunks."""
    monkeypatch.setattr(floors, "COUNTED_RAYS", 4)
    rays, grid = 8, HashGridConfig(3, features, 4, 64, 9).make()
    directions = torch.nn.functional.normalize(torch.randn(rays, 3), dim=-1)
    # The second half repeats the first, on which single rays are counted.
    directions[4:] = directions[:4]
    tdist = torch.linspace(0.1, 3.0, 6).expand(rays, 6)
    cones = Cones(torch.zeros(rays, 3), directions, torch.full((rays, 1), 0.01), tdist, None, None)
    positions, _ = cones_in_cube(cones, prefilter == "ipe")
    for level, count in zip(grid.levels, count_levels(grid, cones, prefilter), strict=True):
        rows, _ = level_corners(positions.reshape(-1, 3), level)
        sectors = [{row * features // 8 for row in own.flatten().tolist()} for own in rows.chunk(rays)]
        assert count == LevelCount(float(sum(map(len, sectors))), float(len(set.union(*sectors))))


def test_stages_are_timed_apart():
    """A stage gets what the one before returned, as often as the effort says, and its time is its own."""
    seen: list[int] = []

    def second(value: int) -> None:
        seen.append(value)
        time.sleep(0.02)

    effort = timing.Effort(warmups=2, least=3, most=9, seconds=0.0)
    first_ms, second_ms = timing.time_stages(CPU, [lambda value: 7 if value is None else -1, second], effort)
    assert seen == [7] * 5
    assert second_ms >= 20.0 > first_ms > 0.0


@pytest.mark.parametrize(("effort", "calls"), [((1, 1, 1, 0.0), 2), ((2, 10, 10, 0.0), 13), ((0, 1, 6, 9.0), 6)])
def test_calls_are_timed_in_rounds(effort: tuple, calls: int):
    """A sleeping call takes at least as long as it sleeps; warm-ups and the first, which sets the number, come on top.

    (The last case's six calls are five rounds of one, after the first.)
    """
    made: list[int] = []

    def call() -> None:
        made.append(1)
        time.sleep(0.005)

    assert timing.time_calls(CPU, call, timing.Effort(*effort)) >= 5.0
    assert len(made) == calls


@pytest.mark.parametrize(("exponent", "word"), [(1.0, "linear"), (0.3, "less than linear"), (1.5, "MORE THAN LINEAR")])
def test_exponents_are_found(exponent: float, word: str):
    sizes = [2, 4, 16, 32]
    found = pieces.slope(sizes, [3.0 * size**exponent for size in sizes])
    assert found == pytest.approx(exponent) and pieces.verdict(found) == word


def test_the_loops_time_is_told_apart_from_evaluations_and_checkpoints(small: Bench, monkeypatch: pytest.MonkeyPatch):
    """An evaluation counts with what follows from it; a checkpoint with the wait for the copy, not with its writing."""
    trainer, events, writer = small.trainer, [], trainer_module.writer

    def iterate(step: int) -> tuple:
        time.sleep(0.01)
        return None, {}, {}

    def evaluate(step: int) -> None:
        time.sleep(0.2)
        events.append(step)
        writer.EVENT_STORAGE.append({"write_type": writer.EventType.SCALAR})

    def write_out() -> None:
        time.sleep(0.2 if events else 0.0)
        writer.EVENT_STORAGE.clear()

    monkeypatch.setattr(writer, "write_out_storage", write_out)
    trainer.eval_iteration, trainer._log, trainer.train_iteration = evaluate, lambda *_: None, iterate
    loop = steps.time_loop(small, 5, 3)
    assert events == [2000] and 10.0 <= loop["loop_only_ms"] < 60.0 and loop["evaluation_ms"] >= 300.0
    assert not list(trainer.checkpoint_dir.glob("*"))
    whole, trainer.train_iteration = checkpoints.write_whole, iterate
    monkeypatch.setattr(checkpoints, "write_whole", lambda *state: (time.sleep(0.3), whole(*state)))
    times = steps.time_checkpoint(small, 10.0)
    assert times["checkpoint_write_ms"] >= 300.0
    assert times["checkpoint_blocked_ms"] <= times["checkpoint_ms"] < 250.0
    assert len(list(trainer.checkpoint_dir.glob("*"))) == 1


def test_a_resized_camera_sees_as_much_from_left_to_right(small: Bench):
    """Width over focal length stays; pixels are square and the axis is in the middle."""
    camera = small.trainer.pipeline.datamanager.eval_dataset.cameras[:1]
    other = steps.resized(camera, 160, 90)
    assert torch.allclose(other.width / other.fx, camera.width / camera.fx) and torch.equal(other.fx, other.fy)
    assert (float(other.cx), float(other.cy), int(other.width), int(other.height)) == (80.0, 45.0, 160, 90)
    assert torch.equal(other.camera_to_worlds, camera.camera_to_worlds)


LOOP_VALUES = {
    "bare_ms": 40.0, "loop_only_ms": 39.5, "evaluation_ms": 1234.0, "steps_per_evaluation": 2000,
    "checkpoint_ms": 12.34, "steps_per_checkpoint": 1000,
}  # fmt: skip


def full_rows() -> list[Row]:
    """Rows as a GPU gives them at the paper's sizes, with a twin that was partly left out."""
    resolutions = {name: [16 * 2**i for i in range(n)] for name, n in zip(ROUNDS, (6, 8, 10), strict=True)}
    names = [key for key in EXPECTED if key[0] in ("encode", "mlp", "rays", "loss", "optimizer")]
    names += [("level", f"{name} {n}") for name, levels in resolutions.items() for n in levels]
    rows = [
        Row(part, name, 65_536, stage, {"triton": 1.25, "torch": 1234.5}, 0.25)
        for part, name in names
        for stage in EXPECTED.get((part, name), BOTH)
    ]
    for rays in (4096, 16_384, 65_536):
        twin = None if rays > 16_384 else 999.9
        rows.append(Row("step", f"{rays} rays", rays, "whole", {"triton": 40.0, "torch": twin}, 10.0))
        rows[-1].values = {"triton rays/s": rays / 0.04, "torch rays/s": 1.0}
        rows[-1].notes = [] if twin else ["torch: expected to take 99 s with its warm-up"]
        rows.append(Row("loop", f"{rays} rays", rays, "whole", {"triton": 44.0}, values=dict(LOOP_VALUES)))
        rows.append(Row("memory", f"{rays} rays", rays, "whole", values={"triton GiB": 9.99, "torch GiB": twin}))
    for name in ("800x800", "1920x1080"):
        rows.append(Row("render", name, 640_000, "whole", {"triton": 200.0, "torch": 9e3}, 20.0))
        rows[-1].values = {"triton rays/s": 3.2e6, "torch rays/s": 7e4}
    for name in ("rays", "samples a ray", "levels", "features a level", "entries a level"):
        values = {"values": [2**i for i in range(19, 24)], "ms": [12.34] * 5, "exponent": 0.12}
        rows.append(Row("scaling", name, 65_536, "whole", values={**values, "verdict": "MORE THAN LINEAR"}))
    return rows


def test_the_full_table_fits_a_screen():
    """With twin and the paper's levels it is compact; sums and ratios are right; what was left out is said."""
    about = {
        "device": "NVIDIA H100 80GB HBM3",
        "versions": {"torch": "2.11.0+cu128", "triton": "3.6.0"},
        "setup": "zipnerf, " + "the paper's sizes, " * 12,
        "implementations": ["triton", "torch"],
        "ceilings": {"memory": 2.9e12, "cache": 5.5e12, "products": 7e14, "atomics": 3.5e10},
        "first_steps_seconds": 43.21,
    }
    lines = format_report(about, full_rows()).splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 110
    table = {line[:26].strip(): line.split() for line in lines}
    assert table["encode all rounds"][3:] == "3.75 3.75 7.50 3704 3704 7407 0.750 0.750 1.50 5.00".split()
    assert table["optimizer hash tables"][3:] == "1.25 - 1.25 1234 - 1234 0.250 - 0.250 5.00".split()
    steps = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("4,096", "16,384", "65,536"))}
    assert steps["65,536"] == "40.0 - 10.0 4.00 1.64 44.0 1.10 9.99 -".split()
    # Below zero: the loop's steps were measured at another moment than the bare ones.
    (line,) = (line for line in lines if line.startswith("loop: "))
    assert line[6:] == (
        "-0.500 ms a step beside the bare one; evaluation 1234 ms / 2000 steps, checkpoint 12.3 ms / 1000"
    )
    assert any(line.startswith("start-up: 43.2 s ") for line in lines)
    assert steps["4,096"][:2] == ["40.0", "1000"] and steps["4,096"][-2:] == ["9.99", "1000"]
    assert next(line for line in lines if line.startswith("8192 ")).split() == "8192 2.50 2469 0.500".split()
    assert lines[-1] == "left out: step 65536 rays, torch: expected to take 99 s with its warm-up"
    assert any(line.startswith("1920x1080") and " 3.20 " in line for line in lines)
    assert any("2^19: 12.3  2^20: 12.3" in line and line.endswith("0.12 MORE THAN LINEAR") for line in lines)
