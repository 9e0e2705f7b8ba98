"""The mesh exporter: frames, formats, options and refusals, on a field that is the built-in scene's true density."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from _programs import has_libusb
from _true_scene import surface_distance

from zipnerf_ns.errors import InputError
from zipnerf_ns.field import Radiance, ZipNerfField
from zipnerf_ns.tools import export_mesh

SCALE = 0.4
TRANSFORM = torch.tensor([[0.0, -1.0, 0.0, 0.1], [0.8, 0.0, -0.6, -0.2], [0.6, 0.0, 0.8, 0.3]])
"""What a dataparser did: model = scale * (rotation @ world + shift)."""


class TrueField(ZipNerfField):
    """The built-in scene in a model's frame: its true density, and as color its world coordinates halved."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.encoding = torch.nn.Identity()
        self.aabb = None
        self.can_be_untold = True
        self.width = 0.0025

    def world(self, rays, tdist) -> np.ndarray:
        middle = tdist.double().mean(dim=-1, keepdim=True)
        points = rays.origins.double() + middle * rays.directions.double()
        return ((points / SCALE - TRANSFORM[:, 3].double()) @ TRANSFORM[:, :3].double()).numpy()

    def density(self, rays, tdist):
        away = SCALE * surface_distance(self.world(rays, tdist))
        density = 30.0 * np.exp(np.clip(-away / self.width, -40.0, 40.0))
        return torch.from_numpy(density).float()[:, None]

    def forward(self, rays, tdist) -> Radiance:
        colors = 0.5 + 0.25 * torch.from_numpy(self.world(rays, tdist)).float()[:, None]
        return Radiance(self.density(rays, tdist), colors, torch.zeros(len(tdist), 0))


@pytest.fixture
def pipeline() -> SimpleNamespace:
    """As much of a pipeline as the exporter uses."""
    model = torch.nn.Module()
    model.field, model.device, model.has_time = TrueField(), torch.device("cpu"), False
    outputs = SimpleNamespace(dataparser_transform=TRANSFORM, dataparser_scale=SCALE)
    return SimpleNamespace(model=model, datamanager=SimpleNamespace(train_dataparser_outputs=outputs))


def options(folder: Path, *more: str):
    named = ["--load-config", "config.yml", "--output-dir", str(folder / "exports"), "--resolution", "120"]
    return export_mesh.parse([*named, "--bounding-box-min", "-0.7", "-0.7", "-0.5", *more])


def to_model(world: np.ndarray) -> np.ndarray:
    return SCALE * (world @ TRANSFORM[:, :3].numpy().T + TRANSFORM[:, 3].numpy())


def load_model(path: Path) -> trimesh.Trimesh:
    """The mesh of a file with z up, and colors as a screen is given them."""
    if path.suffix != ".glb":
        return trimesh.load(path, process=False, force="mesh")
    tree, data = read_glb(path)
    primitive = tree["meshes"][0]["primitives"][0]
    parts = {name: accessed(tree, data, number) for name, number in primitive["attributes"].items()}
    light = parts["COLOR_0"][:, :3] / 65535.0
    colors = 255.0 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1.0 / 2.4) - 0.055)
    painted = {"vertex_colors": colors.round().astype(np.uint8), "vertex_normals": parts["NORMAL"]}
    faces = accessed(tree, data, primitive["indices"]).reshape(-1, 3)
    # Parents follow their children here: a vertex is turned by the mesh's node, and by all above it.
    nodes, at = tree["nodes"], next(i for i, node in enumerate(tree["nodes"]) if "mesh" in node)
    turn = np.eye(4)
    while at is not None:
        turn = np.array(nodes[at].get("matrix", np.eye(4).ravel())).reshape(4, 4).T @ turn
        at = next((i for i, node in enumerate(nodes) if at in node.get("children", ())), None)
    up = [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]
    np.testing.assert_allclose(up @ turn[:3, :3], np.eye(3), atol=1e-12)
    return trimesh.Trimesh(parts["POSITION"], faces, **painted, process=False)


