"""Results of trials as Markdown tables that say by themselves what was measured and how."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zipnerf_ns.data.metadata import mean_metrics
from zipnerf_ns.tools.command import table

Result = Mapping[str, Any]
"""What a trial leaves: see :mod:`worker`."""

METRICS = (("psnr", "PSNR", "{:.2f}"), ("ssim", "SSIM", "{:.4f}"), ("lpips", "LPIPS (VGG)", "{:.4f}"))
"""Keys, headings and formats."""
COSTS: dict[str, Callable[[Mapping[str, float]], str]] = {
    "steps": lambda mean: f"{mean['steps']:,.0f}",
    "Mrays": lambda mean: f"{mean['rays'] / 1e6:.1f}",
    "training s": lambda mean: seconds_cell(mean["seconds"]),
    "ms a step": lambda mean: f"{1000.0 * mean['seconds'] / max(mean['steps'] - 1.0, 1.0):.1f}",
    "set-up s": lambda mean: seconds_cell(mean["setup_seconds"]),
    "first use s": lambda mean: seconds_cell(mean["first_use_seconds"]),
    "evaluation s": lambda mean: seconds_cell(mean["evaluation_seconds"]),
    "rendering Mrays/s": lambda mean: f"{mean['rendered_rays_per_second'] / 1e6:.2f}",
    "GPU GiB": lambda mean: f"{mean['peak_gpu_bytes'] / 2**30:.1f}" if mean["peak_gpu_bytes"] else "–",
}
"""Headings, and what stands below them, from the means of results' numbers."""
HOW = (
    "All methods: nerfstudio's own trainer, the same views held out, pictures quantized to 8 bits before they are "
    "measured, PSNR in dB and SSIM (11 x 11 Gaussian window) averaged over pictures. Training time is counted from the "
    "end of the first step, without evaluation, set-up and what is compiled at first use, which stand in columns of "
    "their own. Rays of methods that render whole pictures are the pictures' pixels."
)


def metric_cells(each: Sequence[Mapping[str, float]]) -> list[str]:
    """PSNR, SSIM and LPIPS, or a dash for what was not measured.

    Args:
        each: metrics of trainings that differ by their seeds: their mean stands there, with its standard error.
    """
    columns = [(form, [metrics[key] for metrics in each if key in metrics]) for key, _, form in METRICS]
    return [_mean_cell(form, values) if values else "–" for form, values in columns]


def _mean_cell(form: str, values: Sequence[float]) -> str:
    error = f" ± {form.format(standard_error(values))}" if len(values) > 1 else ""
    return form.format(statistics.fmean(values)) + error


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of at least two values."""
    return statistics.stdev(values) / math.sqrt(len(values))


def cost_cells(results: Sequence[Result], headings: Iterable[str]) -> list[str]:
    """Cells below some headings of COSTS, of the mean of results."""
    numbers = [{key: float(value) for key, value in each.items() if type(value) in (int, float)} for each in results]
    return [COSTS[heading](mean_metrics(numbers)) for heading in headings]


def seconds_cell(seconds: float) -> str:
    """Seconds to three digits or so."""
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.1f}"


def scene_name(scene: Path | str) -> str:
    """A scene's folder's name, and its file's where it is given by one."""
    path = Path(scene)
    return path.parent.name + "/" + path.stem if path.suffix else path.name


