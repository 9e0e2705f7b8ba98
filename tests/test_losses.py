"""Each loss against its definition, written out slowly in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _rays import make_encoding, make_round, normal, random_posts, random_weights, uniform, unit_vectors

from zipnerf_ns.losses import (
    appearance_loss,
    charbonnier,
    color_loss,
    distillation_loss,
    distortion_loss,
    hash_decay,
    interlevel_loss,
    level_consistency,
    mask_loss,
    proposal_catchup,
    squared_error,
)
from zipnerf_ns.ops import TORCH_OPS
from zipnerf_ns.rays import Round

RAYS, BINS = 3, (9, 7, 6)
BLURS = (0.03, 0.003)


def histories(total: float = 0.9, seed: int = 0) -> list[Round]:
    """Random histograms of two proposals and the rendered round, whose weights are leaves."""
    rounds = []
    for index, bins in enumerate(BINS):
        sdist = random_posts(RAYS, bins, seed + index)
        weights = random_weights(RAYS, bins, seed + 10 + index, total).requires_grad_()
        rounds.append(make_round(sdist, weights, 0.2 + 5.0 * sdist.square()))
    return rounds


def with_weights(drawn: Round, weights: torch.Tensor) -> Round:
    return drawn._replace(weights=weights)


def overlap(a0: float, a1: float, b0: float, b1: float) -> float:
    return max(0.0, min(a1, b1) - max(a0, b0))


def resampled(edges: list, masses: list, onto: list) -> list:
    """Mass of a histogram in each interval of ``onto``, by the overlap of every pair."""
    result = []
    for a0, a1 in zip(onto[:-1], onto[1:], strict=True):
        shares = [
            m * overlap(a0, a1, b0, b1) / (b1 - b0) for m, b0, b1 in zip(masses, edges[:-1], edges[1:], strict=True)
        ]
        result.append(sum(shares))
    return result


def blurred_on_a_grid(edges: list, masses: list, onto: list, halfwidth: float, step: float = 5e-6) -> list:
    """The histogram's density on a fine grid, its moving average over the box, and that summed over ``onto``."""
    x = np.arange(-0.1, 1.1, step) + 0.5 * step
    density = np.zeros_like(x)
    for mass, start, end in zip(masses, edges[:-1], edges[1:], strict=True):
        density[(x >= start) & (x < end)] = mass / (end - start)
    reach = int(round(halfwidth / step))
    running = np.concatenate([np.zeros(reach + 1), np.cumsum(density), np.full(reach, density.sum())])
    average = (running[2 * reach + 1 :] - running[: -2 * reach - 1]) / (2 * reach + 1)
    return [
        float(average[(x >= start) & (x < end)].sum() * step) for start, end in zip(onto[:-1], onto[1:], strict=True)
    ]


# --- color ---


def test_charbonnier_and_squared_error_are_their_formulas():
    prediction, target = uniform((4, 5, 3), 0, dtype=torch.float64), uniform((4, 5, 3), 1, dtype=torch.float64)
    prediction[0, 0] = target[0, 0]
    smooth, square = charbonnier(prediction, target), squared_error(prediction, target)
    for index in np.ndindex(4, 5):
        errors = [float(prediction[index][c] - target[index][c]) for c in range(3)]
        expected = sum(math.sqrt(e * e + 0.001**2) for e in errors) / 3.0
        assert float(smooth[index]) == pytest.approx(expected, rel=1e-12)
        assert float(square[index]) == pytest.approx(sum(e * e for e in errors) / 3.0, rel=1e-12, abs=1e-30)
    assert float(smooth[0, 0]) == pytest.approx(0.001)


@pytest.mark.parametrize("weighted", [False, True])
def test_color_losses_are_weighted_means_over_the_rays(weighted):
    prediction, target = uniform((7, 3), 0, dtype=torch.float64), uniform((7, 3), 1, dtype=torch.float64)
    weights = uniform((7,), 2, dtype=torch.float64) if weighted else None
    absolute = squared = 0.0
    for ray in range(7):
        weight = float(weights[ray]) if weighted else 1.0
        errors = [float(prediction[ray, channel] - target[ray, channel]) for channel in range(3)]
        absolute += weight * sum(math.sqrt(e * e + 0.001**2) for e in errors) / 21.0
        squared += weight * sum(e * e for e in errors) / 21.0
    knee = 2.0 * math.sqrt(squared + 0.001**2)
    huber = 0.0
    for ray in range(7):
        weight = float(weights[ray]) if weighted else 1.0
        errors = [float(prediction[ray, channel] - target[ray, channel]) for channel in range(3)]
        huber += math.sqrt(5.0) * weight * sum(math.sqrt(e * e + knee**2) - knee for e in errors) / 21.0
    for name, expected in (
        ("charbonnier", absolute), ("mse", squared), ("rmse", math.sqrt(squared + 0.001**2)), ("pseudo_huber", huber)
    ):  # fmt: skip
        assert float(color_loss(name, prediction, target, weights)) == pytest.approx(expected, rel=1e-12), name


