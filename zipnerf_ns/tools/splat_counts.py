"""What more Gaussians give: ``python -m zipnerf_ns.tools.splat_counts --load-config CONFIG``.

Splats of one field at several numbers of Gaussians, all for the same time: a table and a plot of their PSNR beside the
field's, their size as ``.spz``, and how many pictures a second they are drawn at.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from zipnerf_ns.engine.messages import print_unbroken
from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.distill.fit import SplatConfig
from zipnerf_ns.splats.files import write_gaussians
from zipnerf_ns.splats.making import Made, make_splats
from zipnerf_ns.splats.rasterizer import prepare_gsplat
from zipnerf_ns.tools.command import command, command_parser, table
from zipnerf_ns.tools.programs import load_field
from zipnerf_ns.tools.trials.figures import figure

COUNTS = (50_000, 200_000, 1_000_000, 3_000_000)


class Row(NamedTuple):
    """What a number of Gaussians gave."""

    most: int
    """Gaussians that were allowed."""
    gaussians: int
    """Gaussians that are left."""
    psnr: float
    ssim: float
    megabytes: float
    """Size as ``.spz``."""
    frames: float
    """Pictures of 1920x1080 a second."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    usual = SplatConfig()
    parser = command_parser("splat_counts", "Makes splats of a scene at several numbers of Gaussians, and plots them.")
    add = parser.add_argument
    add("--load-config", type=Path, required=True, help="config.yml of the run")
    add("--data", type=Path, help="the run's data, where they are now")
    add("--gaussians", type=int, nargs="+", default=COUNTS, help="at the most, one number for each splats")
    add("--seconds", type=float, default=usual.seconds, help="for each")
    add("--steps", type=int, help="instead of seconds")
    add("--output", type=Path, default=Path("splat_counts"), help="folder of table, plot, files and runs")
    options = parser.parse_args(arguments)
    if min(options.gaussians) < 2 or len(set(options.gaussians)) < len(options.gaussians):
        parser.error("--gaussians must be different numbers, each at least 2")
    return options


def row_of(most: int, made: Made, file: Path) -> Row:
    """What was made, measured; also written as a file.

    Raises:
        InputError: where there is no held-out photo.
    """
    if made.quality is None:
        raise InputError("the run has no held-out photos, by which numbers of Gaussians could be told apart.")
    write_gaussians(made.gaussians.cpu(), file)
    measured = made.quality.splats
    size = file.stat().st_size / 1e6
    return Row(most, len(made.gaussians), measured["psnr"], measured["ssim"], size, made.frames)


def report(rows: Sequence[Row], field: float, folder: Path) -> str:
    """Writes ``counts.md`` and ``counts.png``; the table's text.

    Args:
        rows: what was measured.
        field: PSNR of the field on the same photos.
        folder: for both.
    """
    headings = ("Gaussians at the most", "in the end", "PSNR", "SSIM", "MB as .spz", "pictures a second")
    cells = [
        (f"{row.most:,}", f"{row.gaussians:,}", f"{row.psnr:.2f}", f"{row.ssim:.4f}", f"{row.megabytes:.1f}",
         f"{row.frames:.0f}")
        for row in rows
    ]  # fmt: skip
    text = "\n".join([*table(headings, cells), "", f"The field has {field:.2f} dB on the same photos."])
    (folder / "counts.md").write_text(text + "\n", encoding="utf-8")
    labels = {"psnr": "PSNR of held-out photos, dB", "megabytes": "MB as .spz", "frames": "1920x1080 pictures a second"}
    rows = sorted(rows, key=lambda row: row.gaussians)
    with figure(folder / "counts.png", 1, len(labels), 4.5, 3.5) as axes:
        for axis, (name, label) in zip(axes[0], labels.items(), strict=True):
            axis.plot([row.gaussians for row in rows], [getattr(row, name) for row in rows], marker="o", color="C0")
            axis.set(xscale="log", xlabel="Gaussians", ylabel=label)
            axis.grid(alpha=0.3)
        axes[0, 0].axhline(field, color="C1", label="field")
        axes[0, 0].legend()
    return text


@command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Splats at every number, and what they give."""
    options = parse(arguments)
    prepare_gsplat(torch.device("cuda" if torch.cuda.is_available() else "cpu"), print_unbroken)
    pipeline = load_field(options.load_config, options.data, test_mode="test")
    usual = SplatConfig(seconds=options.seconds, steps=options.steps)
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for most in options.gaussians:
        config, folder = dataclasses.replace(usual, max_gaussians=most), options.output / str(most)
        made = make_splats(pipeline, config, folder, "splats", folder / "unfinished.ckpt", print_unbroken)
        rows.append(row_of(most, made, options.output / f"{most}.spz"))
        text = report(rows, made.quality.field["psnr"], options.output)
    print_unbroken(text)


if __name__ == "__main__":
    sys.exit(main())
