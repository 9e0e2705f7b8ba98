"""What each part is worth: ``python -m zipnerf_ns.tools.ablate SCENE`` trains a method with one setting changed.

Every variant of one seed sees the same rays, where it has as many of them. ``--only "A + B"`` changes two settings
together. Results go into ``ablation.json`` and ``ablation.md``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.data.metadata import FRAME_KEY, mean_metrics
from zipnerf_ns.data.transforms import transforms_file
from zipnerf_ns.errors import InputError
from zipnerf_ns.functional.hash_grid import Prefilter
from zipnerf_ns.tools.command import command, command_parser
from zipnerf_ns.tools.compare import add_trial_arguments, checked, planned_trial
from zipnerf_ns.tools.trials.config import change, registered
from zipnerf_ns.tools.trials.report import (
    METRICS,
    Result,
    budget,
    cost_cells,
    failed_row,
    metric_cells,
    standard_error,
    succeeded,
    table,
)
from zipnerf_ns.tools.trials.trial import run_all

CLOSE_CALL = 2.0
"""A difference smaller than this many standard errors of the difference is marked as not told apart."""
COST_COLUMNS = ("steps", "training s", "ms a step", "rendering Mrays/s", "GPU GiB")
BASE = "full"
"""The method as it is."""

MODEL = "pipeline.model"
TOGETHER = " + "
"""Between the names of variants that are one."""


def _model(**fields: Any) -> dict[str, Any]:
    """Differences of the model's fields."""
    return {f"{MODEL}.{name}": value for name, value in fields.items()}


PEAKS = {"hash_tables": 0.01, "networks": 0.005}
"""Peaks of the method ``zipnerf``'s learning rates."""


def _schedule(last: float | None = None, full_steps: int = 1) -> dict[str, Any]:
    """Differences of the schedules of tables and networks, the last rate as a share of the peak."""
    found: dict[str, Any] = {}
    for group, peak in PEAKS.items():
        found[f"optimizers.{group}.scheduler.full_steps"] = full_steps
        if last is not None:
            found[f"optimizers.{group}.scheduler.lr_final"] = last * peak
    return found


VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    **{f"prefilter {kind}": _model(prefilter=kind) for kind in get_args(Prefilter)},
    **{f"proposals' prefilter {kind}": _model(proposal_prefilter=kind) for kind in get_args(Prefilter)},
    "distillation": _model(distillation_loss_mult=0.01),
    "no distillation": _model(distillation_loss_mult=0.0),
    "no interlevel": _model(interlevel_loss_mult=0.0),
    "distillation instead of interlevel": _model(interlevel_loss_mult=0.0, distillation_loss_mult=0.01),
    "level consistency": _model(level_consistency_mult=0.01),
    "no level consistency": _model(level_consistency_mult=0.0),
    "distortion": _model(distortion_loss_mult=0.05),
    "distortion of 0.01": _model(distortion_loss_mult=0.01),
    "no distortion": _model(distortion_loss_mult=0.0),
    "hash decay": _model(hash_decay_mult=0.1),
    "no hash decay": _model(hash_decay_mult=0.0),
    "progressive levels": _model(progressive_levels=True),
    "all levels at once": _model(progressive_levels=False),
    "scene-adapted resolutions": _model(scene_adapted_resolution=True),
    "fixed resolutions": _model(scene_adapted_resolution=False),
    "pseudo-Huber": _model(rgb_loss="pseudo_huber"),
    "Charbonnier": _model(rgb_loss="charbonnier"),
    "squared error": _model(rgb_loss="mse"),
    "root mean squared error": _model(rgb_loss="rmse"),
    # As many intervals in each of the two proposal rounds and in the rendered one.
    **{
        f"{3 * each} intervals a ray": {
            f"{MODEL}.{owner}num_samples": each for owner in ("proposals.0.", "proposals.1.", "")
        }
        for each in (16, 32, 64, 128)
    },
    **{
        f"{rays:,} rays a step": {"pipeline.datamanager.train_num_rays_per_batch": rays}
        for rays in (4096, 8192, 16_384, 32_768, 65_536)
    },
    "last rates a tenth": _schedule(last=0.1),
    "last rates a hundredth": _schedule(last=0.01),
    # As in a training so short that it has no time for small steps.
    "rates that fall late": _schedule(full_steps=10**9),
    **{f"{each} rendered intervals": _model(num_samples=each) for each in (16, 24, 48)},
    **{f"colors of {each} intervals": _model(color_group=each) for each in (1, 2, 4, 8)},
    **{f"pictures by squares of {side}": _model(picture_square=side) for side in ("auto", 1, 2, 4)},
    **{f"tables of 2^{log2}": {f"{MODEL}.grid.log2_hashmap_size": log2} for log2 in range(18, 23)},
    "gradient scaling": _model(use_gradient_scaling=True),
    "no gradient scaling": _model(use_gradient_scaling=False),
    "all rays told": _model(untold_every=0),
    **{f"one ray in {every} untold": _model(untold_every=every) for every in (4, 8, 16)},
    "appearance": _model(use_appearance=True),
    "no appearance": _model(use_appearance=False),
    **{f"motion {kind}": {f"{MODEL}.motion.kind": kind} for kind in ("none", "blend", "deform", "both")},
    **{f"motion's prefilter {kind}": {f"{MODEL}.motion.prefilter": kind} for kind in get_args(Prefilter)},
    **{f"{knots} knots": {f"{MODEL}.motion.grid.max_knots": knots} for knots in (16, 32, 64)},
    **{f"{knots} knots of the deformation": {f"{MODEL}.motion.deformation.max_knots": knots} for knots in (16, 32, 64)},
    "motion from the first step": {f"{MODEL}.motion.still_first": 0.0},
    "no rays that see the still alone": {f"{MODEL}.motion.still_every": 0},
    "deformation without a layer": {f"{MODEL}.motion.hidden_dim": 0},
    "no mask": {f"{MODEL}.motion.mask": False},
    "no mask loss": _model(mask_loss_mult=0.0),
    "mask loss": _model(mask_loss_mult=0.01),
    "center chosen": {"pipeline.datamanager.dataparser.center_method": "auto"},
    "centered among cameras": {"pipeline.datamanager.dataparser.center_method": "poses"},
    "centered where cameras look": {"pipeline.datamanager.dataparser.center_method": "focus"},
    "camera optimization": {f"{MODEL}.camera_optimizer.mode": "SO3xR3"},
    "scales weighted by area": {"pipeline.datamanager.scale_weighting": "area"},
    "scales weighted evenly": {"pipeline.datamanager.scale_weighting": "even"},
    # The buffer is for a tenth of the pixels of 255 photos of 800x533.
    "pixels from a disk": {"pipeline.datamanager.pixels.where": "disk", "pipeline.datamanager.pixels.buffer": 0.071},
}
"""Fields by their dotted names. A variant that changes nothing, because the method is so already, is not trained."""

NEEDS_SCALES: tuple[str, ...] = ("scales weighted by area", "scales weighted evenly")
"""Variants that are the base on scenes of one scale."""


