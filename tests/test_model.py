"""The model: it trains, sums the losses it is told to, and follows its schedules and the scene."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from _rays import make_bundle, make_model, sphere_batch, tiny_config

from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackAttributes

from zipnerf_ns import losses
from zipnerf_ns.data.metadata import SceneHints
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.engine.optimizers import DecayingAdam
from zipnerf_ns.model_config import ZipNerfModelConfig
from zipnerf_ns.ops import TORCH_OPS


def hints(bounded: bool = False, background: str = "black", longest_side: int = 400) -> SceneHints:
    return SceneHints(bounded, background, longest_side)


def train_outputs(model, count: int = 24, channels: int = 3):
    bundle, batch = sphere_batch(count, 1, channels)
    torch.manual_seed(0)
    return model.train()(bundle), batch


# --- training ---


def error(model, bundle, batch) -> float:
    with torch.no_grad():
        return float((model.eval()(bundle)["rgb"] - batch["image"]).square().mean())


@pytest.mark.parametrize("prefilter", ["multisample", "ipe", "none"])
def test_thirty_steps_bring_the_picture_to_the_truth(prefilter):
    model = make_model(tiny_config(prefilter=prefilter, random_background=False))
    bundle, batch = sphere_batch(96, 7)
    before = error(model, bundle, batch)
    rates = {"hash_tables": 0.1, "networks": 0.02}
    optimizers = [
        DecayingAdam(group, lr=rates[name], betas=(0.9, 0.99), eps=1e-15)
        for name, group in model.get_param_groups().items()
    ]
    optimizers[0].adopt(model.zipnerf.tables())
    for step in range(30):
        model.train().progress = step / 30.0
        loss_dict = model.get_loss_dict(model(bundle), batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(loss_dict.values()).backward()
        for optimizer in optimizers:
            optimizer.step()
    # A fifth to a quarter is left with other seeds.
    assert error(model, bundle, batch) < 0.4 * before


def test_every_parameter_learns():
    model = make_model(tiny_config(use_appearance=True))
    outputs, batch = train_outputs(model)
    sum(model.get_loss_dict(outputs, batch).values()).backward()
    for name, parameters in model.get_param_groups().items():
        for parameter in parameters:
            assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


def test_groups_hold_every_parameter_once():
    model = make_model(tiny_config(use_appearance=True))
    groups = model.get_param_groups()
    assert set(groups) == {"hash_tables", "networks", "appearance"} and len(groups["hash_tables"]) == 3
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    # Nerfstudio's own empty parameter marks the device and takes no gradient.
    expected = [id(p) for name, p in model.named_parameters() if name != "device_indicator_param"]
    assert sorted(grouped) == sorted(expected)


# --- losses ---


@pytest.mark.parametrize("which", ["rgb only", "default", "all"])
def test_loss_terms_are_there_if_their_multiplier_is_and_scaled_by_it(which):
    mults = {"interlevel": 0.03, "distillation": 0.2, "distortion": 0.05, "hash_decay": 0.7, "level_consistency": 0.3}
    if which == "default":
        mults.update(distillation=0.0, level_consistency=0.0)
    if which == "rgb only":
        mults = dict.fromkeys(mults, 0.0)
    names = {"hash_decay": "hash_decay_mult", "level_consistency": "level_consistency_mult"}
    changes = {names.get(name, f"{name}_loss_mult"): value for name, value in mults.items()}
    model = make_model(tiny_config(proposal_catchup=False, random_background=False, **changes))
    outputs, batch = train_outputs(model)
    rounds = outputs["rendering"].rounds
    fields = model.zipnerf.fields
    expected = {
        "interlevel_loss": mults["interlevel"] * losses.interlevel_loss(rounds, (0.03, 0.003), TORCH_OPS),
        "distillation_loss": mults["distillation"] * losses.distillation_loss(rounds),
        "distortion_loss": mults["distortion"] * losses.distortion_loss(rounds[-1], TORCH_OPS),
        "hash_decay": mults["hash_decay"]
        * sum(
            0.5 * field.encoding.hash_table[lv.offset : lv.offset + lv.size].square().mean()
            for field in fields
            for lv in field.encoding.grid.levels
        ),
    }
    if mults["level_consistency"]:
        consistency = losses.level_consistency(model.field.encoding.per_level(outputs["rendering"].radiance.channels))
        expected["level_consistency_loss"] = mults["level_consistency"] * consistency
    expected = {name: value for name, value in expected.items() if float(value.detach()) != 0.0}
    expected["rgb_loss"] = losses.color_loss("pseudo_huber", outputs["rgb"], batch["image"])
    loss_dict = model.get_loss_dict(outputs, batch)
    assert set(loss_dict) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(loss_dict[name], value, msg=name)
    assert list(model.eval().get_loss_dict(outputs, batch)) == ["rgb_loss"]


def test_the_decay_that_the_optimizer_adds_is_the_gradient_of_the_reported_one():
    model = make_model(tiny_config(hash_decay_mult=0.7))
    tables = model.zipnerf.tables()
    assert [id(table.hash_table) for table in tables] == list(map(id, model.get_param_groups()["hash_tables"]))
    for table in tables:
        values, levels = table.hash_table, table.grid.levels
        decay = 0.7 * 0.5 * sum(values[lv.offset : lv.offset + lv.size].square().mean() for lv in levels)
        (expected,) = torch.autograd.grad(decay, values)
        found = torch.zeros_like(values)
        for level, coefficient in zip(levels, table.decay, strict=True):
            rows = slice(level.offset, level.offset + level.size)
            found[rows] += coefficient * values.detach()[rows]
        torch.testing.assert_close(found, expected)
    assert not any(any(table.decay) for table in make_model(tiny_config(hash_decay_mult=0.0)).zipnerf.tables())


def test_lagging_proposals_catch_up():
    settings = {"distillation_loss_mult": 50.0, "random_background": False}
    model = make_model(tiny_config(proposal_catchup=True, **settings))
    outputs, batch = train_outputs(model)
    helped = model.get_loss_dict(outputs, batch)
    model.config.proposal_catchup = False
    plain = model.get_loss_dict(outputs, batch)["distillation_loss"]
    factor = float((plain / (10.0 * plain.new_tensor(float(helped["rgb_loss"].detach())))).clamp(1.0, 10.0).detach())
    assert factor > 1.0, "the test sees a lagging proposal"
    torch.testing.assert_close(helped["distillation_loss"], factor * plain)


COLOR_LOSSES = {
    "charbonnier": lambda error: (error.square() + 1e-6).sqrt().mean(),
    "mse": lambda error: error.square().mean(),
    "rmse": lambda error: (error.square().mean() + 1e-6).sqrt(),
}


@pytest.mark.parametrize("name", COLOR_LOSSES)
def test_a_color_loss_can_be_chosen(name):
    model = make_model(tiny_config(rgb_loss=name, random_background=False), hints(bounded=True))
    outputs, batch = train_outputs(model)
    expected = COLOR_LOSSES[name](outputs["rgb"] - batch["image"])
    torch.testing.assert_close(model.get_loss_dict(outputs, batch)["rgb_loss"], expected)


def table_gradient(near_plane: float, far_plane: float, scaled: bool) -> tuple:
    planes = {"near_plane": near_plane, "far_plane": far_plane}
    model = make_model(tiny_config(use_gradient_scaling=scaled, random_background=False, **planes))
    outputs, batch = train_outputs(model)
    model.get_loss_dict(outputs, batch)["rgb_loss"].backward()
    return outputs["rgb"].detach(), model.field.encoding.hash_table.grad


@pytest.mark.parametrize("near_plane, far_plane, largest", [(0.05, 0.8, 0.8**2), (1.0, 1e6, None)])
def test_gradient_scaling_lowers_what_is_near_and_leaves_what_is_a_unit_away(near_plane, far_plane, largest):
    plain, plain_gradient = table_gradient(near_plane, far_plane, scaled=False)
    scaled, scaled_gradient = table_gradient(near_plane, far_plane, scaled=True)
    assert torch.equal(plain, scaled), "no picture is changed"
    if largest is None:
        torch.testing.assert_close(scaled_gradient, plain_gradient)
    else:
        assert 0.0 < float(scaled_gradient.norm()) < largest * float(plain_gradient.norm())


# --- schedules ---


def schedules_seen(model, step: int, total: int = 100) -> tuple:
    """The annealing exponent and each field's active levels at a step, as the parts are told them."""
    trainer = SimpleNamespace(config=SimpleNamespace(max_num_iterations=total))
    attributes = TrainingCallbackAttributes(optimizers=None, grad_scaler=None, pipeline=None, trainer=trainer)
    for callback in model.get_training_callbacks(attributes):
        callback.run_callback(step)
    anneals, actives = [], []
    handles = [model.zipnerf.sampler.register_forward_pre_hook(lambda _, args: anneals.append(args[2]))]
    for field in model.zipnerf.fields:
        handles.append(field.encoding.register_forward_pre_hook(lambda _, args: actives.append(args[1])))
    model(make_bundle(3))
    for handle in handles:
        handle.remove()
    return anneals[0], actives


