"""Gaussians fitted by a pure-torch rasterizer to pictures of Gaussians that are known."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from _scenes import pose
from _torch_rasterizer import TorchRasterizer
from torch import Tensor

from zipnerf_ns.engine.safety.gradients import MOST_IN_A_ROW
from zipnerf_ns.errors import InputError
from zipnerf_ns.render.metrics import ssim
from zipnerf_ns.splats.distill import fit as fit_module
from zipnerf_ns.splats.distill.fit import GROW_AT, Fit, SplatConfig
from zipnerf_ns.splats.distill.loss import SSIM_SHARE, loss_gradient
from zipnerf_ns.splats.distill.points import extent, gaussians_at
from zipnerf_ns.splats.distill.quality import named
from zipnerf_ns.splats.distill.views import Pinhole, Target
from zipnerf_ns.splats.files import read_gaussians, write_gaussians
from zipnerf_ns.splats.gaussians import SH_C0, Gaussians
from zipnerf_ns.splats.rasterizer import Drawn

WIDTH, HEIGHT = 24, 16


def cameras(count: int) -> list[Pinhole]:
    """Cameras on a circle that look at the origin."""
    poses = [torch.tensor(pose(index, count))[:3].float() for index in range(count)]
    return [Pinhole(each, 26.0, 26.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT) for each in poses]


def true_gaussians(count: int = 12) -> Gaussians:
    """Opaque, colored ellipsoids about the origin."""
    draws = torch.Generator().manual_seed(5)
    means, colors = torch.rand(count, 3, generator=draws) - 0.5, torch.rand(count, 3, generator=draws)
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=draws), dim=-1)
    scales = (0.08 + 0.12 * torch.rand(count, 3, generator=draws)).log()
    sh = torch.zeros(count, 4, 3)
    sh[:, 0], sh[:, 1:] = (colors - 0.5) / SH_C0, 0.1 * torch.randn(count, 3, 3, generator=draws)
    return Gaussians(means, quats, scales, torch.full((count,), 2.0), sh, antialiased=True)


def pictures(gaussians: Gaussians, views: list[Pinhole], with_alpha: bool = False) -> list[Target]:
    """8-bit pictures of Gaussians."""
    found = []
    for view in views:
        rgb, alpha = TorchRasterizer().draw(named(gaussians), view, gaussians.degree)
        rgba = torch.cat([rgb / alpha.clamp_min(1e-6), alpha], dim=-1) if with_alpha else rgb
        found.append(Target(view, (rgba.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8), None))
    return found


def make_fit(targets: list[Target], background: Tensor | None = None, **changes) -> Fit:
    """A fit to photos alone, from points near the truth with its colors."""
    truth = true_gaussians()
    draws = torch.Generator().manual_seed(7)
    points = (truth.means[:, None] + 0.08 * torch.randn(len(truth), 4, 3, generator=draws)).flatten(0, 1)
    first = gaussians_at(points, (0.5 + SH_C0 * truth.sh[:, 0]).repeat_interleave(4, dim=0), 1)
    config = SplatConfig(**{"steps": 150, "max_gaussians": 60, "sh_degree": 1, **changes})
    radius = extent([target.pinhole for target in targets])
    return Fit(first, targets, [], config, TorchRasterizer(), radius, None, background)


def psnr_of(gaussians: Gaussians, targets: list[Target]) -> float:
    """Mean over the views, over black."""
    errors = [
        (TorchRasterizer().draw(named(gaussians), each.pinhole, gaussians.degree).rgb - each.colors / 255.0).square()
        for each in targets
    ]
    return -10.0 * math.log10(float(torch.stack(errors).mean()))


def test_known_gaussians_are_found():
    """Views that were not fitted to, from 48 points near the truth: 5 dB better than at first, above 26 dB."""
    views = cameras(10)
    targets = pictures(true_gaussians(), views)
    fit = make_fit(targets[::2], torch.zeros(3))
    before = psnr_of(fit.gaussians(), targets[1::2])
    said: list[str] = []
    assert fit.run(said.append)
    found = fit.gaussians()
    assert psnr_of(found, targets[1::2]) > before + 5.0
    assert 12 <= len(found) <= 60 and f"{len(found)} Gaussians" in said[-1]
    assert fit.is_pruned


def test_transparent_pictures_teach_opacity():
    """Over a background of another color at every step, what is behind everything becomes transparent."""
    views = cameras(6)
    targets = pictures(true_gaussians(), views, with_alpha=True)
    fit = make_fit(targets, steps=120)

    def error() -> float:
        alphas = [TorchRasterizer().draw(fit.params, each.pinhole, 0).alpha for each in targets]
        wrong = [alpha - each.colors[..., 3:] / 255.0 for alpha, each in zip(alphas, targets, strict=True)]
        return float(torch.stack(wrong).abs().mean())

    before = error()
    assert fit.run()
    assert error() < 0.6 * before


def test_pixels_that_do_not_count_teach_nothing():
    """Where a mask hides a wrong half of all pictures, that half changes nothing."""
    targets = pictures(true_gaussians(), cameras(3))
    used = torch.ones(HEIGHT, WIDTH, 1, dtype=torch.bool)
    used[:, WIDTH // 2 :] = False
    spoiled = [each._replace(colors=torch.where(used, each.colors, 255), used=used) for each in targets]
    clean = [each._replace(used=used) for each in targets]
    losses = []
    for pictures_given in (clean, spoiled):
        fit = make_fit(pictures_given, torch.zeros(3))
        losses.append(fit._take_step())
        assert all(value.isfinite().all() for value in fit.params.values())
        losses.append(fit.params["sh0"].detach())
    assert float(losses[0]) == pytest.approx(float(losses[2]), rel=1e-5)
    # Windows of SSIM that reach beyond the mask see other neighbors: Adam's first step has one size.
    assert float((losses[1] - losses[3]).abs().max()) <= 2.1 * fit._rate("sh0")


def test_pictures_are_looked_at_in_turn():
    """Each photo once before any is again, and as much of the field as is asked for."""
    targets = pictures(true_gaussians(), cameras(6))
    fit = make_fit(targets[:4], photo_share=0.5)
    fit.fields = targets[4:]
    drawn = [fit._choose().pinhole for _ in range(200)]
    photos = [each for each in drawn if any(each is target.pinhole for target in fit.photos)]
    assert 70 < len(photos) < 130
    for first in range(0, len(photos) - 3, 4):
        assert len({id(each) for each in photos[first : first + 4]}) == 4


class Spoiling(TorchRasterizer):
    """Has gradients of some pictures that are not finite."""

    def __init__(self, spoils: Callable[[int], bool]) -> None:
        self.spoils, self.count = spoils, 0

    def draw(self, splats: Mapping[str, Tensor], pinhole: Pinhole, degree: int) -> Drawn:
        drawn = super().draw(splats, pinhole, degree)
        self.count += 1
        if self.spoils(self.count):
            # A zero whose root has no slope.
            return drawn._replace(rgb=drawn.rgb + (splats["means"][:1] * 0.0).sqrt().sum())
        return drawn


def test_steps_without_finite_gradients_are_skipped_and_counted():
    """They change nothing, also after the Gaussians' number has changed, and a line says how many there were."""
    targets = pictures(true_gaussians(), cameras(3))
    fit = make_fit(targets, torch.zeros(3), steps=8, prune_below=0.4)
    fit.rasterizer, fit.grown = Spoiling(lambda count: count in (1, 7)), len(GROW_AT)
    before = {name: value.detach().clone() for name, value in fit.params.items()}
    fit._take_step()
    assert all(torch.equal(fit.params[name], value) for name, value in before.items())
    said: list[str] = []
    assert fit.run(said.append)
    assert fit.is_pruned and len(fit.params["means"]) < len(before["means"])
    assert all(value.isfinite().all() for value in fit.params.values())
    assert said[-1] == "Warning: 2 steps were skipped (2 in all): the gradient of means not finite."


