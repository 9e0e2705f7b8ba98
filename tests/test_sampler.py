"""The sampler: intervals that tile the ray, where they go, and the limits of rays against dense point-in-box tests."""

from __future__ import annotations

import math

import pytest
import torch
from _rays import assert_same_bundle, copy_bundle, make_bundle, normal, uniform, unit_vectors

from nerfstudio.cameras.rays import RayBundle

from zipnerf_ns.losses import ray_samples_to_sdist, ray_samples_to_tdist
from zipnerf_ns.sampler import IntervalSampler, make_ray_samples, ray_limits, samples_to_weights, unit_ray_bundle

NEAR, FAR = 0.2, 1e6
NUM_SAMPLES = (16, 12, 8)


def constant_density(value: float):
    return lambda samples: torch.full_like(samples.frustums.starts, value)


def shell_density(samples, inner: float = 2.0, outer: float = 2.1):
    """Opaque between two spheres about the origin."""
    radius = samples.frustums.get_positions().norm(dim=-1, keepdim=True)
    return torch.where((radius > inner) & (radius < outer), 200.0, 1e-3)


def from_origin(count: int, seed: int = 0) -> RayBundle:
    return make_bundle(count, seed, origins=torch.zeros(count, 3))


def run(training: bool, density_fns=None, bundle=None, limits=None, anneal=1.0, seed=0, num_samples=NUM_SAMPLES):
    bundle = from_origin(7) if bundle is None else bundle
    limits = ray_limits(bundle, NEAR, FAR) if limits is None else limits
    sampler = IntervalSampler(num_samples).train(training)
    torch.manual_seed(seed)
    fns = [constant_density(0.3)] * (len(num_samples) - 1) if density_fns is None else density_fns
    samples, weights_list, samples_list = sampler(bundle, limits, fns, anneal)
    return [*samples_list, samples], weights_list, limits


# --- intervals ---


@pytest.mark.parametrize("training", [False, True])
def test_intervals_adjoin_increase_and_stay_inside(training):
    rounds, _, limits = run(training, [shell_density] * 2)
    assert [samples.shape[-1] for samples in rounds] == list(NUM_SAMPLES)
    for samples in rounds:
        starts, ends = samples.frustums.starts[..., 0], samples.frustums.ends[..., 0]
        assert torch.equal(starts[:, 1:], ends[:, :-1]) and (ends >= starts).all()
        assert (starts >= limits.near).all() and (ends <= limits.far).all()
        spacing_starts, spacing_ends = samples.spacing_starts[..., 0], samples.spacing_ends[..., 0]
        assert torch.equal(spacing_starts[:, 1:], spacing_ends[:, :-1]) and (spacing_ends > spacing_starts).all()
        assert (spacing_starts >= 0.0).all() and (spacing_ends <= 1.0).all()
        torch.testing.assert_close(samples.deltas[..., 0], ends - starts, rtol=0.0, atol=0.0)


def test_the_first_round_tiles_the_whole_ray_evenly_at_evaluation():
    rounds, _, limits = run(False)
    expected = torch.arange(17) / 16.0
    torch.testing.assert_close(ray_samples_to_sdist(rounds[0]), expected.expand(7, 17), rtol=0.0, atol=1e-6)
    tdist = ray_samples_to_tdist(rounds[0])
    torch.testing.assert_close(tdist[:, :1], limits.near, rtol=1e-6, atol=0.0)
    # One float32 step of s at the far end is thousands of world units.
    torch.testing.assert_close(tdist[:, -1:], limits.far, rtol=1e-3, atol=0.0)


def test_jitter_leaves_out_at_most_half_an_interval_at_one_end():
    rounds, _, _ = run(True)
    sdist = ray_samples_to_sdist(rounds[0])
    gap_near, gap_far = sdist[:, 0], 1.0 - sdist[:, -1]
    assert (gap_near.clamp_min(gap_far) <= 0.5 / 16.0 + 1e-6).all()
    assert (torch.minimum(gap_near, gap_far) == 0.0).all()


def test_distance_is_the_papers_power_ladder_of_normalised_distance():
    def ladder(t: float) -> float:
        power, scale = -1.5, 2.5
        return scale / power * ((2.0 * t / scale + 1.0) ** power - 1.0)

    rounds, _, _ = run(True)
    for samples in rounds:
        for t, s in zip(ray_samples_to_tdist(samples).flatten(), ray_samples_to_sdist(samples).flatten(), strict=True):
            expected = (ladder(float(t)) - ladder(NEAR)) / (ladder(FAR) - ladder(NEAR))
            assert float(s) == pytest.approx(expected, abs=1e-6)