def test_rmse_descends_where_mse_does_at_a_size_that_does_not_fade_with_the_errors():
    target, errors = uniform((7, 3), 1, dtype=torch.float64), normal((7, 3), 2, dtype=torch.float64)
    gradients = {}
    for size in (1.0, 0.1):
        for name in ("mse", "rmse"):
            prediction = (target + size * errors).requires_grad_()
            (gradients[name, size],) = torch.autograd.grad(color_loss(name, prediction, target), prediction)
        cosine = torch.nn.functional.cosine_similarity(
            gradients["mse", size].flatten(), gradients["rmse", size].flatten(), dim=0
        )
        assert float(cosine) == pytest.approx(1.0, rel=1e-12)
    # The padding alone makes a difference.
    torch.testing.assert_close(gradients["rmse", 0.1], gradients["rmse", 1.0], rtol=1e-4, atol=0.0)
    torch.testing.assert_close(gradients["mse", 0.1], 0.1 * gradients["mse", 1.0])
    still = target.clone().requires_grad_()
    color_loss("rmse", still, target).backward()
    assert bool((still.grad == 0.0).all()), "finite where there is no error"


def test_pseudo_huber_pulls_like_rmse_at_small_errors_and_evenly_at_large_ones():
    """One error of a hundred times the others': it pulls seven times as hard, where under rmse a hundred times."""
    target = torch.zeros(1000, 3, dtype=torch.float64)
    errors = torch.full_like(target, 0.01)
    errors[0] = 1.0
    gradients = {}
    for name in ("rmse", "pseudo_huber"):
        for size in (1.0, 0.1):
            prediction = (size * errors).requires_grad_()
            (gradients[name, size],) = torch.autograd.grad(color_loss(name, prediction, target), prediction)
    rms = float(errors.square().mean().sqrt())
    pulls = {name: gradients[name, 1.0][:2, 0] * target.numel() for name in ("rmse", "pseudo_huber")}
    for error, under_rmse, found in zip((1.0, 0.01), pulls["rmse"], pulls["pseudo_huber"], strict=True):
        assert float(under_rmse) == pytest.approx(error / rms, rel=1e-3)
        expected = math.sqrt(5.0) * error / math.sqrt(error**2 + (2.0 * rms) ** 2)
        assert float(found) == pytest.approx(expected, rel=1e-3)
    assert float(pulls["pseudo_huber"][0]) < math.sqrt(5.0)
    # Ten times smaller errors pull as hard, but for the padding.
    torch.testing.assert_close(gradients["pseudo_huber", 0.1], gradients["pseudo_huber", 1.0], rtol=0.05, atol=0.0)
    still = target.clone().requires_grad_()
    color_loss("pseudo_huber", still, target).backward()
    assert bool((still.grad == 0.0).all()), "finite where there is no error"


def test_charbonnier_has_a_bounded_gradient_where_the_error_is_zero():
    prediction = torch.zeros(2, 3, requires_grad=True)
    charbonnier(prediction, torch.tensor([[0.0] * 3, [1e-3, -1.0, 50.0]])).sum().backward()
    expected = [[0.0, 0.0, 0.0], [-math.sqrt(0.5) / 3.0, 1.0 / 3.0, -1.0 / 3.0]]
    torch.testing.assert_close(prediction.grad, torch.tensor(expected), rtol=1e-5, atol=1e-7)


# --- interlevel ---


