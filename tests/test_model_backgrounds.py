"""Backgrounds and bounds: what emptiness looks like, transparency in training, and opacity in pictures."""

from __future__ import annotations

import pytest
import torch
from _rays import make_bundle, make_model, missed_crop, sphere_batch, tiny_config, uniform

from nerfstudio.model_components.renderers import background_color_override_context

from zipnerf_ns.data.metadata import SceneHints

GREY = torch.tensor([0.2, 0.5, 0.9])


def empty_color(model) -> list:
    return model(missed_crop())["rgb"][0].tolist()


@pytest.mark.parametrize(
    "setting, hinted, expected",
    [
        ("auto", None, 0.0),
        ("auto", "black", 0.0),
        ("auto", "white", 1.0),
        ("white", "black", 1.0),
        ("black", "white", 0.0),
    ],
)
def test_emptiness_has_the_color_that_the_setting_or_the_data_say(setting, hinted, expected):
    hints = None if hinted is None else SceneHints(False, hinted, 400)
    model = make_model(tiny_config(background_color=setting), hints)
    assert empty_color(model) == [expected] * 3
    with background_color_override_context(GREY):
        assert empty_color(model) == pytest.approx(GREY.tolist())


@pytest.mark.parametrize(
    "setting, hinted, bounded",
    [
        ("auto", None, False),
        ("auto", False, False),
        ("auto", True, True),
        ("box", False, True),
        ("unbounded", True, False),
    ],
)
def test_rays_beside_the_box_are_empty_in_bounded_scenes_only(setting, hinted, bounded):
    hints = None if hinted is None else SceneHints(hinted, "black", 400)
    model = make_model(tiny_config(scene_bounds=setting), hints)
    above = torch.tensor([[0.0, 0.0, 3.0]]).expand(4, 3)
    beside = make_bundle(4, origins=above, directions=torch.eye(3)[[0, 1, 0, 1]])
    through = make_bundle(4, origins=above, directions=-torch.eye(3)[[2, 2, 2, 2]])
    assert bool((model(beside)["accumulation"] == 0.0).all()) == bounded
    outputs = model(through)
    assert (outputs["accumulation"] > 0.0).all()
    if bounded:
        assert (outputs["depth"] >= 2.0 - 1e-4).all() and (outputs["depth"] <= 4.0 + 1e-4).all()


def half_transparent(background: str = "black"):
    """A model whose scene ends early, so that its opacities lie between 0 and 1."""
    return make_model(tiny_config(background_color=background, far_plane=2.0, near_plane=0.5))


@pytest.mark.parametrize("background", ["black", "white"])
def test_rgba_put_over_the_background_is_the_picture_again(background):
    model = half_transparent(background)
    outputs = model(make_bundle(30))
    rgba = model.get_rgba_image(outputs)
    assert rgba.shape == (30, 4) and 0.05 < rgba[:, 3].min() and rgba[:, 3].max() < 0.95
    assert torch.equal(rgba[:, 3:], outputs["accumulation"])
    behind = float(background == "white")
    torch.testing.assert_close(rgba[:, :3] * rgba[:, 3:] + behind * (1.0 - rgba[:, 3:]), outputs["rgb"])
    with background_color_override_context(GREY):
        cropped = model(make_bundle(30))
        again = model.get_rgba_image(cropped)
    assert (cropped["rgb"] - outputs["rgb"]).abs().max() > 0.05
    torch.testing.assert_close(again, rgba, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("background", ["black", "white", "last_sample"])
def test_a_scene_of_one_color_has_that_color_whatever_is_behind(background):
    model = half_transparent(background)
    # Without its weights the color network says 0.5 for every interval.
    last = [module for module in model.field.color_network.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    rgba = model.get_rgba_image(model(make_bundle(30)))
    assert rgba[:, 3].max() < 0.95
    torch.testing.assert_close(rgba[:, :3], torch.full((30, 3), 0.5), rtol=0.0, atol=1e-5)


def test_empty_rays_have_a_finite_rgba():
    model = half_transparent("white")
    rgba = model.get_rgba_image(model(missed_crop()))
    assert torch.isfinite(rgba).all() and (rgba[:, 3] == 0.0).all()


def test_transparent_truth_and_rendering_lie_over_the_same_random_colors():
    model = make_model(tiny_config(far_plane=2.0, rgb_loss="charbonnier")).train()
    bundle, batch = sphere_batch(40, 2, channels=4)
    batch["image"][:, 3] = uniform((40,), 3)
    outputs = model(bundle)
    rendered = outputs["rgb"].clone()
    metrics = model.get_metrics_dict(outputs, batch)
    loss = model.get_loss_dict(outputs, batch)["rgb_loss"]
    prediction, target = outputs["composited"], outputs["target"]
    background = (prediction - rendered) / (1.0 - outputs["accumulation"])
    assert -1e-4 < background.min() and background.max() < 1.0 + 1e-4 and background.std() > 0.2
    color, alpha = batch["image"][:, :3], batch["image"][:, 3:]
    torch.testing.assert_close(target, color * alpha + background * (1.0 - alpha), rtol=1e-4, atol=1e-5)
    error = prediction - target
    torch.testing.assert_close(loss, (error.square() + 1e-6).sqrt().mean())
    assert float(metrics["psnr"]) == pytest.approx(float(-10.0 * error.square().mean().log10().detach()), rel=1e-5)


def test_a_perfect_rendering_of_transparency_is_perfect_over_any_background():
    model = make_model().train()
    _, batch = sphere_batch(40, 2, channels=4)
    color, alpha = batch["image"][:, :3], batch["image"][:, 3:]
    outputs = {"rgb": color * alpha, "accumulation": alpha}
    assert float(model.get_metrics_dict(outputs, batch)["psnr"]) > 100.0
    painted = {"rgb": color * alpha, "accumulation": torch.ones_like(alpha)}
    assert float(model.get_metrics_dict(painted, batch)["psnr"]) < 15.0, "a black wall is not transparency"


@pytest.mark.parametrize("background", ["white", "black", "last_sample"])
def test_without_random_backgrounds_training_sees_the_one_of_evaluation(background):
    settings = {"background_color": background, "far_plane": 2.0, "near_plane": 0.5}
    model, radiances = make_model(tiny_config(random_background=False, **settings)).train(), []
    model.field.register_forward_hook(lambda *args: radiances.append(args[2]))
    bundle, batch = sphere_batch(40, 2, channels=4)
    outputs = model(bundle)
    weights, last = outputs["rendering"].rounds[-1].weights, radiances[0].colors[:, -1]
    model.get_loss_dict(outputs, batch)
    white, alpha = float(background == "white"), batch["image"][:, 3:]
    torch.testing.assert_close(outputs["target"], batch["image"][:, :3] * alpha + white * (1.0 - alpha))
    behind = last if background == "last_sample" else torch.full((40, 3), white)
    expected = (weights[..., None] * radiances[0].colors).sum(dim=1) + (1.0 - weights.sum(dim=1))[:, None] * behind
    torch.testing.assert_close(outputs["composited"], expected)
    assert (1.0 - weights.sum(dim=1)).min() > 0.05, "the test sees the background"
