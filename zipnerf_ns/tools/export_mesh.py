"""A trained scene as a mesh with colored vertices.

``python -m zipnerf_ns.tools.export_mesh --load-config CONFIG --output-dir FOLDER`` runs marching cubes on the density,
which ``ns-export marching-cubes`` does for signed distances only. Frame, scale and bounding box are those of
``ns-export``: the frame that the model was trained in, where the cameras lie within one unit of the origin, or with
``--save-world-frame`` that of the data set. ``--output-format glb --max-triangles 200000`` is for phones and pages.
Of a scene that moves, ``--time`` gives a mesh of each moment.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import trimesh

from zipnerf_ns.data.poses import rounds_too_much
from zipnerf_ns.errors import InputError
from zipnerf_ns.render.points import Moment, query_density, query_points
from zipnerf_ns.tools.command import command, command_parser
from zipnerf_ns.tools.mesh.small import decimate, write_glb
from zipnerf_ns.tools.mesh.surface import (
    MeshReport,
    VoxelGrid,
    density_mesh,
    opacity_to_density,
    paint,
)
from zipnerf_ns.tools.programs import into_model_frame, load_field

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline

FORMATS = ("ply", "glb", "obj")
NAME = "density_mesh"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("export_mesh", "Exports the surface of a trained scene's density as a mesh with colors.")
    add = parser.add_argument
    add("--load-config", type=Path, required=True, help="config.yml of the run")
    add("--data", type=Path, help="the run's data, where they are now; a mesh needs none")
    add("--output-dir", type=Path, required=True, help=f"folder that {NAME}.ply is written to")
    add("--output-format", choices=FORMATS, default="ply", help="of the file")
    add("--resolution", type=int, default=256, help="voxels along the longest side of the bounding box")
    corner = {"type": float, "nargs": 3, "metavar": ("X", "Y", "Z")}
    add("--bounding-box-min", **corner, default=(-1.0, -1.0, -1.0), help="in the frame the model was trained in")
    add("--bounding-box-max", **corner, default=(1.0, 1.0, 1.0), help="in the frame the model was trained in")
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--density-threshold", type=float, default=30.0, help="at the surface, per unit of length")
    level.add_argument(
        "--opacity-threshold", type=float, default=argparse.SUPPRESS, help="instead: opacity of a voxel there, 0 to 1"
    )
    add("--time", type=float, nargs="+", default=[None], metavar="TIME",
        help="moments of a scene that moves, from 0 to 1: a mesh of each")  # fmt: skip
    add("--least-share", type=float, default=0.001, help="share of all faces that a separate surface needs to stay")
    add("--max-triangles", type=int, help="fewer, placed where the mesh changes least; phones draw some 200,000")
    add("--save-world-frame", action="store_true", help="in the data set's frame and scale instead of the model's")
    add("--points-per-chunk", type=int, default=1 << 17, help="evaluated at once; fewer take less memory")
    options = parser.parse_args(arguments)
    if not 0.0 < getattr(options, "opacity_threshold", 0.5) < 1.0:
        parser.error("--opacity-threshold must lie between 0 and 1, both excluded")
    if not options.density_threshold > 0.0:
        parser.error("--density-threshold must be positive")
    if not all(time is None or 0.0 <= time <= 1.0 for time in options.time):
        parser.error("--time must lie between 0 and 1")
    if not 0.0 <= options.least_share <= 1.0 or options.points_per_chunk < 1:
        parser.error("--least-share must lie between 0 and 1, and --points-per-chunk must be at least 1")
    if options.max_triangles is not None and options.max_triangles < 4:
        parser.error("--max-triangles must be at least 4")
    return options


def check_export(pipeline: Pipeline, options: argparse.Namespace, time: float | None) -> None:
    """Refuses a time where nothing moves, none where something does, and a format that would round the mesh away.

    Args:
        options, time: as for :func:`export`.
    Raises:
        InputError: saying what to give.
    """
    if pipeline.model.has_time != (time is not None):
        raise InputError(
            "this scene moves: say of which moments, such as --time 0 0.5 1." if pipeline.model.has_time
            else "nothing moves in this scene: leave --time out."
        )  # fmt: skip
    if options.save_world_frame and options.output_format != "obj":
        box = torch.tensor([options.bounding_box_min, options.bounding_box_max], dtype=torch.float64)
        if rounds_too_much(into_model_frame(pipeline).inverse().of_points(box).numpy()):
            raise InputError(
                f"the data set lies so far from its origin that {options.output_format}, which holds float32, would "
                "round the mesh away. Give --output-format obj, or leave --save-world-frame out."
            )


def export(
    pipeline: Pipeline, options: argparse.Namespace, time: float | None = None, name: str = NAME
) -> tuple[Path, MeshReport]:
    """Writes the mesh of a pipeline.

    Args:
        options: as of :func:`parse`.
        time: of a scene that moves.
        name: of the file, without its ending.
    Raises:
        InputError: for an empty bounding box, too high a resolution, a format that rounds, a box without matter, or a
            time where nothing moves.
    """
    model = pipeline.model.eval()
    grid = VoxelGrid.cover(options.bounding_box_min, options.bounding_box_max, options.resolution)
    check_export(pipeline, options, time)
    moment = None if time is None else Moment(time, model.shutter)
    threshold = options.density_threshold
    if hasattr(options, "opacity_threshold"):
        threshold = opacity_to_density(options.opacity_threshold, grid.voxel)
    # The mean over a voxel, as far as one number can say it: a uniform distribution has this deviation.
    std = grid.voxel / math.sqrt(12.0)
    print(f"{' x '.join(map(str, grid.counts))} voxels of side {grid.voxel:.4g}, surface at density {threshold:.4g}")
    mesh, report = density_mesh(
        lambda points: query_density(model.field, points, std, moment),
        grid,
        threshold,
        options.least_share,
        options.points_per_chunk,
        model.device,
        lambda line: print(line, flush=True),
    )
    if options.max_triangles is not None:
        mesh, report = decimate(mesh, options.max_triangles, report)
    # Painted afterwards: every vertex that is left shows the field's own color.
    paint(
        mesh,
        lambda points, views: query_points(model.field, points, views, std, moment)[1],
        options.points_per_chunk,
        model.device,
    )
    if options.save_world_frame:
        vertices = torch.tensor(mesh.vertices, dtype=torch.float64)
        mesh.vertices = into_model_frame(pipeline).inverse().of_points(vertices).numpy()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / f"{name}.{options.output_format}"
    write_mesh(mesh, path)
    return path, report


def write_mesh(mesh: trimesh.Trimesh, path: Path) -> None:
    """Writes a mesh with normals and colors in the format of the file's name."""
    if path.suffix == ".glb":
        write_glb(mesh, path)
    else:
        mesh.export(path, **{"vertex_normal" if path.suffix == ".ply" else "include_normals": True})


def describe(mesh_path: Path, report: MeshReport) -> str:
    """What was made, in lines."""
    closed = "watertight" if report.watertight else "not watertight"
    dropped = f", {report.dropped} smaller ones dropped (--least-share)" if report.dropped else ""
    return (
        f"{report.vertices:,} vertices, {report.faces:,} faces, {closed}, "
        f"{report.components} separate surface{'s' * (report.components != 1)}{dropped}\n{mesh_path}"
    )


@command()
def main(arguments: list[str] | None = None) -> None:
    """The export."""
    options = parse(arguments)
    pipeline = load_field(options.load_config, options.data)
    for number, time in enumerate(options.time):
        name = f"{NAME}_{number:04d}" if len(options.time) > 1 else NAME
        print(describe(*export(pipeline, options, time, name)))


if __name__ == "__main__":
    sys.exit(main())