def test_interlevel_is_its_definition_with_a_blur_on_a_fine_grid():
    *proposals, main = histories()
    total = 0.0
    for proposal, halfwidth in zip(proposals, BLURS, strict=True):
        for ray in range(RAYS):
            onto = proposal.sdist[ray].tolist()
            blurred = blurred_on_a_grid(main.sdist[ray].tolist(), main.weights[ray].tolist(), onto, halfwidth)
            for wanted, given in zip(blurred, proposal.weights[ray].tolist(), strict=True):
                total += max(0.0, wanted - given) ** 2 / (given + 1e-5) / RAYS
    found = float(interlevel_loss([*proposals, main], BLURS, TORCH_OPS).detach())
    # The grid places each of seven fenceposts within half of its step of 5e-6.
    assert found == pytest.approx(total, rel=5e-4)


def test_interlevel_gradient_is_that_of_the_definition_and_reaches_the_proposals_only():
    *proposals, main = histories()
    interlevel_loss([*proposals, main], BLURS, TORCH_OPS).backward()
    assert main.weights.grad is None
    for proposal, halfwidth in zip(proposals, BLURS, strict=True):
        for ray in range(RAYS):
            onto = proposal.sdist[ray].tolist()
            blurred = blurred_on_a_grid(main.sdist[ray].tolist(), main.weights[ray].tolist(), onto, halfwidth)
            for k, (wanted, given) in enumerate(zip(blurred, proposal.weights[ray].tolist(), strict=True)):
                excess = max(0.0, wanted - given)
                slope = -2.0 * excess / (given + 1e-5) - excess**2 / (given + 1e-5) ** 2
                assert float(proposal.weights.grad[ray, k]) == pytest.approx(slope / RAYS, rel=2e-3, abs=1e-4)


def test_interlevel_is_zero_where_the_proposals_cover_the_histogram():
    *proposals, main = histories()
    covering = [with_weights(proposal, torch.ones_like(proposal.weights)) for proposal in proposals]
    assert float(interlevel_loss([*covering, main], BLURS, TORCH_OPS)) == 0.0
    covering[1].weights[0, 3] = 1e-3
    assert float(interlevel_loss([*covering, main], BLURS, TORCH_OPS)) > 0.0


def test_interlevel_of_two_proposals_is_the_sum_of_each_alone():
    first, second, main = histories()
    both = interlevel_loss([first, second, main], BLURS, TORCH_OPS)
    alone = [interlevel_loss([p, main], [width], TORCH_OPS) for p, width in zip((first, second), BLURS, strict=True)]
    torch.testing.assert_close(both, alone[0] + alone[1], rtol=1e-12, atol=0.0)


def test_interlevel_wants_a_blur_for_every_proposal():
    with pytest.raises(ValueError):
        interlevel_loss(histories(), BLURS[:1], TORCH_OPS)


# --- distillation ---


def teachers(main: Round, proposal: Round) -> list[list[float]]:
    """Each ray's rendered histogram on a proposal's fenceposts."""
    rows = zip(main.sdist.tolist(), main.weights.tolist(), proposal.sdist.tolist(), strict=True)
    return [resampled(edges, masses, onto) for edges, masses, onto in rows]


def test_distillation_is_its_definition():
    *proposals, main = histories()
    total = 0.0
    for proposal in proposals:
        for teacher, student in zip(teachers(main, proposal), proposal.weights.tolist(), strict=True):
            opacity = sum(teacher)
            p_main, p_prop = [w / opacity for w in teacher], [w / sum(student) for w in student]
            divergence = sum(p * (math.log(p + 1e-6) - math.log(q + 1e-6)) for p, q in zip(p_main, p_prop, strict=True))
            squares = sum((a - b) ** 2 for a, b in zip(teacher, student, strict=True))
            total += (opacity * divergence + squares) / RAYS
    assert float(distillation_loss([*proposals, main]).detach()) == pytest.approx(total, rel=1e-9)


def test_distillation_teaches_the_proposals_only():
    *proposals, main = histories()
    distillation_loss([*proposals, main]).backward()
    assert main.weights.grad is None
    assert all((proposal.weights.grad != 0.0).all() for proposal in proposals)


def test_distillation_is_zero_and_flat_at_the_teacher_and_positive_beside_it():
    *proposals, main = histories()
    equal = [torch.tensor(teachers(main, p), dtype=torch.float64).requires_grad_() for p in proposals]
    loss = distillation_loss([*map(with_weights, proposals, equal), main])
    assert abs(float(loss.detach())) < 1e-12
    loss.backward()
    # KL's slope is -p/q + 1 = 0 but for the floor of 1e-6 in the logarithms.
    assert all(w.grad.abs().max() < 1e-3 for w in equal)
    still = with_weights(main, main.weights.detach())
    for k in range(4):
        beside = [w.detach() * (1.0 + 0.1 * uniform(w.shape, k, -1.0, 1.0, torch.float64)) for w in equal]
        assert float(distillation_loss([*map(with_weights, proposals, beside), still])) > 0.0


