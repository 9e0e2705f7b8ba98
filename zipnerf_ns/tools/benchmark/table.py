"""The benchmark's report as a table for a person."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from zipnerf_ns.tools.benchmark.setup import Row

WIDTH = 110
"""Columns of text."""
PIECES = ("encode", "mlp", "rays", "loss", "optimizer")
"""Parts whose rows are pieces of a step."""


def format_report(about: dict[str, Any], rows: Sequence[Row]) -> str:
    """The whole table.

    Args:
        about: device, versions, set-up and ceilings, as the JSON has them.
        rows: the lines, in any order of the parts.
    """
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row.part, []).append(row)
    names = about["implementations"]
    blocks = [
        _head(about),
        _pieces(parts, names),
        _levels(parts.get("level", []), names),
        _steps(parts, names),
        _pictures(parts.get("render", []), names),
        _scaling(parts.get("scaling", [])),
        _foot(rows),
    ]
    return "\n".join(line for block in blocks for line in block)


def _head(about: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    rates = about["ceilings"]
    ceilings = (
        f"measured ceilings: copy {rates['memory'] / 1e12:.3g} TB/s, cache {rates['cache'] / 1e12:.3g} TB/s, "
        f"products {rates['products'] / 1e12:.3g} TFLOP/s, atomics {rates['atomics'] / 1e9:.3g} G/s"
    )
    start = (
        f"start-up: {number(about['first_steps_seconds'])} s of first steps, in which kernels are compiled or read "
        "from disk, and the step is captured"
    )
    return [f"{about['device']}; {versions}", *textwrap.wrap(about["setup"], WIDTH), ceilings, start]


def _pieces(parts: dict[str, list[Row]], names: Sequence[str]) -> list[str]:
    """One line a piece of a step: by implementation its forward and backward pass and their sum."""
    rows = [row for part in PIECES for row in parts.get(part, [])]
    if not rows:
        return []
    columns = (*names, "floor")
    lines = [
        f"ms at {rows[0].rays:,} rays".ljust(26) + "".join(name.rjust(25) for name in columns) + "sum /".rjust(9),
        " " * 26 + "".join(f"{'fwd':>9}{'bwd':>8}{'sum':>8}" for _ in columns) + "floor".rjust(9),
    ]
    for part in PIECES:
        labels = dict.fromkeys(row.name for row in parts.get(part, []))
        for label in labels:
            lines.append(_piece(f"{part} {label}", [row for row in parts[part] if row.name == label], columns))
        if part in ("encode", "mlp"):
            lines += [_piece(f"{part} all rounds", parts[part], columns)] if len(labels) > 1 else []
    return lines


def _piece(label: str, rows: list[Row], columns: Sequence[str]) -> str:
    """One line: times summed over the rows of a direction."""
    line = label.ljust(26)
    for name in columns:
        for width, stages in ((9, ("forward", "whole")), (8, ("backward",)), (8, ())):
            line += number(_sum(rows, _of(name), stages)).rjust(width)
    return line + _ratio(_sum(rows, _of(columns[0])), _sum(rows, _of("floor"))).rjust(9)


def _levels(rows: list[Row], names: Sequence[str]) -> list[str]:
    """One line a resolution: the sum of both directions, round by round."""
    keys = [tuple(row.name.rsplit(" ", 1)) for row in rows]
    rounds, resolutions = dict.fromkeys(key[0] for key in keys), sorted({int(key[1]) for key in keys})
    columns = (*names, "floor")
    lines = [
        "encode, ms".ljust(12) + "".join("  " + name.rjust(9 * len(columns)) for name in rounds),
        "resolution".ljust(12) + "".join("  " + "".join(name.rjust(9) for name in columns) for _ in rounds),
    ]
    for resolution in resolutions:
        line = str(resolution).ljust(12)
        for name in rounds:
            own = [row for row, key in zip(rows, keys, strict=True) if key == (name, str(resolution))]
            line += "  " + "".join((number(_sum(own, _of(column))) if own else "").rjust(9) for column in columns)
        lines.append(line.rstrip())
    return lines if rows else []


def _steps(parts: dict[str, list[Row]], names: Sequence[str]) -> list[str]:
    """One line a number of rays: the bare step, the loop around it, and memory."""
    steps, loops, peaks = ({row.rays: row for row in parts.get(part, [])} for part in ("step", "loop", "memory"))
    sizes = sorted({*steps, *loops, *peaks})
    if not sizes:
        return []
    first = names[0]
    heads = [*(f"{name} ms" for name in names), "floor ms", "x floor", "M rays/s", "loop ms", "loop/bare"]
    lines = ["step, rays".ljust(11) + "".join(head.rjust(11) for head in [*heads, *(f"{n} GiB" for n in names)])]
    empty = Row("", "", 0, "")
    for rays in sizes:
        step, loop, peak = steps.get(rays, empty), loops.get(rays, empty), peaks.get(rays, empty)
        rate, loop_ms = step.values.get(f"{first} rays/s"), loop.ms.get(first)
        cells = [
            *(number(step.ms.get(name)) for name in names), number(step.floor_ms),
            _ratio(step.ms.get(first), step.floor_ms), number(rate and rate / 1e6), number(loop_ms),
            _ratio(loop_ms, loop.values.get("bare_ms")), *(number(peak.values.get(f"{name} GiB")) for name in names),
        ]  # fmt: skip
        lines.append(f"{rays:,}".ljust(11) + "".join(cell.rjust(11) for cell in cells))
    return lines + [_loop(loops[rays].values) for rays in sizes if rays in loops][:1]


def _loop(values: dict[str, Any]) -> str:
    """Where a loop's time goes beside its bare steps, which hardly depends on the number of rays."""
    return (
        f"loop: {number(values['loop_only_ms'] - values['bare_ms'])} ms a step beside the bare one; evaluation "
        f"{number(values['evaluation_ms'])} ms / {values['steps_per_evaluation']} steps, checkpoint "
        f"{number(values['checkpoint_ms'])} ms / {values['steps_per_checkpoint']}"
    )


