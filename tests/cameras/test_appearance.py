"""Exposure and white balance of each photo: gains whose mean is 1, and what is learned by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _rays import make_bundle, make_model, normal, sphere_batch, tiny_config, uniform
from torch.optim import Adam

from zipnerf_ns.cameras.appearance import Appearance, clipped
from zipnerf_ns.errors import InputError
from zipnerf_ns.losses import appearance_loss, charbonnier
from zipnerf_ns.model_config import check_state_dict
from zipnerf_ns.tools.scene.light import draw_gains, relight


def make_appearance(count: int = 5) -> Appearance:
    appearance = Appearance(count)
    torch.nn.init.normal_(appearance.log_gains, std=0.3)
    return appearance


# --- gains ---


def test_every_photo_starts_in_the_same_light():
    colors = uniform((4, 3, 3), 1)
    assert torch.equal(Appearance(5)(colors, torch.arange(4)[:, None]), colors)


def test_the_geometric_mean_of_the_gains_is_one_whatever_is_learned():
    appearance = make_appearance()
    torch.testing.assert_close(appearance.gains().log().mean(dim=0), torch.zeros(3))
    before = appearance.gains().detach()
    assert float((before - 1.0).abs().max()) > 0.1
    appearance.log_gains.data += torch.tensor([0.5, -1.0, 2.0])
    torch.testing.assert_close(appearance.gains(), before)
    # No step can change the mean light, so none is asked for.
    (appearance(uniform((20, 2, 3), 2), torch.arange(20)[:, None] % 5) * normal((20, 2, 3), 3)).sum().backward()
    assert appearance.log_gains.grad.abs().min() > 1e-3
    torch.testing.assert_close(appearance.log_gains.grad.sum(dim=0), torch.zeros(3), atol=1e-5, rtol=0.0)


def test_a_gain_is_one_of_linear_light():
    """As the built-in scene multiplies it, which knows sRGB's curve."""
    appearance, colors = make_appearance(), np.linspace(0.05, 0.6, 12)[:, None].repeat(3, axis=1)
    for image, gains in enumerate(appearance.gains().detach().double()):
        found = appearance(torch.from_numpy(colors).float()[:, None], torch.full((12, 1), image))[:, 0].detach()
        expected = relight(colors, gains.numpy() ** 2.4)
        inside = (expected > 0.05) & (expected < 0.999)
        assert inside.sum() > 20
        np.testing.assert_allclose(found.numpy()[inside], expected[inside], atol=1e-6)


def test_each_ray_has_its_own_photos_gain():
    appearance, colors, images = make_appearance(3), uniform((4, 5, 3), 4), torch.tensor([2, 0, 1, 2])
    found = appearance(colors, images[:, None])
    for ray, image in enumerate(images.tolist()):
        one = appearance(colors[ray : ray + 1], image)
        torch.testing.assert_close(found[ray : ray + 1], one)
        torch.testing.assert_close(one[0] + 0.055, (colors[ray] + 0.055) * appearance.gains()[image])


def test_gradients_are_those_of_finite_differences():
    appearance, images = make_appearance(3).double(), torch.tensor([[2], [0], [2], [1]])

    def lit(log_gains: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(appearance, {"log_gains": log_gains}, (colors, images))

    colors = uniform((4, 2, 3), 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lit, (appearance.log_gains.detach().requires_grad_(), colors))


# --- clipping ---


def test_what_is_beyond_white_in_both_has_no_error_and_else_comes_down():
    prediction = torch.tensor([[1.3, 0.4, -0.2], [1.3, 1.3, -0.2]], requires_grad=True)
    target = torch.tensor([[1.0, 0.5, 0.0], [0.9, 1.0, 0.1]])
    torch.testing.assert_close(clipped(prediction), torch.tensor([[1.0, 0.4, 0.0], [1.0, 1.0, 0.0]]))
    charbonnier(clipped(prediction), target).sum().backward()
    assert torch.sign(prediction.grad).tolist() == [[0, -1, 0], [1, 0, -1]]


# --- what is learned ---


def test_gains_and_colors_in_the_mean_light_are_found():
    """Of surfaces that several photos show, some of them clipped; each step sees a few rays of each photo."""
    torch.manual_seed(0)
    truth, gains = uniform((60, 3), 6, 0.1, 0.9), draw_gains(8, 0.8, [0])
    photos = torch.stack([torch.from_numpy(relight(truth.double().numpy(), gain)).float() for gain in gains])
    assert 0.02 < float((photos == 1.0).float().mean()) < 0.2
    appearance, colors = Appearance(8), torch.nn.Parameter(torch.full((60, 3), 0.5))
    optimizer = Adam([{"params": appearance.parameters(), "lr": 0.01}, {"params": [colors], "lr": 0.02}], eps=1e-15)
    for _ in range(500):
        for group in optimizer.param_groups:
            group["lr"] *= 0.1 ** (1.0 / 500.0)
        images, points = (torch.randint(count, (64,)) for count in (8, 60))
        prediction = appearance(colors[points][:, None], images[:, None])[:, 0]
        optimizer.zero_grad()
        charbonnier(clipped(prediction), photos[images, points]).mean().backward()
        optimizer.step()
    found = appearance.gains().detach().log()
    assert float((found - torch.from_numpy(gains).log().float() / 2.4).square().mean().sqrt()) < 0.01
    assert float((colors.detach() - truth).square().mean().sqrt()) < 0.01


# --- in the model ---


def test_a_photos_light_is_what_its_rays_are_trained_in():
    """In colors that are last on their rays as well, where these stand behind them."""
    for background in ("black", "last_sample"):
        model = make_model(tiny_config(use_appearance=True, background_color=background, random_background=False))
        torch.nn.init.normal_(model.zipnerf.appearance.log_gains, std=0.1)
        bundle = make_bundle(6, camera_indices=torch.full((6, 1), 1))
        mean = model(bundle)["rgb"]
        model.view.appearance.value, model.view.appearance_photo.value = "of one photo", 1
        with torch.no_grad():
            lit = model._render(bundle, model.view.values())
        gains, opacity = model.zipnerf.appearance.gains()[1], lit["accumulation"]
        opacity = torch.ones_like(opacity) if background == "last_sample" else opacity
        torch.testing.assert_close(lit["rgb"], gains * mean + 0.055 * (gains - 1.0) * opacity)


def test_its_loss_is_one_of_the_steps_and_can_be_off():
    for mult in (0.0, 0.5):
        model = make_model(tiny_config(use_appearance=True, appearance_loss_mult=mult)).train()
        torch.nn.init.normal_(model.zipnerf.appearance.log_gains, std=0.1)
        bundle, batch = sphere_batch(24, 1)
        found = model.get_loss_dict(model(bundle), batch)
        assert ("appearance_loss" in found) == (mult > 0.0)
    torch.testing.assert_close(found["appearance_loss"], 0.5 * appearance_loss(model.zipnerf.appearance.departures()))


def test_a_checkpoint_with_codes_of_earlier_versions_is_named():
    own = make_model(tiny_config(use_appearance=True)).state_dict()
    earlier = {name: value for name, value in own.items() if "appearance" not in name}
    earlier["zipnerf.field.appearance.codes.weight"] = torch.zeros(3, 4)
    with pytest.raises(InputError, match="appearance is a code .* train anew"):
        check_state_dict(earlier, own)