def test_descending_on_the_distillation_brings_the_proposal_to_the_teacher():
    proposal, _, main = histories()
    raw = proposal.weights.detach().log().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        distillation_loss([with_weights(proposal, raw.exp()), main]).backward()
        optimizer.step()
    for found, teacher in zip(raw.detach().exp().tolist(), teachers(main, proposal), strict=True):
        assert found == pytest.approx(teacher, abs=2e-3)


@pytest.mark.parametrize(
    "proposal, rgb, expected", [(0.5, 0.1, 1.0), (1.0, 0.1, 1.0), (3.0, 0.1, 3.0), (500.0, 0.1, 10.0), (1.0, 0.0, 10.0)]
)
def test_catchup_raises_what_exceeds_ten_times_the_color_loss(proposal, rgb, expected):
    lagging = torch.tensor(proposal, requires_grad=True)
    factor = proposal_catchup(lagging, torch.tensor(rgb, requires_grad=True))
    assert float(factor) == pytest.approx(expected) and not factor.requires_grad


# --- distortion ---


def curved(t: float) -> float:
    """P(1e4 t, -0.25) as the paper writes it."""
    return 1.25 / -0.25 * ((1e4 * t / 1.25 + 1.0) ** -0.25 - 1.0)


def test_distortion_is_the_papers_double_sum_in_curved_distance():
    main = histories()[-1]
    total = 0.0
    for ray in range(RAYS):
        posts, w = [curved(t) for t in main.tdist[ray].tolist()], main.weights[ray].tolist()
        starts, ends = posts[:-1], posts[1:]
        for i in range(len(w)):
            for j in range(len(w)):
                total += w[i] * w[j] * abs(starts[i] + ends[i] - starts[j] - ends[j]) / 2.0 / RAYS
            total += w[i] ** 2 * (ends[i] - starts[i]) / 3.0 / RAYS
    assert float(distortion_loss(main, TORCH_OPS).detach()) == pytest.approx(total, rel=1e-10)


def test_distortion_scales_with_the_square_of_the_weights_and_reaches_them():
    main = histories()[-1]
    loss = distortion_loss(main, TORCH_OPS)
    halved = distortion_loss(with_weights(main, 0.5 * main.weights), TORCH_OPS)
    torch.testing.assert_close(halved, 0.25 * loss, rtol=1e-12, atol=0.0)
    loss.backward()
    assert main.weights.grad.any()


def test_distortion_prefers_gathered_weight():
    main = histories()[-1]
    gathered, spread = torch.zeros_like(main.weights), torch.full_like(main.weights, 1.0 / BINS[-1])
    gathered[:, 2] = 1.0
    gathered, spread = (distortion_loss(with_weights(main, w), TORCH_OPS) for w in (gathered, spread))
    assert gathered < 0.5 * spread


def test_the_given_implementation_computes_the_losses_along_rays():
    *proposals, main = histories()
    ops = TORCH_OPS._replace(
        interlevel=lambda *args: 100.0 * TORCH_OPS.interlevel(*args),
        distortion=lambda *args: 1000.0 * TORCH_OPS.distortion(*args),
    )
    for loss, arguments, factor in (
        (interlevel_loss, ([*proposals, main], BLURS), 100.0), (distortion_loss, (main,), 1000.0)
    ):  # fmt: skip
        torch.testing.assert_close(loss(*arguments, ops), factor * loss(*arguments, TORCH_OPS))


# --- tables ---


def test_hash_decay_is_half_the_sum_over_levels_and_grids_of_the_mean_squares():
    grids = [make_encoding(seed=1).double(), make_encoding(seed=2, num_levels=3, features_per_level=1).double()]
    total = 0.0
    for encoding in grids:
        table = encoding.hash_table.detach().numpy()
        for level in encoding.grid.levels:
            values = table[level.offset : level.offset + level.size].ravel()
            total += 0.5 * float(sum(value * value for value in values)) / len(values)
    squares = [encoding.summary().mean_square for encoding in grids]
    assert float(hash_decay(squares)) == pytest.approx(total, rel=1e-10)


