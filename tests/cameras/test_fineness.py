"""Networks are told of cones as wide as those of the nearest photos where they look, and nothing of others."""

from __future__ import annotations

import math

import pytest
import torch
from _rays import make_model, tiny_config

from nerfstudio.cameras.cameras import Cameras, CameraType

from zipnerf_ns import model as model_module
from zipnerf_ns.cameras.fineness import Photos, beside_photos, finest_angle, pixel_angles, square_for
from zipnerf_ns.functional.cones import KNOWN_OCTAVES, NEAREST_PHOTOS, UNKNOWN_OCTAVES, known_share
from zipnerf_ns.functional.frustum import cone_radius
from zipnerf_ns.model_config import TOLD_ALL

KINDS = [CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.EQUIRECTANGULAR]


def camera(size: float = 1.0, kind: CameraType = CameraType.PERSPECTIVE, back: float = 1.5) -> Cameras:
    """One that sees the same at any size, from ``back`` along the third axis."""
    pose = torch.tensor([[1.0, 0.0, 0.0, 0.1], [0.0, 1.0, 0.0, -0.2], [0.0, 0.0, 1.0, back]])
    numbers = {"fx": 9.0, "fy": 8.0, "cx": 4.5, "cy": 3.5}
    scaled = {name: size * value for name, value in numbers.items()}
    return Cameras(pose[None], **scaled, width=int(9 * size), height=int(7 * size), camera_type=kind)


@pytest.mark.parametrize("kind", KINDS)
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
    assert finest_angle(map_camera) == math.inf and Photos.of(map_camera).coarsest == 0.0
    model = make_model(tiny_config())
    model.learn_of(map_camera)
    assert model.zipnerf.photos is None
    assert model.get_outputs_for_camera(camera())["rgb"].isfinite().all()


