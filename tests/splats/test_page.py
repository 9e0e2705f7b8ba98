"""What a page's folder holds: which Gaussians, from where they are seen first, and the command that writes it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from _splats import ball

from zipnerf_ns.splats.files import read_gaussians, write_gaussians
from zipnerf_ns.splats.files.sog import decode
from zipnerf_ns.splats.page import StartView, write_page
from zipnerf_ns.tools.splat_page import main


def read_page(folder: Path) -> tuple[dict, int]:
    """A page's view, and how many Gaussians it has."""
    return json.loads((folder / "view.json").read_text()), json.loads((folder / "meta.json").read_text())["count"]


def test_the_least_visible_are_dropped(tmp_path: Path):
    """Faint, small and distant Gaussians go first, and a page counts what it holds."""
    one = dataclasses.replace(ball(4, 0), means=torch.zeros(4, 3), scales=torch.zeros(4, 3), opacities=torch.zeros(4))
    one.means[1, 0], one.scales[2], one.opacities[3] = 20.0, -0.5, -0.5
    start = StartView((0.0, -5.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    report = write_page(one, tmp_path, start, most=3)
    view, count = read_page(tmp_path)
    assert (report.gaussians, report.dropped, count) == (3, 1, 3)
    assert float(decode(lambda name: (tmp_path / name).read_bytes()).means.abs().max()) < 1.0
    assert report.size == sum(path.stat().st_size for path in tmp_path.iterdir()) > view["bytes"] > 0
    assert view["position"] == [0.0, -5.0, 0.0]


def test_start_view_is_a_cameras_own():
    """Of cameras around a point the middle one's place and direction, turning about that point, their up being up."""
    target, up = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 0.0, 1.0])
    poses = []
    for angle in (-0.8, -0.3, 0.0, 0.4, 0.7):
        backward = torch.tensor([math.cos(angle), math.sin(angle), 0.3])
        backward = backward / backward.norm()
        right = torch.nn.functional.normalize(torch.linalg.cross(up, backward), dim=0)
        axes = [right, torch.linalg.cross(backward, right), backward, target + 3.0 * backward]
        poses.append(torch.stack(axes, dim=1))
    view = StartView.of_cameras(torch.stack(poses), 47.0)
    torch.testing.assert_close(torch.tensor(view.position), poses[2][:, 3])
    torch.testing.assert_close(torch.tensor(view.target), target, atol=1e-4, rtol=0.0)
    assert view.fov == 47.0 and view.up[2] > 0.8
    outward = torch.stack(poses)
    outward[:, :, [0, 2]] *= -1.0
    view = StartView.of_cameras(outward, 47.0)
    ahead = torch.tensor(view.target) - torch.tensor(view.position)
    torch.testing.assert_close(ahead / ahead.norm(), poses[2][:, 2])
    assert StartView.of_cameras(torch.stack(poses[:1]), 47.0).target != view.target


def test_command_writes_pages_and_files(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Broken Gaussians are left out, the first view is what was asked for, and formats follow from names."""
    gaussians = ball(60, 1)
    gaussians.means[7] = torch.nan
    write_gaussians(gaussians, tmp_path / "scene.ply")
    arguments = [str(tmp_path / "scene.ply"), str(tmp_path / "page")]
    assert main([*arguments, "--most-gaussians", "50", "--position", "3", "0", "0", "--title", "My room"]) == 0
    said = capsys.readouterr().out
    assert "50 Gaussians" in said and "the 9 least visible left out" in said
    assert "python -m http.server --bind 127.0.0.1 " in said, "the network is not asked in"
    view, count = read_page(tmp_path / "page")
    assert (count, view["position"], view["title"], view["up"]) == (50, [3.0, 0.0, 0.0], "My room", [0, 0, 1])
    assert math.dist(view["target"], (0, 0, 0)) < 0.3
    assert main([str(tmp_path / "scene.ply"), str(tmp_path / "scene.spz")]) == 0
    assert len(read_gaussians(tmp_path / "scene.spz")) == 59


def test_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    """What is absent, empty, or no view."""
    assert main([str(tmp_path / "scene.ply"), str(tmp_path / "page")]) == 1
    gaussians = ball(4, 0)
    write_gaussians(gaussians, tmp_path / "scene.ply")
    here = ["--position", "1", "2", "3", "--look-at", "1", "2", "3"]
    assert main([str(tmp_path / "scene.ply"), str(tmp_path / "page"), *here]) == 1
    gaussians.means[:] = torch.inf
    write_gaussians(gaussians, tmp_path / "scene.ply")
    assert main([str(tmp_path / "scene.ply"), str(tmp_path / "page")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors] == ["Error"] * 3
    assert "not there" in errors[0] and "stands at what it looks at" in errors[1] and "no Gaussian with" in errors[2]
    assert not (tmp_path / "page").exists()
