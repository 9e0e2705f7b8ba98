"""The encoding's layout, gain, weight features and cache; its gradients in float64."""

from __future__ import annotations

import math
import re

import pytest
import torch
from _rays import TINY_GRID, make_encoding, normal, uniform
from torch.func import functional_call

from zipnerf_ns.encoding import AntiAliasedHashEncoding, HashGridConfig, resolve_implementation
from zipnerf_ns.functional import table_state
from zipnerf_ns.functional.hash_grid import hash_encode
from zipnerf_ns.optimizers import DecayingAdam

PREFILTERS = ["multisample", "ipe", "none"]
SAMPLES = {"multisample": 6, "ipe": 1, "none": 1}


def gaussians(prefilter: str, intervals: int = 5, dtype=torch.float32):
    """Positions inside the cube, and extents from a hundredth of the finest cell to the coarsest."""
    samples = SAMPLES[prefilter]
    positions = uniform((intervals, samples, 3), 1, 0.05, 0.95, dtype)
    stds = torch.exp(uniform((intervals, samples), 2, math.log(3e-4), math.log(0.25), dtype))
    return positions, stds


def weight_by_definition(prefilter: str, std: float, resolution: int) -> float:
    if prefilter == "multisample":
        return math.erf(1.0 / (math.sqrt(8.0) * std * resolution))
    return math.exp(-min(0.5 * (std * resolution) ** 2, 50.0)) if prefilter == "ipe" else 1.0


@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_output_is_features_level_by_level_then_one_weight_feature_a_level(prefilter):
    encoding = make_encoding(prefilter).double()
    positions, stds = gaussians(prefilter, dtype=torch.float64)
    out = encoding(positions, stds)
    levels, features = len(encoding.grid.levels), encoding.grid.features_per_level
    assert out.features.shape[-1] == encoding.get_out_dim() == levels * (features + 1)
    truth, _ = hash_encode(encoding.hash_table, positions, stds, encoding.grid, prefilter)
    for level in range(levels):
        start = level * features
        torch.testing.assert_close(out.features[:, start : start + features], 10.0 * truth[:, level])
        torch.testing.assert_close(out.per_level[:, level], 10.0 * truth[:, level])
    for interval in range(len(stds)):
        for index, level in enumerate(encoding.grid.levels):
            rows = encoding.hash_table[level.offset : level.offset + level.size]
            weights = [weight_by_definition(prefilter, float(std), level.resolution) for std in stds[interval]]
            mean_square = float((rows.detach() * 10.0).square().mean())
            expected = (2.0 * sum(weights) / len(weights) - 1.0) * math.sqrt(1e-4**2 + mean_square)
            found = float(out.features.detach()[interval, levels * features + index])
            assert found == pytest.approx(expected, rel=1e-12), (interval, index)