@pytest.mark.parametrize("step", [0, 1, 10, 50, 99, 100, 130])
def test_annealing_is_the_papers_bias_curve(step):
    model = make_model(tiny_config(anneal_slope=7.0))
    fraction = min(step / 100.0, 1.0)
    expected = 7.0 * fraction / (6.0 * fraction + 1.0)
    assert schedules_seen(model.train(), step)[0] == pytest.approx(expected)
    assert schedules_seen(model.eval(), step) == (1.0, [None] * 3)


@pytest.mark.parametrize("step, active", [(0, 4), (40, 4), (60, 6), (80, 8), (100, 10)])
def test_progressive_levels_grow_from_four_to_all(step, active):
    grid = HashGridConfig(10, 1, 4, 64, 8)
    model = make_model(tiny_config(grid=grid, progressive_levels=True))
    assert schedules_seen(model.train(), step)[1][-1] == active
    assert schedules_seen(model.eval(), step)[1][-1] is None, "evaluation sees every level"
    assert schedules_seen(make_model(tiny_config(grid=grid)).train(), step)[1][-1] is None


def test_the_monitor_is_told_the_step():
    model = make_model()
    schedules_seen(model, 37)
    assert model.monitor.step == 37


def test_collision_shares_reach_the_metrics_of_training():
    model = make_model(tiny_config(collision_check_steps=5)).train()
    schedules_seen(model, 10)
    bundle, batch = sphere_batch(24, 1)
    metrics = model.get_metrics_dict(model(bundle), batch)
    assert set(metrics) == {"psnr"} | {f"collision_free/level_{level}" for level in range(4)}
    assert set(model.eval().get_metrics_dict(model(bundle), batch)) == {"psnr"}


