"""What each part is worth: ``python -m zipnerf_ns.tools.ablate SCENE`` trains a method with one setting changed.

Every variant of one seed sees the same rays. Results go into ``ablation.json`` and ``ablation.md``.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zipnerf_ns.data.metadata import FRAME_KEY
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.compare import add_trial_arguments, checked, say, trial_fields, trial_folder
from zipnerf_ns.tools.trials.config import change, registered, value_of
from zipnerf_ns.tools.trials.gpu_queue import Planned, run_all
from zipnerf_ns.tools.trials.report import METRICS, budget, metric_cells, seconds_cell, table
from zipnerf_ns.tools.trials.trial import Trial, save_json
from zipnerf_ns.tools.trials.variants import BASE, NEEDS_SCALES, VARIANTS

CLOSE_CALL = 2.0
"""A difference smaller than this many standard errors of the difference is marked as not told apart."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m zipnerf_ns.tools.ablate", description="Trains a method with one setting changed at a time."
    )
    parser.add_argument("scenes", type=Path, nargs=1, metavar="SCENE", help="folder, or transforms file")
    parser.add_argument("--method", default="zipnerf", help="what the variants differ from")
    add_trial_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="every variant is trained with each")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"variants, of: {', '.join(VARIANTS)}")
    parser.add_argument("--output", type=Path, default=Path("outputs/ablate"), help="folder for all results")
    options = checked(parser, parser.parse_args(arguments))
    unknown = sorted(set(options.only or ()) - set(VARIANTS))
    if unknown:
        parser.error(f"no variant {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error("--seeds must be different")
    return options


def why_left_out(method: Any, name: str, has_scales: bool) -> str | None:
    """Why a variant needs no training, or cannot have any; None for one that does.

    Args:
        method: nerfstudio's TrainerConfig of the method.
        name: of the variant.
        has_scales: whether the scene is shown at several scales.
    """
    changes = VARIANTS[name]
    if name == BASE:
        return None
    if name in NEEDS_SCALES and not has_scales:
        return "the scene has one scale"
    try:
        if all(value_of(method, path) == value for path, value in changes.items()):
            return f"as {BASE}"
        change(copy.deepcopy(method), changes)
    except InputError as error:
        return str(error)
    return None


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error; NaN for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def difference(values: Mapping[int, float], base: Mapping[int, float]) -> str:
    """How much better than the base, over the seeds that both have, with the standard error over them."""
    common = [values[seed] - base[seed] for seed in values if seed in base]
    if not common:
        return "–"
    # Seed by seed, since both saw the same rays.
    mean, error = mean_and_error(common)
    if math.isnan(error):
        return f"{mean:+.2f}"
    return f"{mean:+.2f} ± {error:.2f}{' (not told apart)' if abs(mean) < CLOSE_CALL * error else ''}"


def by_variant(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Any]]:
    """Results by variant and seed, in the order of the rows."""
    results: dict[str, dict[int, Any]] = {}
    for row in rows:
        results.setdefault(row["variant"], {})[row["seed"]] = row
    return results


def report(options: argparse.Namespace, results: Mapping[str, Mapping[int, Any]], left_out: Mapping[str, str]) -> str:
    """The ablation table as Markdown.

    Args:
        options: of the command line.
        results: of trials, by variant and seed.
        left_out: variants that were not trained, and why.
    """
    any_result = next(iter(next(iter(results.values())).values()))
    done = {name: _done(by_seed) for name, by_seed in results.items()}
    scales = sorted(
        {int(scale) for by_seed in done.values() for each in by_seed.values() for scale in each["by_scale"]}
    )
    headings = ["variant", *(heading for _, heading, _ in METRICS), f"PSNR against {BASE}",
                *(f"PSNR at 1/{scale}" for scale in scales), "steps", "training s", "ms a step",
                "rendering Mrays/s", "GPU GiB"]  # fmt: skip
    base = {seed: result["metrics"]["psnr"] for seed, result in done.get(BASE, {}).items()}
    rows = [_row(name, results[name], done[name], base, scales, len(headings)) for name in results]
    lines = [
        f"# Ablation of `{options.method}` on {options.scenes[0].name}", "",
        f"{budget(any_result).replace('Each method', 'Each variant').split(';')[0]}; seeds "
        f"{', '.join(map(str, options.seeds))}, each with the same rays for every variant. Means over seeds; "
        "± is the standard error of the difference, seed by seed.",
        "", *table(headings, rows), "",
    ]  # fmt: skip
    lines += [f"- {name}: {reason}" for name, reason in left_out.items()]
    device = next((each["machine"]["device"] for by_seed in done.values() for each in by_seed.values()), None)
    lines += ["", f"Device: {device}."] if device is not None else []
    return "\n".join(lines).rstrip() + "\n"


