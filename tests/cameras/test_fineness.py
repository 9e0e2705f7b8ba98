"""Pictures finer than the photos are rendered by cones as wide as a photo's pixel."""

from __future__ import annotations

import math

import pytest
import torch
from _rays import make_model, tiny_config

from nerfstudio.cameras.cameras import Cameras, CameraType

from zipnerf_ns.cameras.fineness import finest_angle, pixel_angles, square_for, widening


def camera(size: float = 1.0, kind: CameraType = CameraType.PERSPECTIVE) -> Cameras:
    """One that sees the same at any size."""
    pose = torch.tensor([[1.0, 0.0, 0.0, 0.1], [0.0, 1.0, 0.0, -0.2], [0.0, 0.0, 1.0, 1.5]])
    numbers = {"fx": 9.0, "fy": 8.0, "cx": 4.5, "cy": 3.5}
    scaled = {name: size * value for name, value in numbers.items()}
    return Cameras(pose[None], **scaled, width=int(9 * size), height=int(7 * size), camera_type=kind)


@pytest.mark.parametrize("kind", [CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.EQUIRECTANGULAR])
def test_the_angle_is_that_between_neighboring_rays_at_the_axis(kind):
    one = camera(40.0, kind)
    # Nerfstudio divides 0 by 0 along a fisheye's axis.
    middle = torch.tensor([one.cy, one.cx]) + 0.25
    steps = torch.stack([middle, middle + torch.tensor([0.0, 1.0]), middle + torch.tensor([1.0, 0.0])])
    rays = one.generate_rays(torch.zeros(3, 1, dtype=torch.int64), coords=steps).directions
    across, down = ((rays[k] - rays[0]).norm() for k in (1, 2))
    assert float(pixel_angles(one)) == pytest.approx(float((across * down).sqrt()), rel=1e-3)


def test_nothing_is_said_of_cameras_whose_pixels_have_no_angle():
    map_camera = camera(kind=CameraType.ORTHOPHOTO)
    assert finest_angle(map_camera) == math.inf
    assert widening(map_camera, 1e-3) == widening(camera(), math.inf) == widening(camera(), 0.0) == 1.0


def test_the_finest_photo_is_the_measure():
    photos = finest_angle(Cameras(torch.eye(4)[:3].repeat(3, 1, 1), fx=torch.tensor([[5.0], [20.0], [10.0]]),
                                  fy=torch.tensor([[5.0], [20.0], [10.0]]), cx=4.0, cy=4.0))  # fmt: skip
    assert photos == pytest.approx(1.0 / 20.0)
    assert [square_for(factor) for factor in (1.0, 1.99, 2.0, 3.9, 4.0, 100.0)] == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("size", "wider", "side"), [(0.5, 1.0, 1), (1.0, 1.0, 1), (1.5, 1.5, 1), (3.0, 3.0, 2), (4.0, 4.0, 4)]
)
def test_cones_are_no_narrower_than_the_finest_photos(size, wider, side, monkeypatch):
    """At the same place of the picture all sizes from the photos' on see by the same cones."""
    model, seen = make_model(tiny_config()), []
    model.photos_angle = finest_angle(camera())
    forward = model.zipnerf.forward

    def watched(rays, *args, **kwargs):
        seen.append(rays.radius.max())
        assert kwargs["side"] == side
        return forward(rays, *args, **kwargs)

    monkeypatch.setattr(model.zipnerf, "forward", watched)
    picture = model.get_outputs_for_camera(camera(size))["rgb"]
    assert picture.shape == (int(7 * size), int(9 * size), 3)
    found = float(torch.stack(seen).max())
    assert found == pytest.approx(wider * finest_angle(camera(size)) * 2.0 / 12.0**0.5, rel=0.02)


def test_pictures_of_the_photos_own_size_stay_what_they_were():
    model = make_model(tiny_config())
    before = model.get_outputs_for_camera(camera())["rgb"]
    model.photos_angle = finest_angle(camera())
    assert torch.equal(model.get_outputs_for_camera(camera())["rgb"], before)
    model.photos_angle *= 3.0
    assert not torch.equal(model.get_outputs_for_camera(camera())["rgb"], before)
