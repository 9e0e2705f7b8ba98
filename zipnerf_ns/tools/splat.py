"""Splats of a trained scene: ``python -m zipnerf_ns.tools.splat --load-config CONFIG``.

Gaussians that look like the field and are drawn hundreds of times a second, by RadSplat (Niemeyer et al. 2024): they
begin where the field has surfaces, and are fitted by gsplat to what the field and the photographs show. They are
written as a run of splatfacto, which Nerfstudio's programs take as their own.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch

from zipnerf_ns.engine.messages import print_unbroken
from zipnerf_ns.engine.safety.stopping import StopRequests
from zipnerf_ns.splats.distill.distill import Stopped
from zipnerf_ns.splats.distill.fit import SplatConfig
from zipnerf_ns.splats.files import WRITERS, write_gaussians
from zipnerf_ns.splats.gaussians import Gaussians
from zipnerf_ns.splats.making import UNFINISHED, make_splats
from zipnerf_ns.splats.page import StartView, write_page
from zipnerf_ns.splats.rasterizer import prepare_gsplat
from zipnerf_ns.tools.command import command, command_parser
from zipnerf_ns.tools.programs import into_model_frame, load_field


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    usual = SplatConfig()
    parser = command_parser(
        "splat", "Makes splats of a trained scene: Gaussians that look like it and are drawn in milliseconds."
    )
    add = parser.add_argument
    add("--load-config", type=Path, required=True, help="config.yml of the run")
    add("--data", type=Path, help="the run's data, where they are now")
    add("--output-dir", type=Path, default=Path("outputs"), help="the splats' run is made within, as by ns-train")
    add("--max-gaussians", type=int, default=usual.max_gaussians, help="at the most; phones carry 1.5 million")
    add("--seconds", type=float, default=usual.seconds, help="for all but the compilation of gsplat")
    add("--steps", type=int, help="instead of seconds: the same ones again give the same splats")
    add("--sh-degree", type=int, default=usual.sh_degree, help="how much colors depend on the view, 0 to 3")
    add("--prune-below", type=float, default=usual.prune_below,
        help="least share of some pixel that a Gaussian needs to stay; 0.25 makes a light scene")  # fmt: skip
    add("--photo-share", type=float, default=usual.photo_share, help="of the steps; the others look at the field")
    add("--field-views", type=int, help="views that the field renders; by default what a tenth of the time takes")
    add("--classic", action="store_true", help="not anti-aliased: for viewers that know nothing else")
    add("--compact", action="store_true", help="have Gaussians share colors as a .sog does, which then loses little")
    add("--seed", type=int, default=usual.seed, help="of all that is drawn at random")
    add("--resume", action="store_true", help="go on with what was stopped")
    add("--export", type=Path, nargs="+", default=[], metavar="FILE", help=f"also as files: {', '.join(WRITERS)}")
    add("--world-frame", action="store_true", help="files in the data set's frame and scale, not in the field's")
    add("--web", type=Path, metavar="FOLDER", help="also as a page that any web server hands out")
    options = parser.parse_args(arguments)
    for path in options.export:
        if path.suffix not in WRITERS:
            parser.error(f"--export {path} is in no format that is written here: {', '.join(WRITERS)}")
    return options


def settings(options: argparse.Namespace) -> SplatConfig:
    """The settings of a command line.

    Raises:
        InputError: if one cannot be.
    """
    names = ("max_gaussians", "seconds", "steps", "sh_degree", "prune_below", "photo_share", "field_views")
    chosen = {name: getattr(options, name) for name in names}
    return SplatConfig(**chosen, antialiased=not options.classic, compact=options.compact, seed=options.seed)


def export(gaussians: Gaussians, pipeline: Any, options: argparse.Namespace) -> None:
    """Writes the files and the page that are asked for, and says what they are.

    Args:
        gaussians: in the field's frame.
        pipeline: of the field.
        options: of :func:`parse`.
    """
    gaussians = gaussians.cpu()
    in_frame = gaussians.moved(into_model_frame(pipeline).inverse()) if options.world_frame else gaussians
    for path in options.export:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gaussians(in_frame, path)
        print_unbroken(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if options.web is not None:
        cameras = pipeline.datamanager.train_dataset.cameras
        narrow = torch.atan(torch.minimum(cameras.width / cameras.fx, cameras.height / cameras.fy) / 2.0).median()
        start = StartView.of_cameras(cameras.camera_to_worlds, 2.0 * math.degrees(float(narrow)))
        background = pipeline.model.background.tolist()
        report = write_page(gaussians, options.web, start, title=options.web.name, background=background)
        print_unbroken(
            f"{options.web}: a page of {report.gaussians:,} Gaussians, {report.size / 1e6:.1f} MB. To look at it: "
            f"python -m http.server --bind 127.0.0.1 --directory {options.web}, then http://localhost:8000"
        )


@command()
def main(arguments: list[str] | None = None) -> int | None:
    """The way from a run to splats."""
    options = parse(arguments)
    config = settings(options)
    prepare_gsplat(torch.device("cuda" if torch.cuda.is_available() else "cpu"), print_unbroken)
    pipeline = load_field(options.load_config, options.data, test_mode="test")
    experiment = options.load_config.absolute().parents[2].name
    unfinished = options.load_config.parent / UNFINISHED
    with StopRequests(is_alone=True) as stops:
        try:
            made = make_splats(
                pipeline, config, options.output_dir, experiment, unfinished, print_unbroken, options.resume,
                stops=lambda: stops.received is not None,
            )  # fmt: skip
        except Stopped:
            print_unbroken("Stopped: the same command with --resume goes on.")
            return stops.status
    return export(made.gaussians, pipeline, options)


if __name__ == "__main__":
    sys.exit(main())
