"""The encoding's layout, gain, weight features and cache; its gradients in float64."""

from __future__ import annotations

import math

import pytest
import torch
from _rays import TINY_GRID, make_cones, make_encoding, normal
from torch import Tensor
from torch.func import functional_call

from zipnerf_ns import encoding as encoding_module
from zipnerf_ns.encoding import AntiAliasedHashEncoding, HashGridConfig
from zipnerf_ns.engine.optimizers import DecayingAdam
from zipnerf_ns.functional.cones import Cones, cones_in_cube
from zipnerf_ns.functional.hash_grid import hash_encode
from zipnerf_ns.ops import TORCH_OPS

PREFILTERS = ["multisample", "ipe", "none"]
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def every_multisample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where multisamples are close they are looked up one by one, so that the definition holds exactly."""
    monkeypatch.setattr(encoding_module, "CLOSE", 0.0)


def encode(encoding: AntiAliasedHashEncoding, cones: Cones, num_active: int | None = None) -> Tensor:
    """Channels in the table's own precision."""
    return encoding(cones, num_active, dtype=encoding.hash_table.dtype)


def weights_by_definition(encoding: AntiAliasedHashEncoding, cones: Cones) -> Tensor:
    """Mean prefilter weight ``[intervals, levels]`` of the cones' Gaussians, number by number."""
    _, stds = cones_in_cube(cones, encoding.prefilter != "multisample")

    def weight(std: float, resolution: int) -> float:
        if encoding.prefilter == "multisample":
            return math.erf(1.0 / (math.sqrt(8.0) * std * resolution))
        return math.exp(-min(0.5 * (std * resolution) ** 2, 50.0)) if encoding.prefilter == "ipe" else 1.0

    rows = [[sum(weight(std, n) for std in row) / len(row) for n in encoding.grid.resolutions] for row in stds.tolist()]
    return torch.tensor(rows, dtype=DOUBLE)


@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_output_is_features_level_by_level_then_one_weight_feature_a_level(prefilter):
    encoding = make_encoding(prefilter).double()
    cones = make_cones(dtype=DOUBLE)
    out = encode(encoding, cones)
    levels, features = len(encoding.grid.levels), encoding.grid.features_per_level
    assert out.shape == (12, encoding.get_out_dim()) == (12, levels * (features + 1))
    samples = cones_in_cube(cones, prefilter != "multisample")
    truth, _ = hash_encode(encoding.hash_table, *samples, encoding.grid, prefilter)
    per_level = encoding.per_level(out)
    assert per_level.shape == (12, levels, features) and per_level.data_ptr() == out.data_ptr(), "a view"
    for level in range(levels):
        start = level * features
        torch.testing.assert_close(out[:, start : start + features], 10.0 * truth[:, level])
        torch.testing.assert_close(per_level[:, level], 10.0 * truth[:, level])
    weights = weights_by_definition(encoding, cones)
    for index, level in enumerate(encoding.grid.levels):
        rows = encoding.hash_table.detach()[level.offset : level.offset + level.size]
        scale = math.sqrt(1e-4**2 + float((rows * 10.0).square().mean()))
        expected = (2.0 * weights[:, index] - 1.0) * scale
        torch.testing.assert_close(out[:, levels * features + index], expected, rtol=1e-12, atol=0.0)


def test_close_multisamples_are_one_for_the_encoding(monkeypatch):
    encoding, cones = make_encoding().double(), make_cones(dtype=DOUBLE)
    each = encode(encoding, cones)
    monkeypatch.setattr(encoding_module, "CLOSE", 0.25)
    together = encode(encoding, cones)
    torch.testing.assert_close(together, each, rtol=0.05, atol=0.05 * float(each.abs().max()))
    assert not torch.equal(together, each)


