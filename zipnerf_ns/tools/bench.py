"""How fast everything is here: `python -m zipnerf_ns.tools.bench`.

The method `zipnerf` is trained for a moment, so that intervals lie where they lie in practice, and then measured: every
piece of a step by itself, whole steps, the trainer's loop around them, and pictures. The kernels stand beside the torch
twin and the least time that the device could take. A table for each part, and a JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.ops import TORCH_OPS
from zipnerf_ns.tools.benchmark.floors import COUNTING, measure_rates
from zipnerf_ns.tools.benchmark.pieces import LEVELS, PIECES, measure_pieces
from zipnerf_ns.tools.benchmark.setup import FULL, TINY, Bench, Row, Sizes, bench_config, trained
from zipnerf_ns.tools.benchmark.steps import measure_loops, measure_pictures, measure_steps
from zipnerf_ns.tools.command import command, command_parser
from zipnerf_ns.tools.demo_scene import write_scene
from zipnerf_ns.tools.system_check import installed_version

PARTS = (*PIECES, LEVELS, "render", "step", "loop")
"""What can be measured, in this order: what trains the model further comes last."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_parser(
        "bench", "Times the kernels, the training step, the trainer's loop and rendering on this machine's GPU."
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rays", nargs="+", type=int, help="of a step; pieces are measured at the largest number")
    parser.add_argument("--data", type=Path, help="a scene (Nerfstudio, Blender, COLMAP), not the built-in one")
    parser.add_argument("--output", type=Path, default=Path("bench.json"), help="file for all numbers")
    parser.add_argument("--no-twin", action="store_true", help="without the torch twin")
    parser.add_argument("--twin-seconds", type=float, default=12.0, help="leave out what would take the twin longer")
    parser.add_argument("--tiny", action="store_true", help="small model, few repetitions: to see whether it works")
    options = parser.parse_args(arguments)
    if options.rays and min(options.rays) < 8:
        parser.error("--rays must be at least 8")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny shows on a CPU whether the benchmark works")
    return options


@command()
def main(arguments: list[str] | None = None) -> None:
    """Measures, writes the JSON and prints the tables."""
    options = parse(arguments)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zipnerf-bench-") as folder:
        bench = measure(options, Path(folder))
    about = describe(bench, options.data) | {"seconds": time.monotonic() - begin}
    about |= {"left out": bench.left_out, "floor": COUNTING}
    report = about | {"rows": [dataclasses.asdict(row) for row in bench.rows]}
    write_json(options.output, report)
    show(about, bench.rows)
    print(f"All numbers are in {options.output}.")


def measure(options: argparse.Namespace, folder: Path) -> Bench:
    """Trains, and runs the chosen parts in their order.

    Args:
        options: the command line.
        folder: for the scene and what the trainer writes.
    Raises:
        InputError: if the scene cannot be read, or not trained on by us.
    """
    sizes: Sizes = TINY if options.tiny else FULL
    sizes = sizes._replace(rays=tuple(sorted(set(options.rays or sizes.rays))))
    data = options.data or built_in_scene(folder / "scene", options.tiny)
    trainer = trained(bench_config(data, folder / "outputs", sizes))
    model = trainer.pipeline.model
    ops = model.zipnerf.ops
    implementations = (ops,) if options.no_twin or ops is TORCH_OPS else (ops, TORCH_OPS)
    CONSOLE.log("measuring what the device reaches")
    rates = measure_rates(model.device, options.tiny, sizes.seconds)
    bench = Bench(trainer, implementations, rates, sizes, options.twin_seconds)
    runs = (
        ((*PIECES, LEVELS), lambda: measure_pieces(bench, options.only)),
        (("render",), lambda: measure_pictures(bench)),
        (("step",), lambda: measure_steps(bench)),
        (("loop",), lambda: measure_loops(bench)),
    )
    for names, run in runs:
        chosen = [name for name in names if name in options.only]
        if chosen:
            CONSOLE.log(f"measuring {', '.join(chosen)}")
            run()
    for row in bench.rows:
        if "floor ms" in row.values:
            row.values["x floor"] = row.values[f"{ops.name} ms"] / row.values["floor ms"]
    return bench


def describe(bench: Bench, data: Path | None) -> dict[str, Any]:
    """What the numbers were measured on."""
    model, sizes = bench.model.config, bench.sizes
    samples = "+".join(str(part.num_samples) for part in (*model.proposals, model))
    cameras = bench.trainer.pipeline.datamanager.train_dataset.cameras
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else f"CPU ({platform.machine()})"
    return {
        "device": name,
        "versions": {"torch": torch.__version__, "triton": installed_version("triton") or "none"},
        "setup": f"zipnerf, {'tiny' if sizes.is_tiny else 'its own'} sizes: {samples} intervals, "
        f"{model.proposal_prefilter} and {model.prefilter}, up to 2^{model.grid.log2_hashmap_size} entries a level; "
        f"trained {sizes.warm_steps} steps of {sizes.warm_rays:,} rays on "
        f"{'the built-in scene' if data is None else data.name} ({len(cameras)} images of "
        f"{int(cameras.width[0])}x{int(cameras.height[0])})",
        "implementations": [ops.name for ops in bench.implementations],
        "rates": bench.rates._asdict(),
    }


def show(about: dict[str, Any], rows: Sequence[Row]) -> None:
    """Prints a table for each part; of pieces, with the sum of all."""
    CONSOLE.print(f"{about['device']}; {about['versions']}", about["setup"], sep="\n", highlight=False)
    CONSOLE.print(f"rates: {', '.join(f'{name} {rate:.3g}/s' for name, rate in about['rates'].items())}")
    for part, group in groupby(sorted(rows, key=lambda row: PARTS.index(row.part)), key=lambda row: row.part):
        group = list(group)
        table = Table(title=f"{part}, {group[0].rays:,} rays" if part in (*PIECES, LEVELS) else part, box=box.SIMPLE)
        table.add_column("", footer="all")
        table.show_footer = part in PIECES and len(group) > 1
        columns = dict.fromkeys(column for row in group for column in row.values)
        for column in columns:
            values = [row.values.get(column) for row in group]
            is_sum = column.endswith(" ms") and None not in values
            table.add_column(column, justify="right", footer=number(sum(values)) if is_sum else "")
        for row in group:
            table.add_row(row.name, *(number(row.values.get(column)) for column in columns))
        CONSOLE.print(table)
    CONSOLE.print(*(f"left out: {what}" for what in about["left out"]), about["floor"], sep="\n")


def number(value: float | None) -> str:
    """Three digits, never an exponent."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def built_in_scene(folder: Path, tiny: bool) -> Path:
    """The built-in scene with few, small pictures."""
    if tiny:
        return write_scene(folder, width=32, height=24, num_train=4, num_test=1, samples_per_pixel=4)
    sizes = {"width": 128, "height": 96, "num-train": 24, "num-test": 2, "samples-per-pixel": 16}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    # By a program of its own: the processes that draw import what their main module imports, which here is everything.
    subprocess.run([sys.executable, "-m", "zipnerf_ns.tools.demo_scene", str(folder), *options], check=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