def read_glb(path: Path) -> tuple[dict, bytes]:
    """The description and the numbers of a .glb, as its specification cuts it."""
    content = path.read_bytes()
    length = struct.unpack("<I", content[12:16])[0]
    assert content[:4] == b"glTF" and struct.unpack("<II", content[4:12]) == (2, len(content))
    return json.loads(content[20 : 20 + length]), content[28 + length :]


def accessed(tree: dict, data: bytes, number: int) -> np.ndarray:
    """The numbers of one of its accessors."""
    accessor = tree["accessors"][number]
    kind = {5123: "<u2", 5125: "<u4", 5126: "<f4"}[accessor["componentType"]]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
    start = tree["bufferViews"][accessor["bufferView"]].get("byteOffset", 0) + accessor.get("byteOffset", 0)
    return np.frombuffer(data, kind, accessor["count"] * width, start).reshape(-1, width)


def test_a_mesh_lies_on_the_true_surface_in_the_worlds_frame(tmp_path, pipeline):
    path, report = export_mesh.export(pipeline, options(tmp_path, "--save-world-frame"))
    mesh = trimesh.load(path, process=False)
    assert path == tmp_path / "exports/density_mesh.ply"
    assert report.watertight and mesh.is_watertight and mesh.volume > 0.0
    assert (len(mesh.vertices), len(mesh.faces)) == (report.vertices, report.faces)
    points, _ = trimesh.sample.sample_surface(mesh, 10_000, seed=0)
    away = np.abs(surface_distance(points))
    # A voxel is 0.035 world units here; thin bars and edges are rounded.
    assert away.mean() < 0.002 and np.quantile(away, 0.99) < 0.015
    assert mesh.bounds[0, 2] == pytest.approx(-0.5, abs=0.005) and mesh.bounds[1, 0] == pytest.approx(1.2, abs=0.005)


@pytest.mark.parametrize("form", ["ply", "glb", "obj"])
def test_every_format_holds_the_same_mesh_in_the_models_frame(tmp_path, pipeline, form):
    path, report = export_mesh.export(pipeline, options(tmp_path, "--output-format", form, "--resolution", "60"))
    mesh = load_model(path)
    assert path.suffix == f".{form}" and mesh.is_watertight
    assert (len(mesh.vertices), len(mesh.faces)) == (report.vertices, report.faces)
    world, _ = export_mesh.export(pipeline, options(tmp_path, "--save-world-frame", "--resolution", "60"))
    expected = trimesh.load(world, process=False)
    np.testing.assert_allclose(mesh.vertices, to_model(expected.vertices), atol=2e-5)
    colors = np.asarray(mesh.visual.vertex_colors)[:, :3]
    truth = 255.0 * np.clip(0.5 + 0.25 * np.asarray(expected.vertices), 0.0, 1.0)
    # Rounded to 8 bits, twice where a file holds floats.
    assert np.abs(colors - truth).max() <= 1.01
    stored = np.asarray(mesh.vertex_normals)
    assert (stored * (np.asarray(expected.vertex_normals) @ TRANSFORM[:, :3].numpy().T)).sum(-1).min() > 0.99


