"""The measure of pictures of other sizes and from other distances."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from _rays import make_model, tiny_config

from nerfstudio.cameras.cameras import Cameras

from zipnerf_ns.tools import other_views


def cameras(count: int = 3) -> Cameras:
    """Some on one axis, that look along it at the origin."""
    poses = torch.eye(4)[None, :3].repeat(count, 1, 1)
    poses[:, 2, 3] = torch.linspace(1.5, 1.7, count)
    return Cameras(poses, fx=9.0, fy=8.0, cx=4.5, cy=3.5, width=9, height=7)


def test_cameras_come_nearer_by_a_factor():
    found = other_views.moved(cameras(), torch.tensor([0.2, 0.1, 0.5]), 0.5)
    torch.testing.assert_close(found.camera_to_worlds[:, 2, 3], 0.5 + 0.5 * torch.tensor([1.0, 1.1, 1.2]))
    assert torch.equal(cameras().camera_to_worlds[:, :, :3], found.camera_to_worlds[:, :, :3])


@pytest.mark.parametrize(("size", "shape"), [(0.25, (1, 2)), (0.5, (3, 4)), (1.0, (7, 9)), (2.0, (7, 9))])
def test_sizes_are_compared_over_the_same_areas(size, shape):
    photo = torch.rand(7, 9, 3)
    camera, compared, truth = other_views.resized(other_views.View(cameras(1), photo), size)
    assert (int(camera.height), int(camera.width)) == (int(7 * size), int(9 * size))
    side = max(1, round(1.0 / size))
    expected = photo[: shape[0] * side, : shape[1] * side].unflatten(0, (-1, side)).unflatten(2, (-1, side))
    assert truth.shape == (*shape, 3)
    torch.testing.assert_close(truth, expected.mean(dim=(1, 3)))
    assert compared(torch.zeros(int(camera.height), int(camera.width), 3)).shape == truth.shape


def test_tables_have_a_row_for_each_size_and_distance(monkeypatch, capsys):
    model, told = make_model(tiny_config()), []
    model.learn_of(cameras())
    forward = model.field.forward
    monkeypatch.setattr(model.field, "forward", lambda rays, *args: told.append(rays.told) or forward(rays, *args))
    photos = [torch.rand(7, 9, 3) for _ in range(3)]
    held_out = SimpleNamespace(cameras=cameras(), get_image_float32=photos.__getitem__, __len__=lambda self: 3)
    dataset = type("DataSet", (), {"__len__": lambda self: 3, **vars(held_out)})()
    manager = SimpleNamespace(eval_dataset=dataset, train_dataset=SimpleNamespace(cameras=cameras()))
    monkeypatch.setattr(other_views, "load_field", lambda *asked: SimpleNamespace(model=model, datamanager=manager))
    photos_known = model.photos
    assert other_views.main(["--load-config", "some.yml", "--views", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    split = lines.index("")
    sizes, distances = ([line for line in part if line[:1] == "|"] for part in (lines[:split], lines[split:]))
    assert len(sizes) == 2 + len(other_views.SIZES) and len(distances) == 2 + len(other_views.DISTANCES)
    assert "dB" in sizes[-1] and distances[-1].startswith("| 2 |")
    # As many rays in each of three ways, of which one is told all and one nothing; afterwards all is as it was.
    shares = torch.cat(told)
    assert (shares == 1.0).sum() >= len(shares) // 3 <= (shares == 0.0).sum()
    assert model.photos is photos_known and "as_seen" not in vars(model.zipnerf)


def test_no_views_are_refused(capsys):
    assert other_views.main(["--load-config", "some.yml", "--views", "0"]) == 1
    assert "--views is 0" in capsys.readouterr().err
