"""The sampler: intervals that tile the ray, and where they go."""

from __future__ import annotations

import math

import pytest
import torch
from _rays import make_rays, normal, uniform

from zipnerf_ns.ops import TORCH_OPS
from zipnerf_ns.rays import Rays, Round
from zipnerf_ns.sampler import IntervalSampler

NEAR, FAR = 0.2, 1e6
NUM_SAMPLES = (16, 12, 8)


def constant_density(value: float):
    return lambda rays, tdist: torch.full_like(tdist[:, 1:], value)


def shell_density(rays: Rays, tdist: torch.Tensor, inner: float = 2.0, outer: float = 2.1):
    """Opaque between two spheres about the origin."""
    middles = 0.5 * (tdist[:, 1:] + tdist[:, :-1])[..., None]
    radius = (rays.origins[:, None] + middles * rays.directions[:, None]).norm(dim=-1)
    return torch.where((radius > inner) & (radius < outer), 200.0, 1e-3)


def from_origin(count: int, seed: int = 0, near: float = NEAR, far: float = FAR) -> Rays:
    return make_rays(count, seed, near, far, origins=torch.zeros(count, 3))


def run(training: bool, density_fns=None, rays=None, anneal=1.0, seed=0, num_samples=NUM_SAMPLES) -> list[Round]:
    """Every round, the last one without weights."""
    rays = from_origin(7) if rays is None else rays
    sampler = IntervalSampler(num_samples).train(training)
    torch.manual_seed(seed)
    fns = [constant_density(0.3)] * (len(num_samples) - 1) if density_fns is None else density_fns
    sampled = sampler(rays, fns, anneal)
    return [*sampled.proposals, Round(sampled.sdist, sampled.tdist, torch.empty(0))]


# --- intervals ---


@pytest.mark.parametrize("training", [False, True])
def test_intervals_increase_and_stay_inside(training):
    rays = from_origin(7)._replace(near=uniform((7, 1), 1, 0.1, 2.0), far=uniform((7, 1), 2, 3.0, 1e6))
    rounds = run(training, [shell_density] * 2, rays)
    assert [drawn.sdist.shape for drawn in rounds] == [(7, count + 1) for count in NUM_SAMPLES]
    for sdist, tdist, _ in rounds:
        assert tdist.shape == sdist.shape
        assert (sdist.diff(dim=-1) > 0.0).all() and (tdist.diff(dim=-1) >= 0.0).all()
        assert (sdist >= 0.0).all() and (sdist <= 1.0).all()
        assert (tdist >= rays.near).all() and (tdist <= rays.far).all()


def test_the_first_round_tiles_the_whole_ray_evenly_at_evaluation():
    sdist, tdist, _ = run(False)[0]
    expected = torch.arange(17) / 16.0
    torch.testing.assert_close(sdist, expected.expand(7, 17), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(tdist[:, :1], torch.full((7, 1), NEAR), rtol=1e-6, atol=0.0)
    # One float32 step of s at the far end is thousands of world units.
    torch.testing.assert_close(tdist[:, -1:], torch.full((7, 1), FAR), rtol=1e-3, atol=0.0)


def test_jitter_leaves_out_at_most_half_an_interval_at_one_end():
    sdist = run(True)[0].sdist
    gap_near, gap_far = sdist[:, 0], 1.0 - sdist[:, -1]
    assert (torch.maximum(gap_near, gap_far) <= 0.5 / 16.0 + 1e-6).all()
    assert (torch.minimum(gap_near, gap_far) == 0.0).all()


def test_distance_is_the_papers_power_ladder_of_normalized_distance():
    def ladder(t: float) -> float:
        power, scale = -1.5, 2.5
        return scale / power * ((2.0 * t / scale + 1.0) ** power - 1.0)

    for sdist, tdist, _ in run(True):
        for t, s in zip(tdist.flatten(), sdist.flatten(), strict=True):
            expected = (ladder(float(t)) - ladder(NEAR)) / (ladder(FAR) - ladder(NEAR))
            assert float(s) == pytest.approx(expected, abs=1e-6)


def test_training_moves_all_intervals_of_a_ray_together_and_rays_apart():
    inner = run(True)[0].sdist[:, 1:-1]
    shift = inner - torch.arange(1, 16) / 16.0
    assert (shift.amax(dim=-1) - shift.amin(dim=-1)).max() < 1e-6, "one jitter a ray"
    assert shift.mean(dim=-1).unique().numel() == 7 and shift.abs().max() <= 0.5 / 16.0 + 1e-6
    assert not torch.equal(inner, run(True, seed=1)[0].sdist[:, 1:-1])


def test_each_round_has_a_jitter_of_its_own():
    jitters = []

    def draw(*args):
        jitters.append(args[3])
        return TORCH_OPS.draw_intervals(*args)

    sampler = IntervalSampler(NUM_SAMPLES).train()
    sampler.ops = TORCH_OPS._replace(draw_intervals=draw)
    sampler(from_origin(60), [shell_density] * 2)
    assert all(jitter.shape == (60, 1) and (jitter >= 0.0).all() and (jitter < 1.0).all() for jitter in jitters)
    correlation = torch.corrcoef(torch.cat(jitters, dim=1).t())
    # Of sixty pairs of independent numbers it has a standard error of 0.13.
    assert (correlation - torch.eye(3)).abs().max() < 0.5
    jitters.clear()
    sampler.eval()(from_origin(60), [shell_density] * 2)
    assert jitters == [None] * 3


def test_evaluation_is_deterministic_and_draws_no_random_numbers():
    first = run(False, [shell_density] * 2, seed=0)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())
    second = run(False, [shell_density] * 2, seed=1)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.tdist, b.tdist)