def test_glb_is_shown_as_it_is(tmp_path, pipeline):
    """No light is to be added to colors that hold the scene's, and every field is what glTF's readers insist on."""
    path, _ = export_mesh.export(pipeline, options(tmp_path, "--output-format", "glb", "--resolution", "40"))
    tree, data = read_glb(path)
    (material,) = tree["materials"]
    (primitive,) = tree["meshes"][0]["primitives"]
    assert material["extensions"] == {"KHR_materials_unlit": {}} and tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0.0 and primitive["material"] == 0
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "COLOR_0"}
    colors = tree["accessors"][primitive["attributes"]["COLOR_0"]]
    assert (
        colors["normalized"] is True and (accessed(tree, data, primitive["attributes"]["COLOR_0"])[:, 3] > 65534).all()
    )
    positions = accessed(tree, data, primitive["attributes"]["POSITION"])
    place = tree["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_allclose([place["min"], place["max"]], [positions.min(0), positions.max(0)], atol=1e-6)


def test_fewer_triangles_are_the_same_surface(tmp_path, pipeline):
    """Within the limit, closed as before, near the true surface, and painted with the field's colors there."""
    if not has_libusb():
        pytest.skip("open3d does not load here: apt-get install libusb-1.0-0")
    most = 4000
    chosen = options(tmp_path, "--save-world-frame", "--resolution", "90", "--max-triangles", str(most))
    path, report = export_mesh.export(pipeline, chosen)
    mesh = trimesh.load(path, process=False)
    assert 0.9 * most < len(mesh.faces) <= most and (len(mesh.vertices), len(mesh.faces)) == report[:2]
    assert report.watertight and mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0.0
    points, _ = trimesh.sample.sample_surface(mesh, 10_000, seed=0)
    away = np.abs(surface_distance(points))
    assert away.mean() < 0.004 and np.quantile(away, 0.99) < 0.02
    truth = 255.0 * np.clip(0.5 + 0.25 * np.asarray(mesh.vertices), 0.0, 1.0)
    assert np.abs(np.asarray(mesh.visual.vertex_colors)[:, :3] - truth).max() <= 1.01


def test_without_open3d_it_is_said(tmp_path, pipeline, monkeypatch):
    """A library that open3d is linked against may be missing; whole meshes need none of it."""
    monkeypatch.setitem(sys.modules, "open3d", None)
    export_mesh.export(pipeline, options(tmp_path, "--resolution", "20"))
    with pytest.raises(InputError, match="--max-triangles needs open3d"):
        export_mesh.export(pipeline, options(tmp_path, "--resolution", "20", "--max-triangles", "100"))


def test_a_mesh_within_the_limit_stays(tmp_path, pipeline):
    """More triangles than there are change nothing."""
    whole, report = export_mesh.export(pipeline, options(tmp_path, "--resolution", "40"))
    content = whole.read_bytes()
    again = options(tmp_path, "--resolution", "40", "--max-triangles", str(report.faces))
    assert export_mesh.export(pipeline, again) == (whole, report) and whole.read_bytes() == content


def test_a_mesh_in_map_coordinates_needs_a_format_that_holds_them(tmp_path, pipeline):
    """5,400 km north: float32 would have steps of half a unit; text has eight decimals."""
    chosen = options(tmp_path, "--save-world-frame", "--resolution", "60", "--output-format", "obj")
    near = load_model(export_mesh.export(pipeline, chosen)[0]).vertices
    shift, transform = np.array([412345.25, 5432109.75, 312.5]), TRANSFORM.double().clone()
    transform[:, 3] -= transform[:, :3] @ torch.from_numpy(shift)
    pipeline.datamanager.train_dataparser_outputs.dataparser_transform = transform
    far = load_model(export_mesh.export(pipeline, chosen)[0]).vertices
    np.testing.assert_allclose(far - shift, near, atol=1e-6)
    for form in ("ply", "glb"):
        with pytest.raises(InputError, match=f"that {form}, which holds float32.*Give --output-format obj"):
            export_mesh.export(pipeline, options(tmp_path, "--save-world-frame", "--output-format", form))


def test_thresholds_move_the_surface_by_the_densitys_law(tmp_path, pipeline):
    """A density that falls by e every hundredth of a unit: e times the threshold lies that much farther inside."""
    pipeline.model.field.width = 0.01
    bounds = {}
    for threshold in (30.0, 30.0 * np.e):
        chosen = options(tmp_path, "--save-world-frame", "--density-threshold", str(threshold))
        bounds[threshold] = trimesh.load(export_mesh.export(pipeline, chosen)[0], process=False).bounds
    first, second = bounds.values()
    # The plinth's rim and underside.
    for moved in (second[0, 2] - first[0, 2], first[1, 0] - second[1, 0], first[1, 1] - second[1, 1]):
        assert moved == pytest.approx(0.01 / SCALE, rel=0.05)


def test_an_opacity_is_a_density_of_a_voxel(tmp_path, pipeline, capsys):
    export_mesh.export(pipeline, options(tmp_path, "--opacity-threshold", "0.9"))
    voxel = 1.7 / 120
    assert f"surface at density {np.log(10.0) / voxel:.4g}" in capsys.readouterr().out


def test_the_box_is_in_the_models_frame(tmp_path, pipeline):
    corner = ("--bounding-box-max", "0.1", "0.2", "0.3")
    path, report = export_mesh.export(pipeline, options(tmp_path, *corner))
    bounds = trimesh.load(path, process=False).bounds
    assert report.watertight and (bounds[0] >= -0.701).all() and (bounds[1] < np.array([0.1, 0.2, 0.3]) + 0.0075).all()
    assert bounds[1, 0] == pytest.approx(0.1, abs=0.0075)


class RisingField(TrueField):
    """The same, as high in the data's frame as the time is."""

    def world(self, rays, tdist) -> np.ndarray:
        assert rays.shutter == 0.1
        return super().world(rays, tdist) - rays.times.double().numpy() * [0.0, 0.0, 1.0]


def test_of_a_scene_that_moves_each_moment_is_a_mesh(tmp_path, pipeline, monkeypatch, capsys):
    pipeline.model.field, pipeline.model.has_time, pipeline.model.shutter = RisingField(), True, 0.1
    monkeypatch.setattr(export_mesh, "load_field", lambda config, data: pipeline)
    command = ["--load-config", "config.yml", "--output-dir", str(tmp_path), "--resolution", "60", "--save-world-frame"]
    assert export_mesh.main([*command, "--time", "0.25", "0.5"]) == 0
    lowest = [trimesh.load(tmp_path / f"density_mesh_{index:04d}.ply", process=False).bounds[0, 2] for index in (0, 1)]
    # The plinth's underside is half a unit below the origin; a voxel is 0.08 units here.
    assert lowest == pytest.approx([-0.25, 0.0], abs=0.03) and lowest[1] - lowest[0] == pytest.approx(0.25, abs=0.003)
    assert export_mesh.main([*command, "--time", "0.5"]) == 0
    assert trimesh.load(tmp_path / "density_mesh.ply", process=False).bounds[0, 2] == pytest.approx(lowest[1])
    assert export_mesh.main(command) == 1
    assert "--time 0 0.5 1" in capsys.readouterr().err
    pipeline.model.has_time = False
    assert export_mesh.main([*command, "--time", "0.5"]) == 1
    assert "nothing moves" in capsys.readouterr().err


BAD_OPTIONS = [
    ("--time", "1.5"),
    ("--opacity-threshold", "1"),
    ("--opacity-threshold", "0"),
    ("--density-threshold", "-3"),
    ("--density-threshold", "20", "--opacity-threshold", "0.5"),
    ("--least-share", "1.5"),
    ("--points-per-chunk", "0"),
    ("--max-triangles", "3"),
    ("--output-format", "stl"),
]


@pytest.mark.parametrize("bad", BAD_OPTIONS)
def test_options_out_of_range_are_refused(tmp_path, bad, capsys):
    with pytest.raises(SystemExit) as caught:
        options(tmp_path, *bad)
    assert caught.value.code == 2 and bad[0] in capsys.readouterr().err


def test_a_missing_run_is_one_line(tmp_path, capsys):
    assert export_mesh.main(["--load-config", str(tmp_path / "no.yml"), "--output-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and "no.yml does not exist" in error and error.count("\n") == 1


def test_description_says_what_was_made_and_dropped():
    report = export_mesh.MeshReport(1200, 2400, False, 1, 7)
    said = export_mesh.describe(Path("out/density_mesh.ply"), report)
    assert said.splitlines() == [
        "1,200 vertices, 2,400 faces, not watertight, 1 separate surface, 7 smaller ones dropped (--least-share)",
        "out/density_mesh.ply",
    ]