def test_a_fit_that_no_longer_learns_ends():
    """After many steps in a row without finite gradients."""
    fit = make_fit(pictures(true_gaussians(), cameras(3)), torch.zeros(3), steps=MOST_IN_A_ROW)
    fit.rasterizer = Spoiling(lambda count: True)
    with pytest.raises(InputError, match="100 steps in a row were skipped: the gradient of means not finite. Try"):
        fit.run()


def test_others_come_where_most_is_wrong():
    """One color of twelve is wrong: what may still come is its halves, and no more come than may."""
    truth = true_gaussians()
    # All but the first are as they should be.
    changed = {name: getattr(truth, name).clone() for name in ("means", "quats", "scales", "opacities", "sh")}
    changed["sh"][0, 0] += 2.0
    fit = make_fit(pictures(truth, cameras(6)), torch.zeros(3), max_gaussians=13)
    fit._set(named(Gaussians(**changed, antialiased=True)))
    for _ in range(2):
        fit.grown = len(GROW_AT) - 1
        fit.grow()
        assert len(fit.params["means"]) == 13
    middle = (fit.params["means"][0] + fit.params["means"][12]) / 2.0
    torch.testing.assert_close(middle.detach(), truth.means[0])
    assert torch.equal(fit.params["means"][1:12], truth.means[1:])


