"""Errors shared among Gaussians, and Gaussians cut in two."""

from __future__ import annotations

import torch
from _torch_rasterizer import TorchRasterizer
from scipy.spatial.transform import Rotation
from test_fit import cameras, make_fit, pictures, true_gaussians

from zipnerf_ns.splats.distill.growth import APART, NARROWED, gathered_errors, halve
from zipnerf_ns.splats.distill.quality import named


def test_errors_are_gathered_by_what_a_color_is_made_of():
    """As a change of each Gaussian's brightness shows them, and nothing where a mask hides what is wrong."""
    truth, views = true_gaussians(), cameras(2)
    splats = named(truth)
    spoiled = []
    for target in pictures(truth, views):
        colors = target.colors.clone()
        colors[4:9, 10:15] = 255 - colors[4:9, 10:15]
        spoiled.append(target._replace(colors=colors))
    found = gathered_errors(TorchRasterizer(), splats, spoiled, torch.zeros(3), 1)
    expected = torch.zeros(len(truth))
    for target in spoiled:
        error = (TorchRasterizer().draw(splats, target.pinhole, 1).rgb - target.colors / 255.0).abs().mean(-1)
        for index in range(len(truth)):
            # One Gaussian is white, all others are black.
            white = torch.full((len(truth), 1, 3), -1e3)
            white[index] = 0.5 / 0.28209479177387814
            alone = {**splats, "sh0": white, "shN": torch.zeros(len(truth), 0, 3)}
            expected[index] += (TorchRasterizer().draw(alone, target.pinhole, 0).rgb[..., 0] * error).sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    used = torch.ones(*spoiled[0].colors.shape[:2], 1, dtype=torch.bool)
    used[4:9, 10:15] = False
    hidden = gathered_errors(TorchRasterizer(), splats, [t._replace(used=used) for t in spoiled], torch.zeros(3), 1)
    assert float(hidden.sum()) < 0.2 * float(found.sum())


def test_halves_lie_along_the_longest_axis():
    """Both as far from the middle, narrowed there alone, of less opacity; all others stay, with their moments."""
    fit = make_fit(pictures(true_gaussians(), cameras(3)), torch.zeros(3))
    fit._take_step()
    before = {name: value.detach().clone() for name, value in fit.params.items()}
    count = len(before["means"])
    moments = fit.optimizers["sh0"].state[fit.params["sh0"]]["exp_avg"].clone()
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[[3, 7]] = True
    halve(fit.params, fit.optimizers, chosen)
    assert all(len(value) == count + 2 for value in fit.params.values())
    assert all(torch.equal(fit.params[name][:count][~chosen], value[~chosen]) for name, value in before.items())
    turns = Rotation.from_quat(before["quats"][:, [1, 2, 3, 0]].numpy()).as_matrix()
    for old, new in ((3, count), (7, count + 1)):
        axis = int(before["scales"][old].argmax())
        way = torch.from_numpy(turns[old][:, axis]).float() * APART * before["scales"][old, axis].exp()
        for index, sign in ((old, 1.0), (new, -1.0)):
            torch.testing.assert_close(fit.params["means"][index].detach(), before["means"][old] + sign * way)
            change = (fit.params["scales"][index] - before["scales"][old]).exp().detach()
            expected = torch.ones(3)
            expected[axis] = NARROWED
            torch.testing.assert_close(change, expected)
            assert 0.0 < float(fit.params["opacities"][index].sigmoid()) < float(before["opacities"][old].sigmoid())
            assert torch.equal(fit.params["sh0"][index], before["sh0"][old])
    kept = fit.optimizers["sh0"].state[fit.params["sh0"]]["exp_avg"]
    assert torch.equal(kept[:count], moments) and not kept[count:].any()
    fit._take_step()