def test_training_moves_all_intervals_of_a_ray_together_and_rays_apart():
    rounds, _, _ = run(True)
    inner = ray_samples_to_sdist(rounds[0])[:, 1:-1]
    shift = inner - torch.arange(1, 16) / 16.0
    assert (shift.amax(dim=-1) - shift.amin(dim=-1)).max() < 1e-6, "one jitter a ray"
    assert shift.mean(dim=-1).unique().numel() == 7 and shift.abs().max() <= 0.5 / 16.0 + 1e-6
    again, _, _ = run(True, seed=1)
    assert not torch.equal(inner, ray_samples_to_sdist(again[0])[:, 1:-1])


def test_evaluation_is_deterministic_and_draws_no_random_numbers():
    first, _, _ = run(False, [shell_density] * 2, seed=0)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())
    second, _, _ = run(False, [shell_density] * 2, seed=1)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(ray_samples_to_tdist(a), ray_samples_to_tdist(b))


@pytest.mark.parametrize("training", [False, True])
def test_a_dense_shell_draws_the_samples(training):
    # 64 even intervals are 0.11 long there: thick enough a shell that no jitter steps over it.
    rounds, weights_list, _ = run(
        training, [lambda samples: shell_density(samples, 2.0, 2.4)] * 2, num_samples=(64, 64, 32)
    )
    inside = []
    for samples in rounds:
        starts, ends = samples.frustums.starts[..., 0], samples.frustums.ends[..., 0]
        inside.append(((ends > 2.0) & (starts < 2.4)).float().mean(dim=-1))
    assert (inside[0] < 0.1).all(), "an even sampling hardly sees it"
    assert (inside[1] > 0.5).all() and (inside[2] > 0.7).all()
    assert all((weights.sum(dim=-2) > 0.9).all() for weights in weights_list)


def test_annealing_of_zero_ignores_the_weights():
    even, _, _ = run(False, [constant_density(0.0)] * 2, anneal=0.0)
    ignored, _, _ = run(False, [shell_density] * 2, anneal=0.0)
    heeded, _, _ = run(False, [shell_density] * 2, anneal=1.0)
    for a, b, c in zip(even[1:], ignored[1:], heeded[1:], strict=True):
        torch.testing.assert_close(ray_samples_to_sdist(a), ray_samples_to_sdist(b), rtol=0.0, atol=1e-6)
        assert (ray_samples_to_sdist(a) - ray_samples_to_sdist(c)).abs().max() > 0.05


def test_no_gradient_flows_into_the_intervals_but_weights_carry_theirs():
    scale = torch.tensor(3.0, requires_grad=True)
    rounds, weights_list, _ = run(True, [lambda samples: scale * shell_density(samples) * 0.01] * 2)
    for samples in rounds:
        assert not any(t.requires_grad for t in (samples.frustums.starts, samples.frustums.ends, samples.spacing_ends))
    for weights in weights_list:
        (v_scale,) = torch.autograd.grad((weights * normal(weights.shape, 3)).sum(), scale, retain_graph=True)
        assert v_scale != 0.0


def test_densities_are_given_cones_of_their_own_rays():
    seen = []
    bundle = make_bundle(5, 2, pixel_area=uniform((5, 1), 3, 1e-5, 1e-3))
    run(False, [lambda samples: seen.append(samples) or shell_density(samples)] * 2, bundle)
    for samples, count in zip(seen, NUM_SAMPLES[:2], strict=True):
        assert samples.shape == (5, count)
        for ray in range(5):
            for k in range(count):
                cone = samples.frustums[ray, k]
                assert torch.equal(cone.origins, bundle.origins[ray])
                assert torch.equal(cone.directions, bundle.directions[ray])
                assert torch.equal(cone.pixel_area, bundle.pixel_area[ray])
                assert torch.equal(samples.camera_indices[ray, k], bundle.camera_indices[ray])


def test_rays_without_a_camera_have_none_in_their_samples():
    rounds, _, _ = run(True, bundle=make_bundle(4, camera_indices=None))
    assert all(samples.camera_indices is None for samples in rounds)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_there_must_be_one_density_fewer_than_rounds(count):
    with pytest.raises(ValueError, match=f"3 rounds.*got {count}"):
        run(False, [shell_density] * count)


# --- weights ---


def test_weights_are_those_of_alpha_compositing_interval_by_interval():
    bundle = make_bundle(6, 4)
    limits = ray_limits(bundle, NEAR, 8.0)
    limits.valid[2] = False
    sdist = uniform((6, 11), 5).sort(dim=-1).values
    samples = make_ray_samples(bundle, limits, sdist)
    density = torch.exp(3.0 * normal((6, 10, 1), 6))
    weights = samples_to_weights(density, samples, limits)
    for ray in range(6):
        transmittance = 1.0
        for k in range(10):
            thickness = float(samples.frustums.ends[ray, k] - samples.frustums.starts[ray, k])
            alpha = 1.0 - math.exp(-float(density[ray, k]) * thickness)
            expected = 0.0 if ray == 2 else transmittance * alpha
            assert float(weights[ray, k]) == pytest.approx(expected, rel=2e-5, abs=1e-7)
            transmittance *= 1.0 - alpha