def _done(by_seed: Mapping[int, Any]) -> dict[int, Any]:
    return {seed: result for seed, result in by_seed.items() if result["status"] == "done"}


def _row(
    name: str,
    by_seed: Mapping[int, Any],
    done: Mapping[int, Any],
    base: Mapping[int, float],
    scales: Sequence[int],
    num_columns: int,
) -> list[str]:
    if not done:
        reason = next(iter(by_seed.values()))["reason"].replace("|", "/")
        return [name, f"failed: {reason}", *[""] * (num_columns - 2)]

    def mean(*keys: str) -> float:
        values = []
        for result in done.values():
            for key in keys:
                result = result[key]
            values.append(result)
        return sum(values) / len(values)

    measured = [key for key, _, _ in METRICS if all(key in result["metrics"] for result in done.values())]
    against = "" if name == BASE else difference({seed: each["metrics"]["psnr"] for seed, each in done.items()}, base)
    return [
        name, *metric_cells({key: mean("metrics", key) for key in measured}), against,
        *(f"{mean('by_scale', str(scale), 'psnr'):.2f}" for scale in scales), f"{mean('steps'):,.0f}",
        seconds_cell(mean("seconds")), f"{1000.0 * mean('seconds') / max(mean('steps') - 1.0, 1.0):.1f}",
        f"{mean('rendered_rays_per_second') / 1e6:.2f}", f"{mean('peak_gpu_bytes') / 2**30:.1f}",
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Trains the variants, seed by seed, and writes the table after each; 0 if the base succeeded."""
    options = parse(arguments)
    scene = options.scenes[0].resolve()
    try:
        method = registered(options.method)
    except InputError as error:
        print(f"ablate: {error}", file=sys.stderr)
        return 1
    names = [name for name in VARIANTS if name == BASE or options.only is None or name in options.only]
    has_scales = len(options.scales) > 1 or shows_scales(scene)
    reasons = {name: why_left_out(method, name, has_scales) for name in names}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    # Seed by seed: a whole table stands after the first.
    variants = [(name, seed) for seed in options.seeds for name in names if name not in left_out]
    planned = []
    for name, seed in variants:
        trial = Trial(
            str(scene), options.method, seed=seed, same_rays=True, moments=1, changes=VARIANTS[name],
            **trial_fields(options),
        )  # fmt: skip
        folder = trial_folder(options.output, trial, f"{name.replace(' ', '_')}_seed{seed}")
        planned.append(Planned(trial, folder, f"{name}, seed {seed}"))
    done: dict[int, Any] = {}
    for index, result, was_there in run_all(planned, options.timeout, options.resume, options.gpus):
        done[index] = result
        say(result, planned[index].name, planned[index].folder, was_there)
        rows = [{"variant": variants[each][0], "seed": variants[each][1], **done[each]} for each in sorted(done)]
        save_json(options.output / "ablation.json", {"left_out": left_out, "results": rows})
        (options.output / "ablation.md").write_text(report(options, by_variant(rows), left_out), encoding="utf-8")
    print(f"All results: {options.output}")
    return 0 if _done(by_variant(rows).get(BASE, {})) else 1


def shows_scales(scene: Path) -> bool:
    """Whether a scene's own frames are at several scales."""
    path = scene if scene.suffix == ".json" else scene / "transforms.json"
    return path.is_file() and f'"{FRAME_KEY}"' in path.read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