@pytest.mark.parametrize("training", [False, True])
def test_a_dense_shell_draws_the_samples(training):
    # 64 even intervals are 0.11 long there: thick enough a shell that no jitter steps over it.
    fns = [lambda rays, tdist: shell_density(rays, tdist, 2.0, 2.4)] * 2
    rounds = run(training, fns, num_samples=(64, 64, 32))
    inside = [((d.tdist[:, 1:] > 2.0) & (d.tdist[:, :-1] < 2.4)).float().mean(dim=-1) for d in rounds]
    assert (inside[0] < 0.1).all(), "an even sampling hardly sees it"
    assert (inside[1] > 0.5).all() and (inside[2] > 0.7).all()
    assert all((drawn.weights.sum(dim=-1) > 0.9).all() for drawn in rounds[:-1])


def test_annealing_of_zero_ignores_the_weights():
    even = run(False, [constant_density(0.0)] * 2, anneal=0.0)
    ignored = run(False, [shell_density] * 2, anneal=0.0)
    heeded = run(False, [shell_density] * 2, anneal=1.0)
    for a, b, c in zip(even[1:], ignored[1:], heeded[1:], strict=True):
        torch.testing.assert_close(a.sdist, b.sdist, rtol=0.0, atol=1e-6)
        assert (a.sdist - c.sdist).abs().max() > 0.05


def test_no_gradient_flows_into_the_intervals_but_weights_carry_theirs():
    scale = torch.tensor(3.0, requires_grad=True)
    rounds = run(True, [lambda rays, tdist: scale * shell_density(rays, tdist) * 0.01] * 2)
    assert not any(posts.requires_grad for drawn in rounds for posts in (drawn.sdist, drawn.tdist))
    for drawn in rounds[:-1]:
        total = (drawn.weights * normal(drawn.weights.shape, 3)).sum()
        (v_scale,) = torch.autograd.grad(total, scale, retain_graph=True)
        assert v_scale != 0.0


def test_densities_are_given_the_rays_and_their_own_rounds_fenceposts():
    seen = []

    def density(which):
        return lambda rays, tdist: seen.append((which, rays, tdist)) or shell_density(rays, tdist)

    rays = make_rays(5, 2, radius=uniform((5, 1), 3, 1e-5, 1e-3))
    rounds = run(False, [density("first"), density("second")], rays)
    assert [which for which, _, _ in seen] == ["first", "second"]
    for (_, given, tdist), drawn in zip(seen, rounds, strict=False):
        assert given is rays and torch.equal(tdist, drawn.tdist)


def test_weights_are_those_of_alpha_compositing_interval_by_interval():
    rays = make_rays(6, 4, far=8.0)
    rays.valid[2] = False
    densities = [torch.exp(3.0 * normal((6, count), count)) for count in NUM_SAMPLES[:2]]
    rounds = run(True, [lambda rays, tdist, d=d: d for d in densities], rays)
    for drawn, density in zip(rounds, densities, strict=False):
        for ray in range(6):
            transmittance = 1.0
            for k in range(density.shape[1]):
                alpha = 1.0 - math.exp(-float(density[ray, k]) * float(drawn.tdist[ray, k + 1] - drawn.tdist[ray, k]))
                expected = 0.0 if ray == 2 else transmittance * alpha
                assert float(drawn.weights[ray, k]) == pytest.approx(expected, rel=2e-5, abs=1e-7)
                transmittance *= 1.0 - alpha


