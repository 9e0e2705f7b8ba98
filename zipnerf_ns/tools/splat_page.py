"""Gaussians as a page for a web server, and in the formats that other programs read.

``python -m zipnerf_ns.tools.splat_page scene.ply FOLDER`` writes a page that any web server hands out and a phone
opens. With the name of a file instead of a folder it converts: ``scene.sog`` or ``scene.spz`` are a tenth of a .ply.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zipnerf_ns.errors import InputError, say
from zipnerf_ns.splats.files import WRITERS, read_gaussians, write_gaussians
from zipnerf_ns.splats.page import MOST_GAUSSIANS, StartView, write_page
from zipnerf_ns.tools.command import command, command_parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_parser(
        "splat_page", "Writes Gaussians as a page for a web server, or as a file of another format."
    )
    add = parser.add_argument
    add("gaussians", type=Path, help=f"file of Gaussians: {', '.join(WRITERS)}")
    add("target", type=Path, help=f"folder of the page, or a file: {', '.join(WRITERS)}")
    add(
        "--most-gaussians",
        type=int,
        default=MOST_GAUSSIANS,
        help="of the page; the least visible above it are left out",
    )
    place = {"type": float, "nargs": 3, "metavar": ("X", "Y", "Z"), "default": argparse.SUPPRESS}
    add("--position", **place, help="of the page's camera at first; by default outside, obliquely above")
    add("--look-at", **place, help="what that camera is turned about; by default the middle of all Gaussians")
    add("--up", **place, help="direction; by default z, as in Nerfstudio's frames")
    add("--fov", type=float, default=60.0, help="field of view along the shorter side of the screen, degrees")
    add("--title", default="Scene", help="of the page")
    add("--background", type=float, nargs=3, metavar=("R", "G", "B"), default=(0.0, 0.0, 0.0), help="color, 0 to 1")
    options = parser.parse_args(arguments)
    if options.most_gaussians < 1 or not 0.0 < options.fov < 180.0:
        parser.error("--most-gaussians must be at least 1, and --fov must lie between 0 and 180")
    return options


def run(options: argparse.Namespace) -> str:
    """Does what :func:`parse` read; a line that says what was written.

    Raises:
        InputError: for a file that is absent or holds no Gaussians.
    """
    gaussians = read_gaussians(options.gaussians)
    finite = gaussians.finite()
    if not finite.any():
        raise InputError(f"{options.gaussians} holds no Gaussian with finite numbers.")
    if not finite.all():
        say(f"{int((~finite).sum()):,} Gaussians of {options.gaussians} have numbers that are not finite: left out.")
    gaussians = gaussians.select(finite)
    if options.target.suffix in WRITERS:
        write_gaussians(gaussians, options.target)
        size = options.target.stat().st_size
        return f"{len(gaussians):,} Gaussians, {size / 1e6:.1f} MB: {options.target}"
    middle = StartView.of_gaussians(gaussians)
    start = StartView(
        tuple(getattr(options, "position", middle.position)),
        tuple(getattr(options, "look_at", middle.target)),
        tuple(getattr(options, "up", middle.up)),
        options.fov,
    )
    if start.position == start.target or not any(start.up):
        raise InputError("the camera stands at what it looks at, or --up has no direction: give another --position.")
    report = write_page(gaussians, options.target, start, options.most_gaussians, options.title, options.background)
    dropped = f", the {report.dropped:,} least visible left out (--most-gaussians)" if report.dropped else ""
    return (
        f"{report.gaussians:,} Gaussians, {report.size / 1e6:.1f} MB{dropped}: {options.target}\n"
        f"To look at it: python -m http.server --bind 127.0.0.1 --directory {options.target}, then http://localhost:8000"
    )


@command()
def main(arguments: list[str] | None = None) -> None:
    """The conversion."""
    print(run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
