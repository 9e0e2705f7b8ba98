"""Scenes that move: what the encoding over time is made of, and that it learns what a still one cannot."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache

import pytest
import torch
from torch import Tensor

from zipnerf_ns.encoding import AntiAliasedHashEncoding, HashGridConfig
from zipnerf_ns.encoding.moving import SHIFT_SCALE, MotionConfig, MovingGridConfig, MovingHashEncoding
from zipnerf_ns.errors import InputError
from zipnerf_ns.functional.cones import Cones
from zipnerf_ns.model_config import ZipNerfModelConfig, named_grids
from zipnerf_ns.rays import Rays
from zipnerf_ns.zipnerf import ProposalConfig, ZipNerf, ZipNerfConfig

STILL = HashGridConfig(2, 2, 4, 16, 12)
MOVING = MovingGridConfig(2, 2, 8, 16, 13, 8, 8)
DEFORMATION = MovingGridConfig(2, 2, 4, 8, 12, 8, 8)


def make_encoding(kind: str) -> MovingHashEncoding:
    """Tables and layers of random values, so that everything has an effect."""
    torch.manual_seed(1)
    encoding = MovingHashEncoding(STILL, MotionConfig(kind, MOVING, DEFORMATION), "ipe")
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.normal_(std=0.1)
    return encoding


def make_cones() -> Cones:
    directions = torch.nn.functional.normalize(torch.randn(5, 3), dim=1)
    tdist = torch.linspace(0.1, 3.0, 5).expand(5, -1).contiguous()
    times = torch.linspace(0.0, 1.0, 5)[:, None]
    return Cones(0.3 * torch.randn(5, 3), directions, torch.full((5, 1), 0.01), tdist, None, None, times, shutter=0.1)


def test_what_changes_stands_behind_what_does_not_as_far_as_the_mask_lets_it():
    encoding, cones = make_encoding("blend"), make_cones()
    still = AntiAliasedHashEncoding.forward(encoding, cones)
    moving = encoding.moving(cones)
    mask = torch.sigmoid(still @ encoding.mask_layer.weight.t() + encoding.mask_layer.bias)
    assert 0.01 < float(mask.detach().min()) < float(mask.detach().max()) < 0.99
    found, found_mask = encoding.with_mask(cones)
    assert found.shape == (20, encoding.get_out_dim())
    torch.testing.assert_close(found, torch.cat([still, mask * moving], dim=1))
    torch.testing.assert_close(found_mask, mask)
    assert torch.equal(encoding(cones), found)
    torch.testing.assert_close(encoding.prefilter_weights(found), encoding.prefilter_weights(still))


def test_shifts_are_made_of_space_and_time_and_move_the_still_table_alone():
    encoding, cones = make_encoding("both"), make_cones()
    shifts = encoding.shifts(cones)
    first, _, last = encoding.shift_layers
    pairs = encoding.deformation(cones._replace(tdist=cones.tdist[:, ::2].contiguous()))
    of_pairs = SHIFT_SCALE * last(torch.relu(first(pairs)))
    torch.testing.assert_close(shifts, of_pairs.repeat_interleave(2, dim=0))
    three = cones._replace(tdist=cones.tdist[:, :4].contiguous())
    each = SHIFT_SCALE * last(torch.relu(first(encoding.deformation(three))))
    torch.testing.assert_close(encoding.shifts(three), each)
    assert not torch.allclose(shifts, encoding.shifts(cones._replace(times=1.0 - cones.times)))
    still = AntiAliasedHashEncoding.forward(encoding, cones._replace(shifts=shifts))
    (found, mask), size = encoding.with_mask(cones), still.shape[1]
    torch.testing.assert_close(found[:, :size], still)
    torch.testing.assert_close(found[:, size:], mask * encoding.moving(cones))
    assert not torch.allclose(still, AntiAliasedHashEncoding.forward(encoding, cones))


def test_nothing_is_shifted_at_first():
    torch.manual_seed(2)
    encoding = MovingHashEncoding(STILL, MotionConfig("deform", MOVING, DEFORMATION))
    assert not encoding.shifts(make_cones()).any()


def test_rays_see_what_moves_as_far_as_they_are_told():
    encoding, cones = make_encoding("both"), make_cones()
    size = AntiAliasedHashEncoding.get_out_dim(encoding)
    seen = torch.tensor([[0.0], [1.0], [0.0], [1.0], [0.25]])
    found, whole = (encoding(each).view(5, 4, -1) for each in (cones._replace(seen=seen), cones))
    torch.testing.assert_close(found[1::2], whole[1::2])
    still = AntiAliasedHashEncoding.forward(encoding, cones).view(5, 4, -1)
    torch.testing.assert_close(found[[0, 2], :, :size], still[[0, 2]])
    assert not found[[0, 2], :, size:].any()
    # As far as motion has come in.
    encoding.opening.fill_(0.25)
    still = AntiAliasedHashEncoding.forward(encoding, cones._replace(shifts=0.25 * encoding.shifts(cones)))
    found_little, mask = encoding.with_mask(cones)
    torch.testing.assert_close(found_little, torch.cat([still, 0.25 * mask * encoding.moving(cones)], dim=1))
    torch.testing.assert_close(encoding(cones).view(5, 4, -1)[4], found[4])


@pytest.mark.parametrize("kind,openings", [("blend", (0.0, 0.0, 0.5, 1.0, 1.0)), ("both", (1.0,) * 5)])
def test_nothing_moves_at_first_and_then_little_by_little(kind, openings):
    config = tiny_config(kind)
    model = ZipNerf(dataclasses.replace(config, motion=dataclasses.replace(config.motion, still_first=0.2)))
    for progress, opening in zip((0.0, 0.2, 0.3, 0.4, 1.0), openings, strict=True):
        model.set_progress(progress)
        assert all(float(field.encoding.opening) == pytest.approx(opening) for field in model.fields)
        # A checkpoint keeps it.
        assert all(float(field.encoding.state_dict()["opening"]) == pytest.approx(opening) for field in model.fields)


@pytest.mark.parametrize("kind,training,blind", [("blend", True, 3), ("blend", False, 0), ("both", True, 0)])
def test_some_rays_of_a_step_see_what_stands_still_alone(monkeypatch, kind, training, blind):
    config = tiny_config(kind)
    motion = dataclasses.replace(config.motion, still_every=4)
    model, asked = ZipNerf(dataclasses.replace(config, motion=motion)).train(training), []
    for field in model.fields:
        ask = field.encoding.with_mask
        monkeypatch.setattr(
            field.encoding, "with_mask", lambda cones, *a, ask=ask: asked.append(cones) or ask(cones, *a)
        )
    model(rays_around(9, torch.Generator().manual_seed(5)))
    assert len(asked) == len(model.fields)
    for cones in asked:
        assert blind == (0 if cones.seen is None else int((cones.seen == 0.0).sum()))
        assert not blind or torch.equal(cones.seen.flatten() == 0.0, torch.arange(9) % 4 == 0)


def test_one_camera_sees_what_moves_blended_and_several_shifted_too():
    for kind, cameras, step, settled, knots in (
        ("auto", 1, 0.02, "blend", 20), ("auto", 1, 0.01, "blend", 32), ("auto", 1, 1.0, "blend", 4),
        ("auto", 1, None, "blend", 32), ("auto", 2, 0.02, "both", 32), ("auto", 8, None, "both", 32),
        ("auto", None, None, "auto", 32),
        ("none", 8, 0.02, "none", 32), ("blend", 8, 0.02, "blend", 32), ("deform", 1, 0.02, "deform", 32),
    ):  # fmt: skip
        found = MotionConfig(kind).settled(cameras, step)
        assert (found.kind, found.grid.max_knots) == (settled, knots)


@pytest.mark.parametrize("level,moving", [(None, 2), (2, 2), (1, 0), (0, 0)])
def test_levels_of_what_changes_end_with_the_still_ones(level, moving):
    """Resolutions are 4 and 16 of the still grid, 8 and 16 of the other."""
    encoding = make_encoding("blend")
    channels = encoding(make_cones(), level)
    of_moving = channels[:, AntiAliasedHashEncoding.get_out_dim(encoding) :][:, :4].unflatten(1, (2, 2))
    assert [bool(of_moving[:, index].any()) for index in range(2)] == [index < moving for index in range(2)]


@pytest.mark.parametrize("kind,per_field", [("none", 1), ("blend", 2), ("deform", 2), ("both", 3)])
def test_tables_are_named_in_their_order(kind, per_field):
    config = tiny_config(kind)
    model_config = ZipNerfModelConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})
    tables = ZipNerf(config).tables()
    named = {name: grid.make() for name, grid in named_grids(model_config).items()}
    assert list(named.values()) == [table.grid for table in tables]
    assert len(tables) == per_field + (1 if kind == "none" else 2)
    assert all(table.decay[0] > 0.0 for table in tables)


def test_what_does_not_go_with_motion_is_refused():
    with pytest.raises(InputError, match=r"motion\.kind blend does not go with ipe_bandwidth scene_scale"):
        ZipNerfModelConfig(motion=MotionConfig("blend"), prefilter="ipe", ipe_bandwidth="scene_scale")
    with pytest.raises(InputError, match=r"motion\.still_first is 0\.6: it must lie between 0 and a half"):
        ZipNerfModelConfig(motion=MotionConfig("blend", still_first=0.6))
    for kind in ("none", "deform", "both"):
        with pytest.raises(InputError, match=rf"motion\.still_every has no effect with motion\.kind {kind}: choose"):
            ZipNerfModelConfig(motion=MotionConfig(kind, still_every=0))
    for kind in ("auto", "blend"):
        ZipNerfModelConfig(motion=MotionConfig(kind, still_every=0, still_first=0.0))
    with pytest.raises(InputError, match=r"motion\.still_every is 1: it must be 0 \(no ray\) or 2 or more"):
        ZipNerfModelConfig(motion=MotionConfig("blend", still_every=1))
    with pytest.raises(InputError, match=r"motion\.kind deform does not go with implementation tcnn"):
        ZipNerfModelConfig(motion=MotionConfig("deform"), implementation="tcnn", prefilter="ipe")


# --- a ball that flies by ---


def tiny_config(kind: str) -> ZipNerfConfig:
    proposal = ProposalConfig(16, HashGridConfig(2, 1, 4, 16, 12), 16, 0.03, MovingGridConfig(2, 1, 8, 16, 13, 8, 8))
    return ZipNerfConfig(
        grid=STILL, proposals=(proposal,), num_samples=12, motion=MotionConfig(kind, MOVING, DEFORMATION),
        prefilter="ipe", hidden_dim=32, bottleneck_dim=8, color_layers=1, color_dim=16, implementation="torch",
        hash_decay_mult=0.01,
    )  # fmt: skip


def ball(rays: Rays) -> Tensor:
    """Colors of a ball of radius 0.4 that flies from one side to the other, before black."""
    along = torch.tensor([1.2, 0.0, 0.0])
    apart = rays.origins - (rays.times - 0.5) * along
    middle = (apart * rays.directions).sum(dim=1, keepdim=True)
    depth = middle.square() - apart.square().sum(dim=1, keepdim=True) + 0.4**2
    hit = apart + (-middle - depth.clamp_min(0.0).sqrt()) * rays.directions
    return torch.where(depth > 0.0, 0.5 + 0.5 * hit / 0.4, 0.0)


def rays_around(count: int, generator: torch.Generator) -> Rays:
    """Rays from all around, each at a time of its own."""
    times, angles = torch.rand(2, count, 1, generator=generator)
    angles = 6.2832 * angles
    origins = torch.cat([2.0 * angles.sin(), torch.full_like(angles, 0.3), 2.0 * angles.cos()], dim=1)
    at = (torch.rand(count, 3, generator=generator) - 0.5) * torch.tensor([1.2, 0.84, 1.2])
    directions = torch.nn.functional.normalize(at - origins, dim=1)
    return Rays.between(0.5, 4.0, origins, directions, torch.full((count, 1), 0.01))._replace(times=times)


@cache
def trained_psnr(kind: str) -> float:
    torch.manual_seed(0)
    model = ZipNerf(tiny_config(kind), torch.tensor([[-1.2] * 3, [1.2] * 3]))
    rates = zip(model.parameter_groups(), (0.02, 0.01), strict=True)
    optimizer = torch.optim.Adam([{"params": group, "lr": lr} for group, lr in rates], eps=1e-15)
    generator, steps = torch.Generator().manual_seed(1), 40
    for step in range(steps):
        model.set_progress(step / steps)
        rays = rays_around(256, generator)
        rendering = model(rays)
        optimizer.zero_grad()
        sum(model.losses(rendering, rendering.rgb, ball(rays)).values()).backward()
        optimizer.step()
    rays = rays_around(1000, torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float(-10.0 * (model.eval()(rays).rgb - ball(rays)).square().mean().log10())


@pytest.mark.parametrize("kind", ["blend", "deform"])
def test_a_ball_that_flies_is_learned_where_a_still_model_sees_a_blur(kind):
    assert trained_psnr(kind) > trained_psnr("none") + 4.0


def test_a_still_model_does_not_ask_what_time_it_is():
    torch.manual_seed(3)
    model, rays = ZipNerf(tiny_config("none")).eval(), rays_around(8, torch.Generator().manual_seed(4))
    alone = copy.deepcopy(model)(rays._replace(times=None)).rgb
    assert torch.equal(model(rays).rgb, alone)