def test_compact_gaussians_share_colors_which_a_sog_keeps(monkeypatch, tmp_path):
    """Few sets of coefficients, still learned after they were found, and the same from a state that was kept."""
    monkeypatch.setattr(fit_module, "MOST_SH", 5)
    targets = pictures(true_gaussians(), cameras(6))
    fit = make_fit(targets, torch.zeros(3), steps=20, compact=True)
    while not fit.is_pruned:
        fit._take_step()
    found = fit.params["shN"].detach().clone()
    assert len(found.flatten(1).unique(dim=0)) == 5 < len(found)
    again = make_fit(targets, torch.zeros(3), steps=20, compact=True)
    again.load_state_dict(copy.deepcopy(fit.state_dict()))
    for each in (fit, again):
        each.run()
        learned = each.gaussians().sh
        assert len(learned[:, 1:].flatten(1).unique(dim=0)) == 5
        assert not torch.equal(learned[:, 1:], found)
    assert torch.equal(fit.gaussians().sh, again.gaussians().sh)
    write_gaussians(fit.gaussians(), tmp_path / "a.sog")
    kept = read_gaussians(tmp_path / "a.sog").sh[:, 1:].flatten().sort().values
    assert float((kept - fit.gaussians().sh[:, 1:].flatten().sort().values).abs().max()) < 1e-6


def test_what_is_seen_nowhere_is_dropped():
    """A Gaussian behind all others goes, and those that are seen stay."""
    truth = true_gaussians()
    targets = pictures(truth, cameras(6))
    fit = make_fit(targets)
    inside = Gaussians(
        torch.cat([truth.means, torch.tensor([[0.0, 0.0, 900.0]])]),
        *(torch.cat([value, value[:1]]) for value in (truth.quats, truth.scales, truth.opacities, truth.sh)),
        antialiased=True,
    )
    fit._set(named(inside))
    fit.prune()
    assert torch.equal(fit.params["means"], truth.means)


@pytest.mark.parametrize(("size", "every"), [((20, 30), 1), ((20, 30), 2), ((21, 33), 2), ((10, 30), 2)])
def test_the_loss_depends_on_a_picture_as_autograd_says(size, every):
    """Mean absolute difference, and one minus the metric's SSIM in all windows or every second one across and down."""
    draws = torch.Generator().manual_seed(1)
    truth = torch.rand(*size, 3, generator=draws)
    rgb = (truth + 0.1 * torch.randn(*size, 3, generator=draws)).clamp(0.0, 1.0).requires_grad_()
    loss = (1.0 - SSIM_SHARE) * (rgb - truth).abs().mean()
    if min(size) > 10:
        loss = loss + SSIM_SHARE * (1.0 - ssim(rgb, truth)[::every, ::every].mean())
    loss.backward()
    torch.testing.assert_close(loss_gradient(rgb.detach(), truth, every), rgb.grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": None}, "give seconds or steps"),
        ({"seconds": -1.0}, "seconds is -1.0: it must be positive"),
        ({"steps": 0}, "steps is 0: it must be positive"),
        ({"max_gaussians": 1}, "max_gaussians is 1"),
        ({"sh_degree": 4}, "sh_degree is 4: it must be 0 to 3"),
        ({"prune_below": 1.5}, "prune_below is 1.5"),
        ({"photo_share": -0.1}, "photo_share is -0.1"),
        ({"field_views": -1}, "field_views is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    """One line that names the setting."""
    with pytest.raises(InputError, match=message):
        SplatConfig(**changes)
