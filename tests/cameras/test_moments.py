"""Rays see their own moments, or all of them the one at which a person has stopped time; paths let it run."""

from __future__ import annotations

import pytest
import torch
from _cameras import make_cameras
from _rays import make_bundle, make_model, tiny_config, uniform
from _scenes import assert_clear

from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.scripts import render

from zipnerf_ns import errors
from zipnerf_ns.cameras import moments
from zipnerf_ns.cameras.moments import TIME_VARIABLE, at_moment, let_time_run_along_paths, stopped_time
from zipnerf_ns.cameras.rays import rays_of_bundle
from zipnerf_ns.data.metadata import SceneHints
from zipnerf_ns.encoding.moving import MotionConfig, MovingGridConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.model import ZipNerfModel

GRID = MovingGridConfig(3, 2, 4, 16, 9, 4, 8)


def moving_model(step: float | None = 0.1) -> ZipNerfModel:
    """A model that has learned nothing, but looks different at each time."""
    config = tiny_config(motion=MotionConfig("blend", GRID), random_background=False)
    for proposal in config.proposals:
        proposal.moving_grid = GRID
    model = make_model(config, SceneHints(False, "black", 400, step))
    with torch.no_grad():
        for table in model.zipnerf.tables():
            for parameter in table.parameters(recurse=False):
                parameter.uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(0))
    return model


def seen(model: ZipNerfModel, times: torch.Tensor | None) -> torch.Tensor:
    """Colors of twelve rays."""
    with torch.no_grad():
        return model(make_bundle(12, 3, times=times))["rgb"]


@pytest.mark.parametrize("cameras,kind", [(1, "blend"), (8, "both"), (None, "auto")])
def test_how_a_scene_moves_follows_from_how_many_cameras_see_it(cameras, kind):
    config = tiny_config(motion=MotionConfig("auto", GRID, GRID))
    hints = cameras and SceneHints(False, "black", 400, 0.1, cameras)
    model = make_model(config, hints)
    assert model.config.motion.kind == model.zipnerf.config.motion.kind == kind and config.motion.kind == "auto"
    assert model.has_time and (model.field.encoding.deformation is None) == (kind == "blend")


def test_rays_see_their_own_moments():
    model, times = moving_model(), uniform((12, 1), 5)
    mixed = seen(model, times)
    for ray in (0, 7):
        torch.testing.assert_close(seen(model, times[ray].expand(12, 1))[ray], mixed[ray])
    assert (mixed - seen(model, torch.zeros(12, 1))).abs().max() > 1e-3


def test_time_can_be_stopped_for_whatever_is_rendered(monkeypatch):
    expected = seen(moving_model(), torch.full((12, 1), 0.75))
    monkeypatch.setenv(TIME_VARIABLE, "0.75")
    stopped = moving_model()
    for times in (uniform((12, 1), 5), None):
        torch.testing.assert_close(seen(stopped, times), expected)


def test_cameras_without_times_see_the_beginning_and_that_is_said_once(capsys):
    errors.say_once.cache_clear()
    model = moving_model()
    torch.testing.assert_close(seen(model, None), seen(model, torch.zeros(12, 1)))
    seen(model, None)
    assert capsys.readouterr().out.count(TIME_VARIABLE) == 1


def test_a_moment_is_as_long_as_the_photos_are_apart(monkeypatch):
    lengths = []

    def noted(rays, stopped):
        lengths.append(rays.shutter)
        return at_moment(rays, stopped)

    monkeypatch.setattr("zipnerf_ns.model.at_moment", noted)
    for step in (0.1, None):
        seen(moving_model(step), torch.zeros(12, 1))
    assert lengths == [0.1, 0.0]


@pytest.mark.parametrize("value", ["noon", "nan", "-0.1", "1.5", "1,0"])
def test_what_is_no_moment_is_refused(monkeypatch, value):
    monkeypatch.setenv(TIME_VARIABLE, value)
    with pytest.raises(InputError) as refused:
        stopped_time()
    assert_clear(str(refused.value), (TIME_VARIABLE, value, "from 0"))


def test_rays_with_times_are_left_as_they_are():
    rays = rays_of_bundle(make_bundle(5, times=uniform((5, 1), 1)), 0.05, 10.0)
    assert at_moment(rays, None) is rays
    assert (at_moment(rays, 0.0).times == 0.0).all()


@pytest.fixture
def running(monkeypatch):
    """Nerfstudio's programs after a moving run was loaded, and as before when the test ends."""
    names = ("get_interpolated_camera_path", "get_path_from_json", "get_spiral_path")
    for module in (render, moments.camera_paths):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))
    for _ in range(2):
        let_time_run_along_paths()
    assert not isinstance(render.get_path_from_json.make, moments.RunningPath)


def json_path(*times: float | None) -> dict:
    """A camera path as the viewer exports it, with or without times."""
    frames = [{"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 50.0, "aspect": 1.0}
              | ({} if time is None else {"render_time": time}) for time in times]  # fmt: skip
    return {"render_height": 4, "render_width": 4, "camera_type": "perspective", "camera_path": frames}


def views(times: torch.Tensor | None) -> Cameras:
    """Three cameras."""
    cameras = make_cameras([CameraType.PERSPECTIVE.value] * 3)
    cameras.times = times
    return cameras


@pytest.mark.parametrize("times", [None, torch.tensor([[0.2], [0.9], [0.4]])])
def test_time_runs_once_along_interpolated_paths(running, times):
    path = render.get_interpolated_camera_path(views(times), steps=4, order_poses=False)
    torch.testing.assert_close(path.times, torch.linspace(0.0, 1.0, len(path))[:, None])
    assert path[-1].times.item() == 1.0
    assert render.get_spiral_path(views(times)[:1], steps=5, radius=0.1).times.shape == (5, 1)


def test_a_paths_own_times_go_first(running):
    own = render.get_path_from_json(json_path(0.3, 0.3, 0.5))
    torch.testing.assert_close(own.times, torch.tensor([[0.3], [0.3], [0.5]]))
    for none in (json_path(None, None, None), json_path(0.3, None, 0.5)):
        torch.testing.assert_close(render.get_path_from_json(none).times, torch.tensor([[0.0], [0.5], [1.0]]))
    assert render.get_path_from_json(json_path(0.3)).times.tolist() == [[pytest.approx(0.3)]]