def test_pixels_are_compared_with_the_finest_and_the_coarsest_of_the_photos():
    focal = torch.tensor([[5.0], [20.0], [10.0]])
    poses = torch.eye(4)[None, :3].expand(3, 3, 4)
    photos = Photos.of(Cameras(poses, fx=focal, fy=focal, cx=4.0, cy=4.0))
    assert photos.finest == pytest.approx(1.0 / 20.0) and photos.coarsest == pytest.approx(1.0 / 5.0)
    for length, expected in ((5.0, 1.0), (12.0, 1.0), (30.0, 1.5), (4.0, 0.8)):
        assert photos.beside(Cameras(poses[:1], fx=length, fy=length, cx=4.0, cy=4.0)) == pytest.approx(expected)
    assert [square_for(factor) for factor in (1.0, 1.99, 2.0, 3.9, 4.0, 100.0)] == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize("distortion", [None, (-0.2, 0.05, 0.0, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_photos_own_cones_are_known_wherever_they_look(kind, distortion):
    photo = camera(10.0, kind)
    if distortion and kind == CameraType.PERSPECTIVE:
        photo.distortion_params = torch.tensor([distortion])
    rays = photo.generate_rays(0)
    rows, columns = torch.meshgrid(torch.arange(3, 66, 9), torch.arange(3, 87, 12), indexing="ij")
    seen = rays[rows.flatten(), columns.flatten()]
    points, width = seen.origins + 2.5 * seen.directions, 2.5 * cone_radius(seen.pixel_area)
    half, beyond = 2.0 ** (0.5 * (KNOWN_OCTAVES + UNKNOWN_OCTAVES)), 2.0**UNKNOWN_OCTAVES
    for factor, share, error in (
        (1.0, 1.0, 0.1), (half, 0.5, 0.5), (1.0 / half, 0.5, 0.5), (1.1 * beyond, 0.0, 0.0), (0.9 / beyond, 0.0, 0.0)
    ):  # fmt: skip
        found = known_share(seen.origins, points, factor * width, Photos.of(photo).cones)
        torch.testing.assert_close(found, torch.full_like(found, share), rtol=0.0, atol=error)


@pytest.mark.parametrize("strength", [-30.0, math.nan])
def test_a_lens_without_an_inverse_leaves_numbers(strength):
    photo = camera(10.0)
    photo.distortion_params = torch.tensor([[strength, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert Photos.of(photo).cones.isfinite().all()


def test_a_camera_is_compared_with_the_photos_nearest_to_it():
    poses = torch.cat([camera(back=back).camera_to_worlds for back in (1.5, 1.7, 1.9, 2.1, 3.0)])
    cones = Photos.of(Cameras(poses, fx=90.0, fy=90.0, cx=45.0, cy=35.0, width=90, height=70)).cones
    assert len(cones) == 5 and NEAREST_PHOTOS == 4
    origin, point = torch.tensor([[0.1, -0.2, 1.4]]), torch.tensor([[0.1, -0.2, -0.5]])
    widths = (point - poses[:, :, 3]).norm(dim=1, keepdim=True) * float(cones[0, 6])
    shares = [float(known_share(origin, point, width[None], cones)) for width in widths]
    assert shares == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert known_share(origin + torch.tensor([0.0, 0.0, 9.0]), point, widths[4:], cones) == 1.0


@pytest.mark.parametrize(
    ("size", "back", "side", "told"),
    [(1.0, 1.5, 1, 1.0), (3.0, 1.5, 2, 1.0), (0.4, 1.5, 1, 0.0), (1.0, 0.6, 1, 0.0), (1.0, 3.5, 1, 0.0)],
)
def test_smaller_pictures_and_those_from_other_distances_are_told_nothing(size, back, side, told, monkeypatch):
    model, seen = make_model(tiny_config()), []
    model.learn_of(camera())
    forward = model.field.forward
    monkeypatch.setattr(model.field, "forward", lambda rays, *args: seen.append(rays) or forward(rays, *args))
    # What they see lies where the photo's camera looks, whatever the field has there.
    as_seen = model.zipnerf.as_seen
    aimed = lambda rays, tdist, widening: as_seen(rays, torch.full_like(tdist, back - 0.2), widening)  # noqa: E731
    monkeypatch.setattr(model.zipnerf, "as_seen", aimed)
    assert model.asked(camera(size, back=back)).side == side
    picture = model.get_outputs_for_camera(camera(size, back=back))["rgb"]
    assert picture.shape == (int(7 * size), int(9 * size), 3) and picture.isfinite().all()
    assert torch.cat([rays.told for rays in seen]).median() == told
    radius = cone_radius(torch.tensor(1.0 / (9.0 * 8.0)))  # of the photo's pixels
    assert torch.cat([rays.radius for rays in seen]).max() == pytest.approx(float(radius) / min(size, 1.0), rel=0.05)
    # Those that have always been told know nothing else.
    model.field.can_be_untold = False
    seen.clear()
    model.get_outputs_for_camera(camera(size, back=back))
    assert all(rays.told is None for rays in seen)


@pytest.mark.parametrize(("size", "times"), [(0.7, 1), (0.5, 2), (0.25, 4)])
def test_small_pictures_are_the_mean_of_the_photos_size_where_that_is_quick(size, times, monkeypatch):
    model, large = make_model(tiny_config()), camera(4.0)
    model.learn_of(large)
    small = camera(4.0 * size)
    assert model.asked(small).times == 1, "without kernels it would take long"
    monkeypatch.setattr(model_module, "beside_photos", lambda *asked: beside_photos(*asked[:2], True))
    assert model.asked(small).times == times
    expected = model.get_outputs_for_camera(large)
    found = model.get_outputs_for_camera(small)
    for name in ("rgb", "accumulation", "normals"):
        assert found[name].shape[:2] == (int(28 * size), int(36 * size))
        if times > 1:
            mean = expected[name].unflatten(0, (-1, times)).unflatten(2, (-1, times)).mean(dim=(1, 3))
            torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=1e-5)
    monkeypatch.undo()
    assert model.asked(small).times == 1
    assert model.get_outputs_for_camera(small)["rgb"].shape == found["rgb"].shape


def test_a_width_chosen_in_the_viewer_is_kept_and_not_told(monkeypatch):
    model, seen = make_model(tiny_config()), []
    model.learn_of(camera())
    forward = model.field.forward
    monkeypatch.setattr(model.field, "forward", lambda rays, *args: seen.append(rays) or forward(rays, *args))
    bundle = camera().generate_rays(0).flatten()
    for scale in (1.0, 0.0, 4.0):
        with torch.no_grad():
            model.eval()._render(bundle, model.view.values()._replace(cone_scale=scale))
    plain, none, wide = seen
    assert none.radius.max() == 0.0 and torch.allclose(wide.radius, 4.0 * cone_radius(bundle.pixel_area))
    assert plain.told.mean() > 0.9 and none.told.max() == 0.0 and wide.told.mean() < 0.1


@pytest.mark.parametrize("every", [0, 4])
def test_some_rays_of_a_training_are_told_nothing(every, monkeypatch):
    config = tiny_config()
    config.untold_every = every
    model, seen = make_model(config), []
    model.learn_of(camera(2.0))
    assert model.field.can_be_untold == (every > 0)
    forward = model.field.forward
    monkeypatch.setattr(model.field, "forward", lambda rays, *args: seen.append(rays) or forward(rays, *args))
    bundle = camera().generate_rays(0).flatten()
    bundle.camera_indices = torch.zeros(len(bundle), 1, dtype=torch.int64)
    rgb = model.train().get_outputs(bundle)["rgb"]
    assert rgb.requires_grad
    if every:
        assert seen[0].told[:, 0].tolist() == [float((number + 1) % every != 0) for number in range(len(bundle))]
    else:
        assert seen[0].told is None


def test_weights_from_before_are_read_and_told_all():
    model = make_model(tiny_config())
    state = model.state_dict()
    state["format_version"] = torch.tensor(TOLD_ALL)
    model.load_state_dict(state)
    assert not model.field.can_be_untold