def group_by_scene(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by their scene's name, in the order in which they come."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(scene_name(result["trial"]["scene"]), []).append(result)
    return groups


def group_by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by their method, which with several seeds has several, in the order in which they come."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["trial"]["method"], []).append(result)
    return groups


def succeeded(results: Sequence[Result]) -> list[Result]:
    """Those of trials that did not fail."""
    return [result for result in results if result["status"] == "done"]


def outcome(name: str, result: Result, log: Path) -> str:
    """One line about a trial that is over.

    Args:
        name: what it is known by on its scene.
        result: what it left.
        log: file of all that it printed.
    """
    if result["status"] != "done":
        said = f"failed: {result['reason']} (all that it printed: {log})"
    elif "metrics" not in result:
        said = f"built: first step {result['first_step_seconds']:.0f} s"
    else:
        metrics = ", ".join(f"{key} {value:.4g}" for key, value in result["metrics"].items())
        said = f"{metrics}; {result['steps']} steps in {result['seconds']:.1f} s"
    return f"{scene_name(result['trial']['scene'])}, {name}: {said}"


def failed_row(name: str, result: Result, num_columns: int) -> list[str]:
    """A table's row for a trial that failed; a bar in the reason would be another column."""
    return [name, f"failed: {result['reason']}".replace("|", "/"), *[""] * (num_columns - 2)]


def comparison(results: Sequence[Result]) -> str:
    """The whole report of a comparison.

    Args:
        results: of trials, in the order of their rows; those of one method on one scene share a row.
    """
    lines = ["# Comparison", "", HOW, ""]
    for scene, group in group_by_scene(results).items():
        seeds = list(dict.fromkeys(result["trial"]["seed"] for result in group))
        lines += [f"## {scene}", "", f"{budget(group[0])}; {_seeds(seeds)}.", "", *_main_table(group), ""]
        if any(result.get("by_scale") for result in group):
            lines += ["Mean PSNR and SSIM at each scale:", "", *_scale_table(group), ""]
        lines += [*_notes(group), ""]
    return "\n".join(lines).rstrip() + "\n"


def budget(result: Result) -> str:
    """What each training was given, and the pictures' scales."""
    trial = result["trial"]
    given = f"{trial['seconds']:g} s of training" if trial["seconds"] is not None else f"{trial['steps']:,} steps"
    scales = f", at scales {', '.join(f'1/{scale}' for scale in trial['scales'])}" if trial["scales"] else ""
    return f"Each method: {given}{scales}"


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {', '.join(map(str, seeds))}, of which means stand here; ± is their standard error"


def _main_table(group: Sequence[Result]) -> list[str]:
    costs = [heading for heading in COSTS if heading != "ms a step"]
    headings = ["method", *(heading for _, heading, _ in METRICS), *costs, "device"]
    rows = []
    for method, results in group_by_method(group).items():
        if done := succeeded(results):
            cells = [*metric_cells([result["metrics"] for result in done]), *cost_cells(done, costs)]
            rows.append([f"`{method}`", *cells, done[0]["machine"]["device"]])
        else:
            rows.append(failed_row(f"`{method}`", results[0], len(headings)))
    return table(headings, rows)


def _scale_table(group: Sequence[Result]) -> list[str]:
    scales = sorted({int(scale) for result in group for scale in result.get("by_scale", {})})
    rows = []
    for method, results in group_by_method(group).items():
        measured = [result["by_scale"] for result in succeeded(results)]
        means = ([by_scale[str(scale)] for by_scale in measured if str(scale) in by_scale] for scale in scales)
        rows.append([f"`{method}`", *(" / ".join(metric_cells(each)[:2]) if each else "–" for each in means)])
    return table(["method", *(f"1/{scale}" for scale in scales)], rows)


def _notes(group: Sequence[Result]) -> list[str]:
    lines = []
    for method, results in group_by_method(group).items():
        done = succeeded(results)
        if not done:
            continue
        first = done[0]
        notes = [f"schedule: {first['schedule']}", *first["notes"], f"LPIPS: {first['lpips']}"]
        notes += [
            f"stopped by the clock at {result['steps'] / result['planned_steps']:.0%} of its schedule"
            for result in done
            if result["steps"] < result["planned_steps"]
        ]
        notes += [
            f"seed {result['trial']['seed']} failed: {result['reason']}"
            for result in results
            if result["status"] != "done"
        ]
        if changes := first["trial"]["changes"]:
            notes.append("changed: " + ", ".join(f"{path}={value}" for path, value in changes.items()))
        lines.append(f"- `{method}`: " + "; ".join(notes) + ".")
    return lines
