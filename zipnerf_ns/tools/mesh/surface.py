"""The surface of a density as a mesh: samples on a grid of voxels, marching cubes, components, checks.

Pure geometry: densities come as functions of points, so that the same code is measured on a scene whose surface is
known exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from skimage import measure
from torch import Tensor

from zipnerf_ns.data.memory import check_room
from zipnerf_ns.errors import InputError
from zipnerf_ns.render.pictures import to_bytes

SURFACE = 0.5
"""Occupancy at the surface, see `occupancy`."""
LEAST_STEP = 1e-3
"""Occupancy that every sample keeps away from the surface's: it moves vertices by a thousandth of a voxel."""
BYTES_PER_VOXEL = 12
"""The samples in float32, their padded copy, and what marching cubes keeps beside them."""
SECONDS_BETWEEN_LINES = 5.0

DensityFunction = Callable[[Tensor], Tensor]
"""A function from points `[n, 3]` to densities `[n]` per world unit."""


@dataclass(frozen=True)
class VoxelGrid:
    """Cubic voxels that cover a box, and reach beyond its upper corner by less than one; samples are their centers."""

    lower: tuple[float, float, float]
    """The box's lower corner, world units."""
    voxel: float
    """Side of a voxel, world units."""
    counts: tuple[int, int, int]
    """Voxels along each axis."""

    @classmethod
    def cover(cls, lower: Sequence[float], upper: Sequence[float], resolution: int) -> VoxelGrid:
        """The grid with ``resolution`` voxels along the box's longest side.

        Raises:
            InputError: for a box without a volume, or a grid that does not fit into the machine's memory.
        """
        sides = [high - low for low, high in zip(lower, upper, strict=True)]
        if not all(math.isfinite(side) and side > 0.0 for side in sides):
            raise InputError(
                f"the bounding box {tuple(lower)} to {tuple(upper)} is empty: give its lower corner first."
            )
        if resolution < 2:
            raise InputError(f"resolution is {resolution}: it must be at least 2.")
        voxel = max(sides) / resolution
        # A thousandth of a voxel for rounding.
        grid = cls(tuple(lower), voxel, tuple(max(1, math.ceil(side / voxel - 1e-3)) for side in sides))
        needed = BYTES_PER_VOXEL * math.prod(grid.counts)
        mend = "Lower it, or give a smaller bounding box."
        check_room(f"resolution {resolution} needs", needed, torch.device("cpu"), mend)
        return grid

    def centers(self, first: int, last: int, device: torch.device | str) -> Float[Tensor, "points 3"]:
        """Centers of the voxels with numbers from ``first`` up to ``last``, counted with z fastest."""
        number = torch.arange(first, last, device=device)
        _, ny, nz = self.counts
        indices = torch.stack([number // (ny * nz), number // nz % ny, number % nz], dim=-1)
        return (indices + 0.5) * self.voxel + torch.tensor(self.lower, device=device)


class MeshReport(NamedTuple):
    """What is known of a mesh once it is made."""

    vertices: int
    faces: int
    watertight: bool
    """Every edge belongs to exactly two faces that agree on what is outside."""
    components: int
    """Separate surfaces that were kept."""
    dropped: int
    """Separate surfaces that were too small to keep."""

    @classmethod
    def of(cls, mesh: trimesh.Trimesh, components: int, dropped: int) -> MeshReport:
        """The report of a mesh of so many surfaces."""
        watertight = bool(mesh.is_watertight and mesh.is_winding_consistent)
        return cls(len(mesh.vertices), len(mesh.faces), watertight, components, dropped)


def opacity_to_density(opacity: float, length: float) -> float:
    """The density of which a length has an opacity.

    Args:
        opacity: between 0 and 1, both excluded.
        length: world units.
    """
    return -math.log1p(-opacity) / length


def occupancy(density: Float[Tensor, "points"], threshold: float) -> Float[Tensor, "points"]:
    """density / (density + threshold): 0 in empty space, 1 in matter, a half at the threshold.

    The level set is the same as the density's own. But between two voxels a density rises by many orders of
    magnitude, and linear interpolation of it would put every vertex beside the emptier one.
    """
    return density / (density + threshold)


def sample_occupancy(
    density_at: DensityFunction,
    grid: VoxelGrid,
    threshold: float,
    points_per_chunk: int,
    device: torch.device | str = "cpu",
    say: Callable[[str], object] = lambda line: None,
) -> Float[np.ndarray, "nx ny nz"]:
    """Occupancy at every voxel's center.

    Args:
        density_at: the density.
        grid: the voxels.
        threshold: the density at the surface, per world unit.
        points_per_chunk: evaluated at once.
        device: of the points that ``density_at`` is given.
        say: takes a line of progress now and then.
    """
    total = math.prod(grid.counts)
    values = np.empty(total, dtype=np.float32)
    begun = said = time.monotonic()
    for first in range(0, total, points_per_chunk):
        last = min(first + points_per_chunk, total)
        values[first:last] = occupancy(density_at(grid.centers(first, last, device)), threshold).cpu().numpy()
        now = time.monotonic()
        if now - said > SECONDS_BETWEEN_LINES and last < total:
            said = now
            say(f"{last / total:.0%} of {total:,} voxels, about {(now - begun) * (total / last - 1.0):.0f} s left")
    return values.reshape(grid.counts)


def extract_surface(values: Float[np.ndarray, "nx ny nz"], grid: VoxelGrid) -> trimesh.Trimesh:
    """The closed surface around occupied voxels; where matter reaches the box, the box's face closes it.

    Raises:
        InputError: if nothing is occupied.
    """
    if not (values > SURFACE).any():
        raise InputError(
            "no density in the bounding box reaches the threshold. Lower --density-threshold or "
            "--opacity-threshold, or check --bounding-box-min and --bounding-box-max."
        )
    # One layer of emptiness around: its voxels' centers lie half a voxel beyond the box, and the surface no farther
    # than halfway to them.
    padded = np.pad(values, 1)
    # A sample at the level would make triangles without an area, around a vertex that coincides with it.
    close = np.abs(padded - SURFACE) < LEAST_STEP
    padded[close] = np.where(padded[close] < SURFACE, SURFACE - LEAST_STEP, SURFACE + LEAST_STEP)
    # "ascent" leaves the triangles in the order in which they are made: counterclockwise from outside matter.
    vertices, faces, _, _ = measure.marching_cubes(padded, SURFACE, gradient_direction="ascent")
    vertices = (vertices.astype(np.float64) - 0.5) * grid.voxel + np.array(grid.lower)
    # Unprocessed: merging vertices that happen to coincide would join surfaces that only touch.
    return trimesh.Trimesh(vertices, faces, process=False)


def drop_small_components(mesh: trimesh.Trimesh, least_share: float) -> tuple[trimesh.Trimesh, int, int]:
    """The mesh without separate surfaces of few faces.

    Args:
        least_share: of the whole mesh's faces that a surface needs to stay; the largest always stays.
    Returns:
        the mesh, how many surfaces stayed, and how many went.
    """
    labels = trimesh.graph.connected_component_labels(mesh.edges, node_count=len(mesh.vertices))
    _, surfaces, sizes = np.unique(labels[mesh.faces[:, 0]], return_inverse=True, return_counts=True)
    keep = sizes >= min(least_share * len(mesh.faces), sizes.max())
    if not keep.all():
        mesh = mesh.submesh([np.flatnonzero(keep[surfaces])], append=True, repair=False)
    return mesh, int(keep.sum()), int((~keep).sum())


def density_mesh(
    density_at: DensityFunction,
    grid: VoxelGrid,
    threshold: float,
    least_share: float = 0.0,
    points_per_chunk: int = 1 << 17,
    device: torch.device | str = "cpu",
    say: Callable[[str], object] = lambda line: None,
) -> tuple[trimesh.Trimesh, MeshReport]:
    """The surface of a density, and what is known of it.

    Args:
        density_at, grid, threshold, points_per_chunk, device, say: as for :func:`sample_occupancy`.
        least_share: as for :func:`drop_small_components`.
    Raises:
        InputError: if nothing is occupied.
    """
    values = sample_occupancy(density_at, grid, threshold, points_per_chunk, device, say)
    mesh, stayed, dropped = drop_small_components(extract_surface(values, grid), least_share)
    return mesh, MeshReport.of(mesh, stayed, dropped)


def paint(
    mesh: trimesh.Trimesh,
    color_at: Callable[[Tensor, Tensor], Tensor],
    points_per_chunk: int,
    device: torch.device | str = "cpu",
) -> None:
    """Gives every vertex the color that is seen when it is looked at straight from outside.

    Args:
        mesh: changed in place.
        color_at: from points `[n, 3]` and unit directions of view `[n, 3]` to colors `[n, 3]` in [0, 1].
        points_per_chunk: evaluated at once.
        device: of the points that ``color_at`` is given.
    """
    points = torch.from_numpy(np.array(mesh.vertices, dtype=np.float32))
    views = -torch.from_numpy(np.array(mesh.vertex_normals, dtype=np.float32))
    chunks = zip(points.split(points_per_chunk), views.split(points_per_chunk), strict=True)
    colors = torch.cat([color_at(point.to(device), view.to(device)).cpu() for point, view in chunks])
    opaque = np.full((len(colors), 1), 255, dtype=np.uint8)
    mesh.visual.vertex_colors = np.concatenate([to_bytes(colors).numpy(), opaque], axis=-1)
