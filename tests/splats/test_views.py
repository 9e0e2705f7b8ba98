"""Pinholes of training cameras, photos undistorted into them, and new views between."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _cameras import make_cameras
from _scenes import pose

from nerfstudio.cameras.cameras import Cameras, CameraType

from zipnerf_ns.cameras.appearance import Appearance
from zipnerf_ns.cameras.rays import PixelRays
from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.distill.points import OPACITY, SHELL, SPREAD, THINNEST, extent, first_gaussians
from zipnerf_ns.splats.distill.views import (
    Pinhole,
    Target,
    between,
    in_mean_light,
    pinholes,
    project,
    undistorted,
)
from zipnerf_ns.splats.gaussians import SH_C0


def circle(count: int) -> list[Pinhole]:
    """Cameras that look at the origin."""
    poses = [torch.tensor(pose(index, count))[:3].float() for index in range(count)]
    return [Pinhole(each, 26.0, 25.0, 12.5, 7.5, 24, 16) for each in poses]


@pytest.mark.parametrize("kind", [CameraType.PERSPECTIVE, CameraType.FISHEYE])
def test_projection_inverts_the_rays(kind):
    """A point on the ray that Nerfstudio generates for a pixel is put back onto that pixel, to a thousandth."""
    cameras = make_cameras([kind.value], [True])
    height, width = int(cameras.height), int(cameras.width)
    indices = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(2, height - 2, 5), torch.arange(2, width - 2, 5))
    directions = PixelRays(cameras, "cpu", "torch")(indices).directions
    camera = (directions @ cameras.camera_to_worlds[0, :, :3]) * torch.tensor([1.0, -1.0, -1.0])
    front = camera[:, 2] > 0.2
    plane = (camera[:, :2] / camera[:, 2:])[front]
    found = project(plane, cameras.distortion_params[0], kind == CameraType.FISHEYE)
    focal, center = torch.cat([cameras.fx, cameras.fy], -1), torch.cat([cameras.cx, cameras.cy], -1)
    expected = indices[front][:, [2, 1]] + 0.5
    assert len(expected) > 10
    torch.testing.assert_close(found * focal + center, expected, atol=1e-2, rtol=0.0)


def test_photos_are_undistorted_where_they_reach():
    """A photo whose colors say where they are: pixels of the pinhole have the colors of their places in the photo, and
    those beyond its edge, or made of what a mask ignores, do not count."""
    view = Pinhole(torch.eye(4)[:3], 30.0, 30.0, 20.0, 15.0, 40, 30)
    rows, columns = torch.meshgrid(torch.arange(30), torch.arange(40), indexing="ij")
    image = torch.stack([6 * columns, 8 * rows, 0 * rows], dim=-1).to(torch.uint8)
    used = columns[..., None] >= 10
    lens = torch.tensor([0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
    picture, counts = undistorted(image, used, view, lens, False)
    x = (torch.arange(40) + 0.5 - 20.0) / 30.0
    y = (torch.arange(30) + 0.5 - 15.0)[:, None] / 30.0
    gain = 1.0 + 0.3 * (x * x + y * y)
    places = torch.stack([20.0 + 30.0 * gain * x, 15.0 + 30.0 * gain * y], dim=-1)
    inside = (places > 1.0).all(-1) & (places[..., 0] < 39.0) & (places[..., 1] < 29.0)
    expected = (places - 0.5) * torch.tensor([6.0, 8.0])
    assert float((picture[..., :2].float() - expected)[inside].abs().max()) <= 0.6
    assert not counts[(places < 0.0).any(-1)].any() and not counts[..., 0][places[..., 0] < 9.5].any()
    assert counts[..., 0][inside & (places[..., 0] > 11.0)].all()
    same, all_count = undistorted(image, None, view, torch.zeros(6), False)
    assert same is image and all_count is None


def test_photos_in_their_own_light_come_into_the_mean_one():
    """What the appearance does to a color is undone, but for rounding and clipping; alpha stays."""
    appearance = Appearance(2)
    with torch.no_grad():
        appearance.log_gains.copy_(torch.tensor([[0.2, -0.1, 0.05], [-0.3, 0.2, 0.1]]))
    colors = 0.05 + 0.6 * torch.rand(20, 1, 3)
    shown = (appearance(colors, 1) * 255.0).round().to(torch.uint8).detach()
    image = torch.cat([shown, torch.full((20, 1, 1), 77, dtype=torch.uint8)], dim=-1)
    found = in_mean_light(image, appearance.gains()[1].detach())
    assert float((found[..., :3] / 255.0 - colors).abs().max()) < 1.5 / 255.0 and bool((found[..., 3] == 77).all())


def test_new_views_lie_between_neighbors():
    """Of a circle's cameras: within its chords, looking almost at the center, through one's lens; none for one."""
    cameras = circle(12)
    found = between(cameras, 30, np.random.default_rng(0))
    assert len(found) == 30 and between(cameras[:1], 3, np.random.default_rng(0)) == []
    for camera in found:
        place, forward = camera.pose[:, 3], -camera.pose[:, 2]
        assert math.cos(2 * math.pi / 12) * 2.4 < float(place.norm()) < 2.9
        assert float(torch.nn.functional.cosine_similarity(forward, -place, dim=0)) > 0.99
        torch.testing.assert_close(camera.pose[:, :3].T @ camera.pose[:, :3], torch.eye(3), atol=1e-5, rtol=0.0)
        assert (camera.fx, camera.width) == (26.0, 24)
        assert min(float((place - each.pose[:, 3]).norm()) for each in cameras) > 0.1


def test_reduced_cameras_see_squares_of_pixels():
    """At half the size a picture is the mean of four pixels, alpha first, and a point falls at half its place."""
    camera = circle(3)[0]
    half = camera.halved
    point = torch.tensor([0.2, -0.1, 0.3, 1.0])
    places = []
    for each in (camera, half):
        seen = each.intrinsics @ (each.viewmat @ point)[:3]
        places.append(seen[:2] / seen[2])
    torch.testing.assert_close(places[0], 2.0 * places[1])
    colors = torch.randint(256, (5, 6, 4), dtype=torch.uint8)
    used = torch.ones(5, 6, 1, dtype=torch.bool)
    used[0, 0] = False
    background = torch.tensor([0.2, 0.5, 0.9])
    rgb, counts = Target(camera, colors, used).picture(background, is_halved=True)
    values = colors.double() / 255.0
    over = values[..., :3] * values[..., 3:] + background * (1.0 - values[..., 3:])
    assert rgb.shape == (2, 3, 3) and float(counts[0, 0]) == 0.75 and float(counts.sum()) == 5.75
    torch.testing.assert_close(rgb[1, 2], over[2:4, 4:6].mean(dim=(0, 1)).float(), atol=1e-5, rtol=0.0)


def test_panoramas_are_refused():
    """One line."""
    with pytest.raises(InputError, match="perspective and fisheye cameras only"):
        pinholes(make_cameras([CameraType.EQUIRECTANGULAR.value]), torch.eye(4)[None, :3])


class Wall:
    """A model that sees a red plane x = 0.3 from one side, and the sky elsewhere."""

    device, uses_kernels, config = torch.device("cpu"), False, SimpleNamespace(implementation="torch")

    def __call__(self, bundle):
        directions = torch.nn.functional.normalize(bundle.directions, dim=-1)
        depth = (0.3 - bundle.origins[:, :1]) / directions[:, :1]
        meets = (bundle.origins[:, :1] > 0.3) & (depth > 0.0)
        red = torch.tensor([0.8, 0.1, 0.2])
        return {
            "rgb": torch.where(meets, red, torch.tensor([0.3, 0.5, 0.9])),
            "accumulation": meets.float(),
            "depth": torch.where(meets, depth, 1e6),
        }


@pytest.mark.parametrize("is_open", [True, False])
def test_first_gaussians_lie_where_rays_meet_something(is_open):
    """On the plane with its color; what meets nothing is the far shell, or nothing where photos are transparent."""
    cameras = circle(6)
    found = first_gaussians(Wall(), cameras, 400, 2, is_open, torch.Generator().manual_seed(0))
    on_plane = (found.means[:, 0] - 0.3).abs() < 1e-3
    colors = 0.5 + SH_C0 * found.sh[:, 0]
    assert 50 < int(on_plane.sum()) < 400
    torch.testing.assert_close(colors[on_plane], torch.tensor([0.8, 0.1, 0.2]).expand(int(on_plane.sum()), 3))
    if is_open:
        assert len(found) == 400
        center = torch.stack([camera.pose[:, 3] for camera in cameras]).mean(dim=0)
        far = (found.means[~on_plane] - center).norm(dim=-1) / extent(cameras)
        assert float(far.min()) > SHELL - 2.0 and float(far.max()) < SHELL + 2.0
    else:
        assert bool(on_plane.all())
    assert torch.allclose(found.opacities.sigmoid(), torch.tensor(OPACITY)) and not found.sh[:, 1:].any()
    sizes = SPREAD * torch.cdist(found.means, found.means).sort(dim=-1).values[:, 1:4].mean(dim=-1)
    torch.testing.assert_close(found.scales[:, 1:].exp(), sizes[:, None].expand(-1, 2), atol=2e-2, rtol=1e-2)
    assert float((found.scales[on_plane, 0] - found.scales[on_plane, 1]).exp().median()) < THINNEST + 1e-3


def test_a_field_that_shows_nothing_is_said():
    """All cameras on the side from which nothing is seen, and transparent photos."""
    cameras = [each for each in circle(6) if each.pose[0, 3] < 0.0]
    with pytest.raises(InputError, match="nothing but empty space"):
        first_gaussians(Wall(), cameras, 50, 0, False, torch.Generator().manual_seed(0))


def test_nerfstudio_sees_the_same_through_a_pinhole():
    """Its rays of a pixel go where our matrices say."""
    camera = circle(5)[2]
    nerfstudios: Cameras = camera.camera()
    directions = nerfstudios.generate_rays(torch.tensor([[0]]), torch.tensor([[4.5, 20.5]])).directions[0]
    seen = camera.intrinsics @ (camera.viewmat[:3, :3] @ directions)
    torch.testing.assert_close(seen[:2] / seen[2], torch.tensor([20.5, 4.5]), atol=1e-4, rtol=0.0)