@pytest.mark.parametrize("training", [False, True])
def test_rays_that_see_nothing_have_finite_intervals_without_weight(training):
    rays = from_origin(7)._replace(valid=torch.zeros(7, 1, dtype=torch.bool))
    rounds = run(training, [constant_density(50.0)] * 2, rays)
    assert all((drawn.weights == 0.0).all() for drawn in rounds[:-1])
    assert all(torch.isfinite(drawn.tdist).all() for drawn in rounds)


# --- how it is told what to do ---


def test_the_given_implementation_does_the_work():
    calls = []

    def counted(name):
        original = getattr(TORCH_OPS, name)
        return lambda *args: calls.append(name) or original(*args)

    sampler = IntervalSampler(NUM_SAMPLES).eval()
    sampler.ops = TORCH_OPS._replace(**{name: counted(name) for name in ("draw_intervals", "density_to_weights")})
    sampler(from_origin(7), [shell_density] * 2)
    assert calls == ["draw_intervals", "density_to_weights"] * 2 + ["draw_intervals"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_there_must_be_one_density_fewer_than_rounds(count):
    with pytest.raises(ValueError, match=f"3 rounds.*got {count}"):
        run(False, [shell_density] * count)


def test_there_must_be_a_round():
    with pytest.raises(ValueError, match="at least one round"):
        IntervalSampler([])


def test_one_round_needs_no_density():
    (only,) = run(False, [], num_samples=(5,))
    torch.testing.assert_close(only.sdist, (torch.arange(6) / 5.0).expand(7, 6), rtol=0.0, atol=1e-6)


# --- squares of pixels that share their proposals ---


def square_of_rays(squares: int = 3, side: int = 2) -> Rays:
    """Rays of squares of pixels, whose limits are those of no other."""
    count = squares * side * side
    toward = normal((squares, 1, 3), 3) + 0.002 * normal((squares, side * side, 3), 4)
    near, far = uniform((count, 1), 1, 0.1, 0.2), uniform((count, 1), 2, 5.0, 6.0)
    directions = torch.nn.functional.normalize(toward, dim=-1).flatten(0, 1)
    return from_origin(count)._replace(directions=directions, near=near, far=far)


def test_a_squares_rays_merge_into_the_cone_that_they_fill():
    rays = square_of_rays()
    rays.valid[0], rays.valid[4:8] = False, False
    merged = rays.merged(2)
    assert merged.valid[:, 0].tolist() == [True, False, True]
    torch.testing.assert_close(merged.radius, 2.0 * rays.radius[:3])
    torch.testing.assert_close(merged.directions.norm(dim=-1), torch.ones(3))
    assert (merged.directions[0] @ rays.directions[:4].T > 0.9999).all()
    assert merged.near[0] == rays.near[1:4].min() and merged.far[0] == rays.far[1:4].max(), "of rays that see something"
    assert merged.near[1] == rays.near[4] and merged.far[1] == rays.far[4]


def test_squares_share_proposals_and_keep_their_own_limits():
    rays = square_of_rays()
    sampler = IntervalSampler(NUM_SAMPLES).eval()
    asked = []

    def density(some: Rays, tdist: torch.Tensor) -> torch.Tensor:
        asked.append(len(some.origins))
        return shell_density(some, tdist)

    sdist, tdist, proposals = sampler(rays, [density] * 2, side=2)
    assert asked == [3, 3] and [len(one.weights) for one in proposals] == [3, 3]
    assert sdist.shape == tdist.shape == (12, NUM_SAMPLES[-1] + 1)
    assert torch.equal(sdist[::4], sdist[3::4])
    assert (tdist >= rays.near).all() and (tdist <= rays.far).all() and (tdist.diff(dim=-1) >= 0.0).all()
    alone = sampler(rays.merged(2), [shell_density] * 2)
    inside = (alone.tdist.repeat_interleave(4, 0) > rays.near) & (alone.tdist.repeat_interleave(4, 0) < rays.far)
    assert inside.float().mean() > 0.5
    assert torch.equal(tdist[inside], alone.tdist.repeat_interleave(4, 0)[inside])