# --- settings that follow from the scene ---


def test_scene_adapted_resolutions_follow_the_longest_side():
    def resolutions(longest_side, **changes):
        model = make_model(tiny_config(scene_adapted_resolution=True, **changes), hints(longest_side=longest_side))
        return [field.encoding.grid.resolutions for field in model.zipnerf.fields]

    big = HashGridConfig(4, 1, 16, 8192, 8)
    for longest_side, base, finest in ((100, 16, 1000), (800, 16, 8000), (4000, 40, 8192)):
        found = resolutions(longest_side, grid=big)[-1]
        assert (found[0], found[-1]) == (base, finest)
        assert all(b > a for a, b in pairwise(found))
    assert resolutions(3, grid=big)[-1] == (16, 20, 24, 30)
    # A proposal's own finest resolution is below ten times the side, and stays.
    assert [r[-1] for r in resolutions(400)] == [16, 32, 32]
    plain = make_model(tiny_config(), hints(longest_side=4000))
    assert plain.field.encoding.grid.resolutions == (4, 8, 16, 32)


def test_ipe_bandwidth_follows_the_scene_box():
    scaled = make_model(tiny_config(prefilter="ipe", ipe_bandwidth="scene_scale"), side=5.0)
    for field in scaled.zipnerf.fields:
        assert field.encoding.bandwidths.tolist() == pytest.approx([0.1] * len(field.encoding.grid.levels))
    assert make_model(tiny_config(prefilter="ipe"), side=5.0).field.encoding.bandwidths is None


def test_parameters_are_made_where_they_will_be():
    """Not first in main memory, by a CPU."""
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    model = ZipNerfModelConfig(use_appearance=True).setup(scene_box=box, num_train_data=3, metadata={}, device="meta")
    assert {parameter.device.type for parameter in model.zipnerf.parameters()} == {"meta"}
