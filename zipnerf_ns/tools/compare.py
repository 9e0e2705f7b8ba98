"""Methods against each other, on the same scenes, for the same time, with one set of metrics.

``python -m zipnerf_ns.tools.compare SCENE... --methods zipnerf nerfacto --seconds 120`` trains each method through
nerfstudio's own trainer, each in a process of its own, and writes ``results.json``, ``results.md``, ``curves.png``
and ``crops.png``. A method that does not run here is a row that says why.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.tools.command import command, command_parser
from zipnerf_ns.tools.trials.figures import save_crops, save_curves
from zipnerf_ns.tools.trials.report import comparison, scene_name
from zipnerf_ns.tools.trials.trial import Planned, Trial, run_all

METHODS = ("zipnerf", "zipnerf-lite", "nerfacto", "splatfacto", "instant-ngp")
DEFAULT_SECONDS = 120.0


def add_trial_arguments(parser: argparse.ArgumentParser, what: str, seed: int) -> None:
    """What every tool that runs trials asks for.

    Args:
        what: is trained with each seed.
        seed: where one is enough.
    """
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, help=f"of training each (default: {DEFAULT_SECONDS:g})")
    budget.add_argument("--steps", type=int, help="of training each, instead of seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[seed],
                        help=f"every {what} is trained with each; tables have means and standard errors")  # fmt: skip
    parser.add_argument("--scales", type=int, nargs="+", default=[], help="such as 1 2 4 8: train and measure at each")
    parser.add_argument("--half-side", type=float, default=1.5, help="of the cube that holds a scene with alpha")
    parser.add_argument("--gpus", nargs="+", default=[], metavar="NUMBER",
                        help="such as 0 1 2 3: trials on each at the same time, one GPU for each trial")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="keep results of the same trials in the output folder")


def checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """The options, if they can work; else ends with the usual message."""
    if options.seconds is not None and not options.seconds > 0:
        parser.error("--seconds must be positive")
    if options.steps is not None and options.steps < 2:
        parser.error("--steps must be at least 2: the clock starts when the first is done")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error("--seeds must be different")
    if len(set(options.gpus)) < len(options.gpus):
        parser.error("--gpus must be different")
    if options.gpus and not torch.cuda.is_available():
        parser.error("--gpus: no GPU is seen here")
    for scene in options.scenes:
        if not scene.exists():
            parser.error(f"{scene} does not exist")
    names = [scene_name(scene.resolve()) for scene in options.scenes]
    if len(set(names)) < len(names):
        parser.error(f"scenes must have different names: {', '.join(names)}")
    return options


def planned_trial(options: argparse.Namespace, scene: Path, method: str, name: str, **fields: Any) -> Planned:
    """A trial with the options of :func:`add_trial_arguments`; its files are below its scene's, so that trials of one
    scene share what is written for it.

    Args:
        name: what the trial is known by among those of its scene.
        fields: further ones of the trial.
    """
    seconds = DEFAULT_SECONDS if options.seconds is None and options.steps is None else options.seconds
    scene = scene.resolve()
    trial = Trial(
        scene=str(scene), method=method, seconds=seconds, steps=options.steps, scales=tuple(options.scales),
        half_side=options.half_side, **fields,
    )  # fmt: skip
    folder = options.output / scene_name(scene).replace("/", "_") / name.replace(", ", "_").replace(" ", "_")
    return Planned(trial, folder, name)


def parse_changes(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings of methods, from ``METHOD:FIELD=VALUE``; ``*`` stands for all.

    Raises:
        ValueError: for a text of another form.
    """
    changes: dict[str, dict[str, Any]] = {}
    for text in texts:
        method, colon, rest = text.partition(":")
        path, equals, value = rest.partition("=")
        if not (colon and equals and method and path):
            raise ValueError(f"{text!r} is not METHOD:FIELD=VALUE")
        changes.setdefault(method, {})[path] = yaml.safe_load(value)
    return changes


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("compare", "Trains methods on the same scenes for the same time and measures them alike.")
    parser.add_argument("scenes", type=Path, nargs="+", metavar="SCENE", help="folder, or transforms file")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="as ns-train knows them")
    add_trial_arguments(parser, "method", 42)
    parser.add_argument("--schedule", choices=("stretched", "own"), default="stretched",
                        help="of other methods: stretched to the steps that fit, or for their own number")  # fmt: skip
    parser.add_argument("--set", dest="changes", nargs="+", default=[], metavar="METHOD:FIELD=VALUE",
                        help="settings, such as nerfacto:pipeline.model.log2_hashmap_size=21; * for all")  # fmt: skip
    parser.add_argument("--build-only", action="store_true", help="compile what is compiled at first use, and end")
    parser.add_argument("--output", type=Path, default=Path("outputs/compare"), help="folder for all results")
    options = checked(parser, parser.parse_args(arguments))
    try:
        options.changes = parse_changes(options.changes)
    except ValueError as error:
        parser.error(f"--set: {error}")
    return options


def plan(options: argparse.Namespace) -> list[Planned]:
    """The trials of a command line, scene by scene and seed by seed."""
    return [
        planned_trial(
            options, scene, method, f"{method}, seed {seed}" if len(options.seeds) > 1 else method, seed=seed,
            schedule=options.schedule, build_only=options.build_only,
            changes={**options.changes.get("*", {}), **options.changes.get(method, {})},
        )
        for scene in options.scenes
        for seed in options.seeds
        for method in options.methods
    ]  # fmt: skip


@command()
def main(arguments: list[str] | None = None) -> int:
    """Runs all trials and writes the reports after each; 0 unless none succeeded."""
    options = parse(arguments)
    planned = plan(options)
    command = shlex.join(sys.argv[1:] if arguments is None else arguments)
    for results in run_all(planned, options.resume, options.gpus):
        write_json(options.output / "results.json", {"command": command, "results": results})
        if not options.build_only:
            (options.output / "results.md").write_text(comparison(results), encoding="utf-8")
            save_curves(options.output / "curves.png", results)
            save_crops(options.output / "crops.png", results, [each.folder for each in planned[: len(results)]])
    print(f"All results: {options.output}")
    return 0 if any(result["status"] == "done" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