@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_a_constant_level_is_read_as_ten_times_its_value_lowered_by_the_mean_weight(prefilter):
    encoding = make_encoding(prefilter).double()
    constants = torch.tensor([0.3, -0.2, 0.5, 0.7], dtype=DOUBLE)
    with torch.no_grad():
        for level, constant in zip(encoding.grid.levels, constants, strict=True):
            encoding.hash_table[level.offset : level.offset + level.size] = constant
    cones = make_cones(dtype=DOUBLE)
    per_level = encoding.per_level(encode(encoding, cones))
    expected = (10.0 * constants * weights_by_definition(encoding, cones))[..., None].expand(-1, -1, 2)
    torch.testing.assert_close(per_level, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
def test_wide_cones_lose_the_fine_levels_first(prefilter):
    encoding = make_encoding(prefilter).double()
    with torch.no_grad():
        encoding.hash_table.fill_(0.1)
    # Cones about one axis, ever wider, cut at the same short interval.
    still = make_cones(1, 1, dtype=DOUBLE)
    wide = Cones(
        *(tensor.expand(12, -1) for tensor in still[:2]),
        torch.logspace(-2.5, 1.5, 12, dtype=DOUBLE)[:, None],
        torch.tensor([[0.30, 0.301]], dtype=DOUBLE).expand(12, 2),
        None,
        torch.tensor([[-2.0] * 3, [2.0] * 3], dtype=DOUBLE),
    )
    share = encoding.per_level(encode(encoding, wide))[..., 0]
    # 1e-12: where the weight is one, the sum over samples and corners rounds either way.
    assert (share.diff(dim=0) <= 1e-12).all(), "a wider sample may not see more"
    assert (share.diff(dim=1) <= 1e-12).all(), "a finer level may not be seen better"
    assert (share[0] > 0.999).all() and (share[-1, -1] < 0.05)


@pytest.mark.parametrize("is_leaf", [False, True])
def test_rays_that_are_told_less_have_that_share_of_the_weight_features_and_their_own_features(is_leaf):
    encoding, cones = make_encoding(), make_cones()
    cones = cones._replace(origins=cones.origins.clone().requires_grad_(is_leaf))
    told = torch.linspace(0.0, 1.0, len(cones.origins), dtype=cones.origins.dtype)[:, None]
    own, found = encoding(cones), encoding(cones._replace(told=told))
    levels = len(encoding.grid.levels)
    share = torch.ones_like(own)
    share[:, -levels:] = told.repeat_interleave(cones.tdist.shape[1] - 1, dim=0)
    torch.testing.assert_close(found, own * share, rtol=0.0, atol=0.0)
    cotangent = torch.randn_like(own)
    sources = [encoding.hash_table, *([cones.origins] if is_leaf else [])]
    expected = torch.autograd.grad(own, sources, cotangent * share)
    before = cotangent.clone()
    for slope, other in zip(torch.autograd.grad(found, sources, cotangent), expected, strict=True):
        torch.testing.assert_close(slope, other)
    assert torch.equal(cotangent, before), "a cotangent belongs to whoever gives it"


def test_bandwidths_act_as_a_factor_on_the_variance():
    lambdas = (0.25, 1.0, 2.0, 4.0)
    plain = make_encoding("ipe").double()
    scaled = AntiAliasedHashEncoding(TINY_GRID, "ipe", bandwidths=lambdas).double()
    scaled.hash_table = plain.hash_table
    cones = make_cones(dtype=DOUBLE)
    positions, stds = cones_in_cube(cones, True)
    for index, value in enumerate(lambdas):
        wider = stds * math.sqrt(value)
        expected = 10.0 * hash_encode(plain.hash_table, positions, wider, plain.grid, "ipe")[0][:, index]
        # The bandwidths are given in float32.
        found = scaled.per_level(encode(scaled, cones))[:, index]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_weight_features_send_no_gradient_to_the_table_but_do_to_the_extents():
    encoding = make_encoding()
    # Around half a cell of every level: erf has not yet saturated, so every extent matters.
    cones = make_cones()._replace(radius=torch.linspace(0.5, 2.0, 3)[:, None].requires_grad_())
    weight_features = encode(encoding, cones)[:, -len(encoding.grid.levels) :]
    objective = (weight_features * normal(weight_features.shape, 3)).sum()
    v_table, v_radius = torch.autograd.grad(objective, [encoding.hash_table, cones.radius], allow_unused=True)
    assert v_table is None or not v_table.any()
    assert v_radius.abs().min() > 0.0


@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_gradients_are_those_of_finite_differences(prefilter):
    config = HashGridConfig(num_levels=2, features_per_level=2, base_res=2, max_res=7, log2_hashmap_size=4)
    encoding = AntiAliasedHashEncoding(config, prefilter).double()
    assert [level.is_dense for level in encoding.grid.levels] == [True, False]
    table = normal(encoding.hash_table.shape, 4, DOUBLE).requires_grad_()
    cones = make_cones(2, 2, 3, DOUBLE, turned=True)
    positions, _ = cones_in_cube(cones, prefilter != "multisample")
    distance_to_face = min(float(((positions * n - 0.5) % 1.0 - 0.5).abs().sub(0.5).abs().min()) for n in (2, 7))
    assert distance_to_face > 1e-4, "finite differences must not straddle a kink"
    origins, tdist = cones.origins.requires_grad_(), cones.tdist.requires_grad_()

    def features(table, origins, tdist):
        # The weight features stand beside: their gradient towards the table is stopped on purpose.
        arguments = (cones._replace(origins=origins, tdist=tdist), None, None, DOUBLE)
        return encoding.per_level(functional_call(encoding, {"hash_table": table}, arguments))

    assert torch.autograd.gradcheck(features, (table, origins, tdist), eps=1e-6, atol=1e-7)

    def channels(origins, tdist):
        return encode(encoding, cones._replace(origins=origins, tdist=tdist))

    assert torch.autograd.gradcheck(channels, (origins, tdist), eps=1e-6, atol=1e-9)


def step_decaying_adam(encoding, fused):
    optimizer = DecayingAdam([encoding.hash_table], lr=0.05, fused=fused)
    optimizer.adopt([encoding])
    encoding.hash_table.grad = normal(encoding.hash_table.shape, 7)
    optimizer.step()


def step_torch(encoding, optimizer_class):
    encoding.hash_table.grad = normal(encoding.hash_table.shape, 7)
    optimizer_class([encoding.hash_table], lr=0.05).step()


def load_other(encoding, assign):
    other = make_encoding(seed=8, spread=0.5)
    encoding.load_state_dict(other.state_dict(), assign=assign)


CHANGES = {
    "DecayingAdam": lambda encoding: step_decaying_adam(encoding, False),
    "fused DecayingAdam": lambda encoding: step_decaying_adam(encoding, True),
    "SGD": lambda encoding: step_torch(encoding, torch.optim.SGD),
    "Adam": lambda encoding: step_torch(encoding, torch.optim.Adam),
    "load_state_dict": lambda encoding: load_other(encoding, False),
    "load_state_dict(assign=True)": lambda encoding: load_other(encoding, True),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", list(CHANGES))
def test_weight_features_follow_every_change_of_the_table(change, training):
    encoding = make_encoding()
    cones = make_cones()
    encode(encoding.train(training), cones)
    before = encoding.summary().mean_square.clone()
    if "Adam" in change or "SGD" in change:
        # An optimizer's step comes after a forward pass in training.
        encode(encoding.train(), cones)
    CHANGES[change](encoding)
    weight_features = encode(encoding.train(training), cones)[:, -4:]
    rows = [encoding.hash_table.detach()[lv.offset : lv.offset + lv.size] for lv in encoding.grid.levels]
    expected = torch.stack([row.square().mean() for row in rows])
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(encoding.summary().mean_square, expected)
    fresh = make_encoding()
    fresh.load_state_dict(encoding.state_dict())
    torch.testing.assert_close(weight_features, encode(fresh, cones)[:, -4:])


def test_mean_square_reads_the_table_only_after_a_change_that_is_not_the_optimizers():
    calls = []
    ops = TORCH_OPS._replace(summarize=lambda *args: calls.append(1) or TORCH_OPS.summarize(*args))
    encoding, cones = make_encoding().eval(), make_cones()
    encoding.ops = ops
    for mode in (False, True, False):
        encoding.train(mode)(cones)
        assert not encoding.summary().mean_square.requires_grad
    assert len(calls) == 1
    step_torch(encoding, torch.optim.SGD)
    encoding(cones)
    encoding(cones)
    assert len(calls) == 2
    # A step of our optimizer leaves the statistics behind, and the forward pass after it does not read the table.
    step_decaying_adam(encoding, True)
    encoding.train()(cones)
    assert len(calls) == 2


@pytest.mark.parametrize("num_active", [0, 1, 3, 4, 9])
def test_levels_that_are_not_active_give_zero_and_take_no_gradient(num_active):
    encoding = make_encoding()
    full, part = encode(encoding, make_cones()), encode(encoding, make_cones(), num_active)
    active = min(num_active, 4)
    assert torch.equal(part[:, : 2 * active], full[:, : 2 * active]) and not part[:, 2 * active : 8].any()
    assert torch.equal(part[:, 8:], full[:, 8:])
    objective = (part[:, :8] * normal((12, 8), 9)).sum()
    (v_table,) = torch.autograd.grad(objective, encoding.hash_table)
    touched = [bool(v_table[lv.offset : lv.offset + lv.size].any()) for lv in encoding.grid.levels]
    assert touched == [True] * active + [False] * (4 - active)


def test_features_start_within_the_init_range_after_the_gain():
    torch.manual_seed(0)
    table = AntiAliasedHashEncoding(TINY_GRID).hash_table.detach()
    # Uniform in +-1e-5: the variance is a third of the square, the mean zero within its standard error.
    assert table.abs().max() <= 1e-5
    assert float(table.square().mean()) == pytest.approx(1e-10 / 3.0, rel=0.1)
    assert abs(float(table.mean())) < 4.0 * 1e-5 / math.sqrt(3.0 * table.numel())


def test_the_given_implementation_reads_the_table_with_these_settings():
    encoding, seen = make_encoding("ipe"), []
    encoding.ops = TORCH_OPS._replace(cone_encode=lambda *args: seen.append(args) or TORCH_OPS.cone_encode(*args))
    cones = make_cones()
    assert encoding(cones, 3, dtype=torch.bfloat16).dtype == torch.bfloat16
    ((table, given, scales, lookup, half),) = seen
    assert table is encoding.hash_table and given is cones and half is None
    expected = [math.sqrt(1e-8 + 100.0 * float(square)) for square in encoding.summary().mean_square]
    assert scales.tolist() == pytest.approx(expected) and not scales.requires_grad
    assert lookup == (encoding.grid, "ipe", 10.0, None, 3, torch.bfloat16, 0.0)


def test_another_prefilter_can_be_read():
    for mode in ("multisample", "ipe", "none"):
        expected = make_encoding(mode)(make_cones())
        assert torch.equal(make_encoding("none")(make_cones(), prefilter=mode), expected)


@pytest.mark.parametrize("mode", ["multisample", "ipe", "none"])
def test_prefilter_weights_are_read_from_the_channels(mode):
    encoding, cones = make_encoding(mode), make_cones()
    found = encoding.prefilter_weights(encoding(cones))
    positions, stds = cones_in_cube(cones, mode != "multisample")
    expected = hash_encode(encoding.hash_table, positions, stds, encoding.grid, mode)[1]
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    assert found.shape == (12, 4)


def test_a_frozen_table_takes_no_gradient_and_positions_do():
    encoding = make_encoding()
    cones = make_cones()._replace(origins=make_cones().origins.requires_grad_())
    channels = encoding(cones, is_frozen=True)
    torch.testing.assert_close(channels, encoding(cones))
    (channels * normal(channels.shape, 4)).sum().backward()
    assert encoding.hash_table.grad is None and cones.origins.grad.abs().max() > 0.0


@pytest.mark.parametrize("count", [3, 5])
def test_bandwidths_must_be_one_a_level(count):
    with pytest.raises(ValueError, match=f"{count} bandwidths.*4 levels"):
        AntiAliasedHashEncoding(TINY_GRID, "ipe", bandwidths=(1.0,) * count)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"num_levels": 0}, "num_levels"),
        ({"base_res": 0}, "base_res"),
        ({"features_per_level": 0}, "features_per_level"),
        ({"max_res": 3}, "max_res"),
        ({"log2_hashmap_size": 3}, "log2_hashmap_size"),
        ({"log2_hashmap_size": 27}, "log2_hashmap_size"),
    ],
)
def test_a_grid_that_cannot_be_built_names_its_setting(changes, name):
    with pytest.raises(ValueError, match=name):
        make_encoding(**changes)