def changes_of(name: str) -> dict[str, Any]:
    """The fields of a variant, or of several together: "A + B"."""
    return {path: value for part in name.split(TOGETHER) for path, value in VARIANTS[part].items()}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("ablate", "Trains a method with one setting changed at a time.")
    parser.add_argument("scenes", type=Path, nargs=1, metavar="SCENE", help="folder, or transforms file")
    parser.add_argument("--method", default="zipnerf", help="what the variants differ from")
    add_trial_arguments(parser, "variant", 0)
    parser.add_argument("--only", nargs="+", metavar="NAME",
                        help=f"variants, or several together as 'A + B', of: {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("outputs/ablate"), help="folder for all results")
    options = checked(parser, parser.parse_args(arguments))
    unknown = sorted({part for name in options.only or () for part in name.split(TOGETHER)} - set(VARIANTS))
    if unknown:
        parser.error(f"no variant {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    return options


def why_left_out(method: Any, name: str, has_scales: bool) -> str | None:
    """Why a variant needs no training, or cannot have any; None for one that does.

    Args:
        method: nerfstudio's TrainerConfig of the method.
        name: of the variant.
        has_scales: whether the scene is shown at several scales.
    """
    if name == BASE:
        return None
    if not has_scales and set(name.split(TOGETHER)) & set(NEEDS_SCALES):
        return "the scene has one scale"
    try:
        return None if change(copy.deepcopy(method), changes_of(name)) else f"as {BASE}"
    except InputError as error:
        return str(error)


def difference(values: Mapping[int, float], base: Mapping[int, float]) -> str:
    """How much better than the base, over the seeds that both have, with the standard error over them."""
    common = [values[seed] - base[seed] for seed in values if seed in base]
    if not common:
        return "–"
    # Seed by seed, since both saw the same rays.
    mean = statistics.fmean(common)
    if len(common) == 1:
        return f"{mean:+.2f}"
    error = standard_error(common)
    return f"{mean:+.2f} ± {error:.2f}{' (not told apart)' if abs(mean) < CLOSE_CALL * error else ''}"


def report(options: argparse.Namespace, results: Sequence[Result], left_out: Mapping[str, str]) -> str:
    """The ablation table as Markdown.

    Args:
        options: of the command line.
        results: of trials, each with its ``variant`` and ``seed``.
        left_out: variants that were not trained, and why.
    """
    finished = succeeded(results)
    latest = {each["variant"]: each for each in results}
    done = {name: [each for each in finished if each["variant"] == name] for name in latest}
    scales = sorted({int(scale) for each in finished for scale in each["by_scale"]})
    headings = ["variant", *(heading for _, heading, _ in METRICS), f"PSNR against {BASE}",
                *(f"PSNR at 1/{scale}" for scale in scales), *COST_COLUMNS]  # fmt: skip
    rows = [
        _row(name, group, done.get(BASE, []), scales) if group else failed_row(name, latest[name], len(headings))
        for name, group in done.items()
    ]
    lines = [
        f"# Ablation of `{options.method}` on {options.scenes[0].name}", "",
        f"{budget(results[0]).replace('Each method', 'Each variant')}; seeds "
        f"{', '.join(map(str, options.seeds))}, each with the same rays for every variant. Means over seeds; ± is "
        "their standard error, that of a difference seed by seed.",
        "", *table(headings, rows), "", *(f"- {name}: {reason}" for name, reason in left_out.items()),
    ]  # fmt: skip
    lines += ["", f"Device: {finished[0]['machine']['device']}."] if finished else []
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, done: Sequence[Result], base: Sequence[Result], scales: Sequence[int]) -> list[str]:
    by_scale = [mean_metrics([result["by_scale"][str(scale)] for result in done])["psnr"] for scale in scales]
    own, others = ({each["seed"]: each["metrics"]["psnr"] for each in group} for group in (done, base))
    return [
        name, *metric_cells([result["metrics"] for result in done]),
        "" if name == BASE else difference(own, others), *(f"{psnr:.2f}" for psnr in by_scale),
        *cost_cells(done, COST_COLUMNS),
    ]  # fmt: skip


@command()
def main(arguments: list[str] | None = None) -> int:
    """Trains the variants, seed by seed, and writes the table after each; 0 if the base succeeded."""
    options = parse(arguments)
    scene = options.scenes[0].resolve()
    method = registered(options.method)
    names = list(dict.fromkeys([BASE, *(VARIANTS if options.only is None else options.only)]))
    has_scales = len(options.scales) > 1 or shows_scales(scene)
    reasons = {name: why_left_out(method, name, has_scales) for name in names}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    # Seed by seed: a whole table stands after the first.
    variants = [(name, seed) for seed in options.seeds for name in names if name not in left_out]
    planned = [
        planned_trial(options, scene, options.method, f"{name}, seed {seed}", seed=seed, same_rays=True, moments=1,
                      changes=changes_of(name))
        for name, seed in variants
    ]  # fmt: skip
    for results in run_all(planned, options.resume, options.gpus):
        rows = [{"variant": name, "seed": seed, **result}
                for (name, seed), result in zip(variants, results, strict=False)]  # fmt: skip
        write_json(options.output / "ablation.json", {"left_out": left_out, "results": rows})
        (options.output / "ablation.md").write_text(report(options, rows, left_out), encoding="utf-8")
    print(f"All results: {options.output}")
    return 0 if any(row["variant"] == BASE and row["status"] == "done" for row in rows) else 1


def shows_scales(scene: Path) -> bool:
    """Whether a scene's own frames are at several scales."""
    path = transforms_file(scene)
    return path.is_file() and f'"{FRAME_KEY}"' in path.read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
