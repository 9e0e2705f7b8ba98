"""Depths of whole pictures, with rays that meet nothing in them."""

from __future__ import annotations

import pytest
import torch
from _rays import make_model, tiny_config
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras

from zipnerf_ns.render.pictures import BEHIND_ALL, depths_of_nothing, evaluation_pictures

DEPTHS = ("depth", "expected_depth", "prop_depth_0")


def picture(seed: int = 0) -> dict[str, Tensor]:
    """A picture of 6 x 8 whose right half meets nothing: its depths are anything up to 1e6."""
    generator = torch.Generator().manual_seed(seed)
    solid = (torch.arange(8) < 4).expand(6, 8)[..., None]
    outputs = {"rgb": torch.rand(6, 8, 3, generator=generator)}
    outputs["accumulation"] = torch.where(solid, 0.9, 0.2)
    for name in DEPTHS:
        near = 1.0 + 3.0 * torch.rand(6, 8, 1, generator=generator)
        outputs[name] = torch.where(solid, near, 10.0 ** (7.0 * torch.rand(6, 8, 1, generator=generator) - 1.0))
    return outputs


def test_rays_that_meet_nothing_lie_behind_all_that_others_meet():
    before = picture()
    kept = {name: value.clone() for name, value in before.items()}
    after = depths_of_nothing(before)
    assert list(after) == list(before)
    assert all(torch.equal(before[name], kept[name]) for name in before), "arguments are not changed"
    for name in ("rgb", "accumulation"):
        assert torch.equal(after[name], before[name])
    for name in DEPTHS:
        solid, nothing = after[name][:, :4], after[name][:, 4:]
        assert torch.equal(solid, before[name][:, :4]), "what is met keeps its depth"
        assert torch.equal(nothing, (BEHIND_ALL * solid.max()).expand_as(nothing))


def test_outputs_that_are_no_distance_stay_whatever_they_are_called():
    before = picture()
    names = ("depth_confidence", "depth_of_field", "my_prop_depth_0", "in_depth")
    others = {name: torch.rand(6, 8, 1) for name in names}
    after = depths_of_nothing({**before, **others, "prop_depth_12": before["depth"]})
    assert all(torch.equal(after[name], other) for name, other in others.items())
    assert torch.equal(after["prop_depth_12"], after["depth"])
    shown = evaluation_pictures({**before, **others}, torch.zeros(6, 8, 3))
    assert set(shown) == {"img", "error", "accumulation", "depth", "prop_depth_0"}


@pytest.mark.parametrize("accumulation", [0.0, 1.0])
def test_pictures_of_nothing_and_of_solid_rays_only_stay_as_they_are(accumulation):
    before = picture()
    before["accumulation"] = torch.full((6, 8, 1), accumulation)
    for name, value in depths_of_nothing(before).items():
        assert torch.equal(value, before[name]), name


def test_a_scenes_pictures_are_settled_however_they_are_asked_for():
    """A ball before nothing, unbounded: without it, the emptiness around is anywhere between near and 1e6."""
    # Of rays without a camera nobody knows which are neighbors.
    model = make_model(tiny_config(eval_num_rays_per_chunk=50, picture_square=1))
    for part in model.zipnerf.fields:
        ball(part)
    pose = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 3.0]])
    camera = Cameras(pose[None], fx=14.0, fy=14.0, cx=8.0, cy=8.0, width=16, height=16)
    whole = model.get_outputs_for_camera(camera)
    solid = whole["accumulation"] > 0.9
    assert 0.1 < float(solid.float().mean()) < 0.6 and whole["accumulation"][0, 0] < 0.1
    seen = whole["depth"][solid]
    assert 1.5 < seen.min() and seen.max() < 3.5
    assert whole["depth"].max() == BEHIND_ALL * whole["depth"][whole["accumulation"] >= 0.5].max()
    bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
    other = model.get_outputs_for_camera_ray_bundle(bundle)
    for name in other:
        torch.testing.assert_close(whole[name], other[name], msg=name)


def ball(part) -> None:
    """Replaces a field's density by a ball of radius 1 around the origin."""
    forward = part.forward

    def density(rays, tdist, *_):
        middles = 0.5 * (tdist[:, 1:] + tdist[:, :-1])[..., None]
        distance = (rays.origins[:, None] + middles * rays.directions[:, None]).norm(dim=-1)
        return torch.where(distance < 1.0, 100.0, 1e-9)

    part.density = density
    part.forward = lambda rays, tdist, *rest: forward(rays, tdist, *rest)._replace(density=density(rays, tdist))