@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_a_constant_level_is_read_as_ten_times_its_value_lowered_by_the_mean_weight(prefilter):
    encoding = make_encoding(prefilter).double()
    constants = torch.tensor([0.3, -0.2, 0.5, 0.7], dtype=torch.float64)
    with torch.no_grad():
        for level, constant in zip(encoding.grid.levels, constants, strict=True):
            encoding.hash_table[level.offset : level.offset + level.size] = constant
    positions, stds = gaussians(prefilter, dtype=torch.float64)
    per_level = encoding(positions, stds).per_level
    for index, level in enumerate(encoding.grid.levels):
        rows = [[weight_by_definition(prefilter, float(std), level.resolution) for std in row] for row in stds]
        weights = torch.tensor(rows, dtype=torch.float64)
        expected = (10.0 * constants[index] * weights.mean(dim=1))[:, None].expand(-1, 2)
        torch.testing.assert_close(per_level[:, index], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
def test_wide_samples_lose_the_fine_levels_first(prefilter):
    encoding = make_encoding(prefilter).double()
    with torch.no_grad():
        encoding.hash_table.fill_(0.1)
    samples = SAMPLES[prefilter]
    stds = torch.logspace(-3.5, 0.0, 12, dtype=torch.float64)[:, None].expand(12, samples).contiguous()
    share = encoding(torch.full((12, samples, 3), 0.4, dtype=torch.float64), stds).per_level[..., 0]
    # 1e-12: where the weight is one, the sum over samples and corners rounds either way.
    assert (share.diff(dim=0) <= 1e-12).all(), "a wider sample may not see more"
    assert (share.diff(dim=1) <= 1e-12).all(), "a finer level may not be seen better"
    assert (share[0] > 0.999).all() and (share[-1, -1] < 0.05)


def test_bandwidths_act_as_a_factor_on_the_variance():
    lambdas = (0.25, 1.0, 2.0, 4.0)
    plain = make_encoding("ipe").double()
    scaled = AntiAliasedHashEncoding(TINY_GRID, "ipe", bandwidths=lambdas).double()
    scaled.hash_table = plain.hash_table
    positions, stds = gaussians("ipe", dtype=torch.float64)
    for index, value in enumerate(lambdas):
        expected = plain(positions, stds * math.sqrt(value)).per_level[:, index]
        # The bandwidths are given in float32.
        torch.testing.assert_close(scaled(positions, stds).per_level[:, index], expected, rtol=1e-6, atol=1e-9)


def test_weight_features_send_no_gradient_to_the_table_but_do_to_the_extents():
    encoding = make_encoding()
    positions, _ = gaussians("multisample")
    # Around half a cell of every level: erf has not yet saturated, so every extent matters.
    stds = uniform(positions.shape[:2], 10, 0.02, 0.1).requires_grad_()
    weight_features = encoding(positions, stds).features[:, -len(encoding.grid.levels) :]
    objective = (weight_features * normal(weight_features.shape, 3)).sum()
    v_table, v_stds = torch.autograd.grad(objective, [encoding.hash_table, stds], allow_unused=True)
    assert v_table is None or not v_table.any()
    assert v_stds.abs().min() > 0.0


@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_gradients_are_those_of_finite_differences(prefilter):
    config = HashGridConfig(num_levels=2, features_per_level=2, base_res=2, max_res=7, log2_hashmap_size=4)
    encoding = AntiAliasedHashEncoding(config, prefilter).double()
    assert [level.is_dense for level in encoding.grid.levels] == [True, False]
    table = normal(encoding.hash_table.shape, 4, torch.float64).requires_grad_()
    positions = uniform((3, SAMPLES[prefilter], 3), 5, 0.0, 1.0, torch.float64)
    distance_to_face = min(float(((positions * n - 0.5) % 1.0 - 0.5).abs().sub(0.5).abs().min()) for n in (2, 7))
    assert distance_to_face > 1e-4, "finite differences must not straddle a kink"
    positions.requires_grad_()
    stds = uniform(positions.shape[:2], 6, 0.05, 0.3, torch.float64).requires_grad_()

    def features(table, positions, stds):
        # The weight features stand beside: their gradient towards the table is stopped on purpose.
        return functional_call(encoding, {"hash_table": table}, (positions, stds)).per_level

    assert torch.autograd.gradcheck(features, (table, positions, stds), eps=1e-6, atol=1e-7)
    moving = [positions] if prefilter == "none" else [positions, stds]
    fixed = stds.detach()
    assert torch.autograd.gradcheck(lambda p, s=fixed: encoding(p, s).features, moving, eps=1e-6, atol=1e-9)


def step_decaying_adam(encoding, fused):
    optimizer = DecayingAdam([encoding.hash_table], lr=0.05, fused=fused)
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
    inputs = gaussians("multisample")
    encoding.train(training)(*inputs)
    before = encoding.mean_square().clone()
    if "Adam" in change or "SGD" in change:
        # An optimiser's step comes after a forward pass in training.
        encoding.train()(*inputs)
    CHANGES[change](encoding)
    weight_features = encoding.train(training)(*inputs).features[:, -4:]
    rows = [encoding.hash_table.detach()[lv.offset : lv.offset + lv.size] for lv in encoding.grid.levels]
    expected = torch.stack([row.square().mean() for row in rows])
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(encoding.mean_square(), expected)
    fresh = make_encoding()
    fresh.load_state_dict(encoding.state_dict())
    torch.testing.assert_close(weight_features, fresh(*inputs).features[:, -4:])


def test_mean_square_reads_the_table_only_after_a_change_that_is_not_the_optimisers(monkeypatch):
    calls = []
    original = table_state.summarise
    monkeypatch.setattr(table_state, "summarise", lambda *args: calls.append(1) or original(*args))
    encoding, inputs = make_encoding().eval(), gaussians("multisample")
    for mode in (False, True, False):
        encoding.train(mode)(*inputs)
        assert not encoding.mean_square().requires_grad
    assert len(calls) == 1
    step_torch(encoding, torch.optim.SGD)
    encoding(*inputs)
    encoding(*inputs)
    assert len(calls) == 2
    # A step of the twin passes over the table itself, and the forward pass after it does not.
    step_decaying_adam(encoding, True)
    count = len(calls)
    encoding.train()(*inputs)
    assert len(calls) == count


@pytest.mark.parametrize("num_active", [0, 1, 3, 4, 9])
def test_levels_that_are_not_active_give_zero_and_take_no_gradient(num_active):
    encoding = make_encoding()
    positions, stds = gaussians("multisample")
    full, part = encoding(positions, stds), encoding(positions, stds, num_active)
    active = min(num_active, 4)
    torch.testing.assert_close(part.per_level[:, :active], full.per_level[:, :active], rtol=0.0, atol=0.0)
    assert not part.per_level[:, active:].any()
    torch.testing.assert_close(part.features[:, -4:], full.features[:, -4:], rtol=0.0, atol=0.0)
    objective = (part.per_level * normal(part.per_level.shape, 9)).sum()
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


def test_an_unknown_implementation_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="cuda.*unknown") as error:
        resolve_implementation("cuda", torch.device("cpu"))
    assert "'auto'" in str(error.value) and "'torch'" in str(error.value)


def test_every_implementation_that_the_error_offers_is_known():
    with pytest.raises(ValueError) as error:
        resolve_implementation("cuda", torch.device("cpu"))
    for name in re.findall(r"'(\w+)'", str(error.value).split("choose")[1]):
        try:
            assert callable(resolve_implementation(name, torch.device("cpu")))
        except RuntimeError as absent:
            # Known, but not on this machine: the message says so.
            assert name in str(absent).lower()


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_on_a_cpu_the_torch_twin_computes(name):
    assert resolve_implementation(name, torch.device("cpu")) is hash_encode


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