# --- limits and directions ---


def test_unit_ray_bundle_normalises_a_copy():
    bundle = make_bundle(5, 7)
    bundle.directions *= uniform((5, 1), 8, 0.1, 9.0)
    before = copy_bundle(bundle)
    unit = unit_ray_bundle(bundle)
    assert_same_bundle(bundle, before)
    torch.testing.assert_close(unit.directions.norm(dim=-1), torch.ones(5))
    cosine = torch.nn.functional.cosine_similarity(unit.directions, before.directions, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(5))
    for name in ("origins", "pixel_area", "camera_indices"):
        assert torch.equal(getattr(unit, name), getattr(before, name))


def test_without_other_limits_the_planes_hold():
    limits = ray_limits(make_bundle(4), 0.05, 77.0)
    assert (limits.near == 0.05).all() and (limits.far == 77.0).all() and limits.valid.all()


def test_the_bundles_limits_narrow_the_planes_but_never_widen_them():
    nears, fars = torch.tensor([[0.0], [1.0], [2.0], [90.0]]), torch.tensor([[1e9], [5.0], [2.0], [95.0]])
    limits = ray_limits(make_bundle(4, nears=nears, fars=fars), 0.05, 77.0)
    assert limits.valid[:, 0].tolist() == [True, True, False, False]
    assert limits.near[:2, 0].tolist() == pytest.approx([0.05, 1.0])
    assert limits.far[:2, 0].tolist() == pytest.approx([77.0, 5.0])
    assert (limits.far > limits.near).all(), "placeholders of empty rays are usable numbers"


@pytest.mark.parametrize("training", [False, True])
def test_a_missed_crop_sees_nothing_and_is_finite(training):
    missed = torch.full((7, 1), 1e10)
    bundle = make_bundle(7, nears=missed, fars=missed)
    rounds, weights_list, limits = run(training, [constant_density(50.0)] * 2, bundle, ray_limits(bundle, NEAR, FAR))
    assert not limits.valid.any()
    assert all((weights == 0.0).all() for weights in weights_list)
    assert all(torch.isfinite(ray_samples_to_tdist(samples)).all() for samples in rounds)


def axis_bundle() -> RayBundle:
    """Every axis and sign, from inside, from before and from beside the box: zero components, of either sign."""
    directions, origins = [], []
    for axis in range(3):
        for sign in (1.0, -1.0):
            direction = torch.full((3,), -0.0 if sign < 0.0 else 0.0)
            direction[axis] = sign
            for place in ((0.1, -0.2, 0.05), (-0.2, 0.3, 0.1), (3.0, 3.0, 3.0)):
                origin = torch.tensor(place)
                directions += [direction, direction]
                origins += [origin, torch.where(direction != 0.0, -4.0 * direction, origin)]
    count = len(origins)
    return make_bundle(count, origins=torch.stack(origins), directions=torch.stack(directions))


@pytest.mark.parametrize("kind", ["oblique", "axis"])
def test_box_limits_are_where_a_dense_walk_along_the_ray_is_inside(kind):
    bundle = make_bundle(150, 9) if kind == "oblique" else axis_bundle()
    if kind == "oblique":
        bundle.origins[::5] *= 0.2  # some start inside
        bundle.directions[::3] = unit_vectors(50, 10)  # some look away
    aabb = torch.tensor([[-0.5, -0.3, -0.4], [0.6, 0.7, 0.2]])
    near_plane, far_plane, step = 0.05, 6.0, 1e-3
    limits = ray_limits(bundle, near_plane, far_plane, aabb)
    t = torch.arange(near_plane + 0.5 * step, far_plane, step, dtype=torch.float64)
    points = bundle.origins[:, None].double() + t[:, None] * bundle.directions[:, None].double()
    inside = ((points > aabb[0].double()) & (points < aabb[1].double())).all(dim=-1)
    hits = inside.any(dim=-1)
    assert 0.2 < hits.float().mean() < 0.9, "the test sees hits and misses"
    # A chord shorter than a step can slip through the walk.
    decided = hits | ~limits.valid[:, 0] | ((limits.far - limits.near)[:, 0] > 2.0 * step)
    assert torch.equal(hits[decided], limits.valid[decided, 0])
    first = t[inside.int().argmax(dim=-1)]
    last = t[len(t) - 1 - inside.flip(-1).int().argmax(dim=-1)]
    torch.testing.assert_close(limits.near[hits, 0].double(), first[hits], rtol=0.0, atol=step)
    torch.testing.assert_close(limits.far[hits, 0].double(), last[hits], rtol=0.0, atol=step)
    assert torch.isfinite(limits.near).all() and (limits.far > limits.near).all()