def test_level_consistency_compares_neighbors_and_teaches_the_coarser():
    per_level = normal((5, 4, 2), 3, torch.float64).requires_grad_()
    loss = level_consistency(per_level)
    values = per_level.tolist()
    differences = [
        values[i][level][f] - values[i][level + 1][f] for i in range(5) for level in range(3) for f in range(2)
    ]
    assert float(loss.detach()) == pytest.approx(sum(d * d for d in differences) / len(differences), rel=1e-12)
    loss.backward()
    expected = torch.tensor(differences, dtype=torch.float64).view(5, 3, 2) * 2.0 / len(differences)
    torch.testing.assert_close(per_level.grad[:, :-1], expected)
    assert not per_level.grad[:, -1].any(), "the finest level is only ever a teacher"


def test_level_consistency_of_features_in_half_precision_is_summed_in_float32():
    half = normal((50, 4, 2), 3).bfloat16().requires_grad_()
    full = half.detach().float().requires_grad_()
    loss, expected = level_consistency(half), level_consistency(full)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    assert torch.equal(half.grad, full.grad.bfloat16())


# --- appearance ---


def test_appearance_counts_photos_in_another_light_and_small_departures_in_part():
    """Half of one whose log gains are 0.1 away, nearly all of a far one, none of one in the mean light."""
    away = unit_vectors(1, 7)
    departures = torch.cat([0.1 * away, -0.1 * away, torch.zeros(2, 3)])
    torch.testing.assert_close(appearance_loss(departures), torch.tensor(0.25))
    assert 0.99 < appearance_loss(departures[:2] * 20.0) < 1.0
    slopes = []
    for length in (0.01, 0.058, 0.3, 3.0):
        departures = (length * away).requires_grad_()
        (slope,) = torch.autograd.grad(appearance_loss(departures), departures)
        slopes.append(float((slope * away).sum()))
    # The pull to the mean is largest at a middling departure; at a large one there is hardly any.
    assert slopes[1] > 2.0 * slopes[0] > 0.0 and slopes[1] > 5.0 * slopes[2] > 500.0 * slopes[3] > 0.0


def test_the_mask_loss_is_the_share_that_may_move_and_moves_no_weight():
    main = histories()[-1]
    mask = uniform((RAYS * BINS[-1], 1), 5).double().requires_grad_()
    loss = mask_loss(main, mask)
    weights, shares = main.weights.tolist(), mask.detach().view(RAYS, -1).tolist()
    expected = sum(w * m for row, masks in zip(weights, shares, strict=True) for w, m in zip(row, masks, strict=True))
    assert float(loss.detach()) == pytest.approx(expected / RAYS)
    of_weights, of_mask = torch.autograd.grad(loss, (main.weights, mask), allow_unused=True)
    assert of_weights is None
    torch.testing.assert_close(of_mask.view(RAYS, -1), main.weights.detach() / RAYS)


# --- extremes ---


@pytest.mark.parametrize("which", ["nothing", "proposals empty", "rendered empty", "equal fenceposts"])
def test_values_and_gradients_are_finite_at_the_extremes(which):
    weights = [drawn.weights.detach().float() for drawn in histories()]
    if which in ("nothing", "proposals empty"):
        weights[:-1] = [torch.zeros_like(w) for w in weights[:-1]]
    if which in ("nothing", "rendered empty"):
        weights[-1] = torch.zeros_like(weights[-1])
    steps = [random_posts(RAYS, bins, seed, torch.float32) for seed, bins in enumerate(BINS)]
    if which == "equal fenceposts":
        steps = [sdist.mul(3.0).floor().div(3.0) for sdist in steps]
    weights = [w.requires_grad_() for w in weights]
    rounds = [make_round(sdist, w, sdist * 1e6) for sdist, w in zip(steps, weights, strict=True)]
    interlevel, distortion = interlevel_loss(rounds, BLURS, TORCH_OPS), distortion_loss(rounds[-1], TORCH_OPS)
    for loss in (interlevel, distillation_loss(rounds), distortion):
        assert torch.isfinite(loss)
        for grad in torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True):
            assert grad is None or torch.isfinite(grad).all()
    if which == "rendered empty":
        assert float(interlevel.detach()) == float(distortion.detach()) == 0.0
