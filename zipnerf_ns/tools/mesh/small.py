"""Meshes for phones: as few triangles as they draw, in a file that they open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.mesh.surface import MeshReport, drop_small_components
from zipnerf_ns.tools.scene.light import to_linear

UPRIGHT = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
"""Nerfstudio's frames have z up, glTF's y."""


def decimate(mesh: trimesh.Trimesh, most: int, report: MeshReport) -> tuple[trimesh.Trimesh, MeshReport]:
    """The mesh with not more triangles than a number, placed where they change it least, and what is known of it.

    Args:
        mesh: any; one of fewer triangles stays as it is.
        most: triangles.
        report: of the mesh.
    Raises:
        InputError: where open3d does not load.
    """
    if len(mesh.faces) <= most:
        return mesh, report
    # Late, for it needs libraries that other machines lack, and nothing else here does.
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise InputError(f"--max-triangles needs open3d: {error}. `make check` says which library it lacks.") from error
    whole = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(mesh.vertices), open3d.utility.Vector3iVector(mesh.faces)
    )
    # Garland and Heckbert's quadrics; edges whose collapse would join what is separate are left.
    small = whole.simplify_quadric_decimation(most).remove_unreferenced_vertices()
    mesh = trimesh.Trimesh(np.asarray(small.vertices), np.asarray(small.triangles), process=False)
    _, components, _ = drop_small_components(mesh, 0.0)
    return mesh, MeshReport.of(mesh, components, report.dropped)


def write_glb(mesh: trimesh.Trimesh, path: Path) -> None:
    """Writes glTF as viewers want it: y up, colors linear, and shown as they are, for they hold the scene's light."""
    bare = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.vertex_normals, process=False)
    colors = to_linear(np.asarray(mesh.visual.vertex_colors)[:, :3] / 255.0)
    opaque = np.concatenate([colors, np.ones((len(colors), 1))], axis=1)
    # Linear values of 8 bits would be steps that are seen in the dark, and trimesh writes colors of 8 bits only.
    bare.vertex_attributes["color"] = np.round(opaque * 65535.0).astype(np.uint16)
    scene = trimesh.Scene()
    scene.add_geometry(bare, transform=UPRIGHT)
    path.write_bytes(scene.export(file_type="glb", include_normals=True, tree_postprocessor=_finish))


def _finish(tree: dict[str, Any]) -> None:
    """Declares the attribute to be the color, and the color to be the light that is seen."""
    (primitive,) = tree["meshes"][0]["primitives"]
    colors = primitive["attributes"].pop("_color")
    primitive["attributes"]["COLOR_0"] = colors
    tree["accessors"][colors]["normalized"] = True
    primitive["material"] = 0
    # For viewers without the extension: at least no mirror, which glTF's default is.
    plain = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    tree["materials"] = [{"pbrMetallicRoughness": plain, "extensions": {"KHR_materials_unlit": {}}}]
    tree["extensionsUsed"] = ["KHR_materials_unlit"]
