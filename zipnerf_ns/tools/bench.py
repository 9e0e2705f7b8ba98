"""How fast everything is here: `python -m zipnerf_ns.tools.bench`.

The method `zipnerf` is trained for a moment, so that intervals lie where they lie in practice, and then measured: every
piece of a step by itself, whole steps, the trainer's loop around them, pictures, and how the encoding's time grows with
its sizes. Triton stands beside the torch twin and the least time that the device could take. One table, and a JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.benchmark.floors import COUNTING, measure_ceilings
from zipnerf_ns.tools.benchmark.pieces import WORK_PARTS, measure_optimizer, measure_scaling, measure_works
from zipnerf_ns.tools.benchmark.setup import (
    FULL,
    TINY_SIZES,
    Bench,
    bench_config,
    choose_implementations,
    start_trainer,
    warm_up,
)
from zipnerf_ns.tools.benchmark.steps import measure_loops, measure_pictures, measure_steps
from zipnerf_ns.tools.benchmark.table import format_report
from zipnerf_ns.tools.demo_scene import write_scene
from zipnerf_ns.tools.system_check import installed_version

PARTS = (*WORK_PARTS, "optimizer", "scaling", "render", "step", "memory", "loop")
"""What can be measured, in this order: what trains the model further comes last."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m zipnerf_ns.tools.bench",
        description="Times the kernels, the training step, the trainer's loop and rendering on this machine's GPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rays", nargs="+", type=int, help="of a step; pieces are measured at the largest number")
    parser.add_argument("--data", type=Path, help="a scene (Nerfstudio, Blender, COLMAP), not the built-in one")
    parser.add_argument("--warm-steps", type=int, help="training steps beforehand (300; tiny 3)")
    parser.add_argument("--output", type=Path, default=Path("bench.json"), help="file for all numbers")
    parser.add_argument("--no-twin", action="store_true", help="without the torch twin")
    parser.add_argument("--twin-seconds", type=float, default=12.0, help="leave out what would take the twin longer")
    parser.add_argument("--implementation", choices=("auto", "triton", "torch"), default="auto", help="to measure")
    parser.add_argument("--tiny", action="store_true", help="small model, few repetitions: to see whether it works")
    options = parser.parse_args(arguments)
    if options.warm_steps is None:
        options.warm_steps = 3 if options.tiny else 300
    if options.warm_steps < 1 or (options.rays and min(options.rays) < 8):
        parser.error("--warm-steps must be at least 1, and --rays at least 8")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny shows on a CPU whether the benchmark works")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes the JSON and prints the table; 1 with one line if the scene or the method will not do."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="zipnerf-bench-") as folder:
        try:
            report, table = run(options, Path(folder))
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{table}")
    return 0


def run(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """The report as the JSON has it, and the table.

    Args:
        options: the command line.
        folder: for the scene and what the trainer writes.
    Raises:
        InputError: if the scene cannot be read, or not trained on by us.
    """
    begin = time.monotonic()

    def tell(what: str) -> None:
        print(f"[{time.monotonic() - begin:6.1f} s] {what}", flush=True)

    sizes = TINY_SIZES if options.tiny else FULL
    data = options.data
    if data is None:
        tell("the built-in scene")
        data = built_in_scene(folder / "scene", options.tiny)
    config = bench_config(data, folder / "outputs", options.warm_steps, sizes, options.implementation)
    tell("trainer")
    trainer = start_trainer(config)
    device = trainer.pipeline.model.device
    tell("ceilings")
    ceilings = measure_ceilings(device, options.tiny)
    tell(f"{options.warm_steps} training steps")
    first_steps = warm_up(trainer, options.warm_steps)
    rays = tuple(sorted(set(options.rays or sizes.rays)))
    implementations = choose_implementations(options.implementation, device, not options.no_twin)
    bench = Bench(trainer, implementations, ceilings, sizes, rays, options.twin_seconds)
    measure(bench, options.only, tell)
    tell("done")
    seconds = {"first_steps_seconds": first_steps, "seconds": time.monotonic() - begin}
    about = describe(bench, options, data) | seconds
    return {**about, "rows": [dataclasses.asdict(row) for row in bench.rows]}, format_report(about, bench.rows)


def describe(bench: Bench, options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """What the numbers were measured on, and how floors are counted."""
    is_cuda = bench.device.type == "cuda"
    model = bench.model.config
    samples = "+".join(str(part.num_samples) for part in (*model.proposals, model))
    cameras = bench.trainer.pipeline.datamanager.train_dataset.cameras
    scene = "the built-in scene" if options.data is None else data.name
    setup = (
        f"zipnerf, {'tiny' if options.tiny else 'its own'} sizes: {samples} intervals, {model.prefilter}, up to "
        f"2^{model.grid.log2_hashmap_size} entries a level; trained {options.warm_steps} steps of "
        f"{bench.sizes.warm_rays:,} rays on {scene} ({len(cameras)} pictures of "
        f"{int(cameras.width[0])}x{int(cameras.height[0])})"
    )
    return {
        "device": torch.cuda.get_device_name(bench.device) if is_cuda else f"CPU ({platform.machine()})",
        "versions": {"torch": torch.__version__, "triton": installed_version("triton") or "none"},
        "setup": setup,
        "implementations": [ops.name for ops in bench.implementations],
        "ceilings": dataclasses.asdict(bench.ceilings),
        "counting": COUNTING,
    }


def measure(bench: Bench, parts: Collection[str], tell: Callable[[str], None]) -> None:
    """Runs the chosen parts in their order.

    Args:
        bench: takes the rows.
        parts: names from PARTS.
        tell: is told what begins.
    """
    runs: list[tuple[Sequence[str], Callable[[list[str]], None]]] = [
        (WORK_PARTS, lambda chosen: measure_works(bench, chosen)),
        (["optimizer"], lambda _: measure_optimizer(bench)),
        (["scaling"], lambda _: measure_scaling(bench)),
        (["render"], lambda _: measure_pictures(bench)),
        (["step", "memory"], lambda chosen: measure_steps(bench, chosen)),
        (["loop"], lambda _: measure_loops(bench)),
    ]
    for names, run_parts in runs:
        chosen = [name for name in names if name in parts]
        if chosen:
            tell(", ".join(chosen))
            run_parts(chosen)


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
