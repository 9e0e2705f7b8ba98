"""The mesh exporter: frames, formats, options and refusals, on a field that is the built-in scene's true density."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
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
    model.field, model.device = TrueField(), torch.device("cpu")
    outputs = SimpleNamespace(dataparser_transform=TRANSFORM, dataparser_scale=SCALE)
    return SimpleNamespace(model=model, datamanager=SimpleNamespace(train_dataparser_outputs=outputs))


def options(folder: Path, *more: str):
    named = ["--load-config", "config.yml", "--output-dir", str(folder / "exports"), "--resolution", "120"]
    return export_mesh.parse([*named, "--bounding-box-min", "-0.7", "-0.7", "-0.5", *more])


def to_model(world: np.ndarray) -> np.ndarray:
    return SCALE * (world @ TRANSFORM[:, :3].numpy().T + TRANSFORM[:, 3].numpy())


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
    mesh = trimesh.load(path, process=False, force="mesh")
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


def test_a_mesh_in_map_coordinates_needs_a_format_that_holds_them(tmp_path, pipeline):
    """5,400 km north: float32 would have steps of half a unit; text has eight decimals."""
    chosen = options(tmp_path, "--save-world-frame", "--resolution", "60", "--output-format", "obj")
    near = trimesh.load(export_mesh.export(pipeline, chosen)[0], process=False, force="mesh").vertices
    shift, transform = np.array([412345.25, 5432109.75, 312.5]), TRANSFORM.double().clone()
    transform[:, 3] -= transform[:, :3] @ torch.from_numpy(shift)
    pipeline.datamanager.train_dataparser_outputs.dataparser_transform = transform
    far = trimesh.load(export_mesh.export(pipeline, chosen)[0], process=False, force="mesh").vertices
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


BAD_OPTIONS = [
    ("--opacity-threshold", "1"),
    ("--opacity-threshold", "0"),
    ("--density-threshold", "-3"),
    ("--density-threshold", "20", "--opacity-threshold", "0.5"),
    ("--least-share", "1.5"),
    ("--points-per-chunk", "0"),
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