def _pictures(rows: list[Row], names: Sequence[str]) -> list[str]:
    """One line a picture."""
    heads = [f"{name} {unit}" for name in names for unit in ("ms", "M rays/s")] + ["floor ms", "x floor"]
    lines = ["picture".ljust(14) + "".join(head.rjust(16) for head in heads)]
    for row in rows:
        rates = {name: row.values.get(f"{name} rays/s") for name in names}
        cells = [number(cell) for name in names for cell in (row.ms[name], rates[name] and rates[name] / 1e6)]
        cells += [number(row.floor_ms), _ratio(row.ms[names[0]], row.floor_ms)]
        lines.append(row.name.ljust(14) + "".join(cell.rjust(16) for cell in cells))
    return lines if rows else []


def _scaling(rows: list[Row]) -> list[str]:
    """One line a size that was varied: the times, and how they grow."""
    lines = ["encode NeRF, fwd + bwd, ms, against".ljust(80) + "exponent"]
    for row in rows:
        pairs = zip(row.values["values"], row.values["ms"], strict=True)
        curve = "  ".join(f"{short(value)}: {number(time)}" for value, time in pairs)
        exponent = f"{row.values['exponent']:.2f} {row.values['verdict']}"
        lines.append(f"{row.name.ljust(18)}{curve}".ljust(80) + exponent)
    return lines if rows else []


def _foot(rows: Sequence[Row]) -> list[str]:
    text = (
        "floor: per piece the largest of memory (inputs read once, outputs written once, over a copy's rate), table "
        "sectors of 32 bytes (each once a ray; forward over the cache's rate, backward over atomics'), products (over "
        "a large product's rate); a step's is their sum. Loop: ns-train's, evaluation, checkpoint and logs included. "
        "Medians after warm-up, caches flushed. The JSON has the counting in full."
    )
    left_out = dict.fromkeys(f"{row.part} {row.name}, {note}" for row in rows for note in row.notes)
    lines = textwrap.wrap(text, WIDTH)
    return lines + [textwrap.shorten(f"left out: {'; '.join(left_out)}", WIDTH)] if left_out else lines


def _of(name: str) -> Callable[[Row], float | None]:
    """What a column takes from a row."""
    return lambda row: row.floor_ms if name == "floor" else row.ms.get(name)


def _sum(rows: list[Row], value: Callable[[Row], float | None], stages: Sequence[str] = ()) -> float | None:
    """The sum over the rows of some stages (all if none is named); None if there is none or one was not measured."""
    values = [value(row) for row in rows if not stages or row.stage in stages]
    return None if not values or None in values else sum(values)


def _ratio(time: float | None, floor: float | None) -> str:
    return "-" if not time or not floor else number(time / floor)


def number(value: float | None) -> str:
    """Three digits, never an exponent."""
    if value is None:
        return "-"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}"


def short(value: int) -> str:
    """A count; powers of two from 1024 on by their exponent."""
    return f"2^{value.bit_length() - 1}" if value >= 1024 and value.bit_count() == 1 else str(value)
