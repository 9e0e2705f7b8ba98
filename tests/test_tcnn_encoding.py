"""The encoding on tinycudann, computed by a stand-in for the library."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from _rays import normal, uniform, unit_vectors
from _tinycudann import make_library, side

from zipnerf_ns.encoding import AntiAliasedHashEncoding, HashGridConfig, TcnnHashEncoding
from zipnerf_ns.engine.optimizers import DecayingAdam
from zipnerf_ns.functional.adam import decay_coefficients
from zipnerf_ns.functional.cones import Cones, cones_in_cube
from zipnerf_ns.functional.hash_grid import hash_encode, make_hash_grid
from zipnerf_ns.kernels.tcnn import growth, library_levels, why_unsupported
from zipnerf_ns.ops import TORCH_OPS

CONFIG = HashGridConfig(num_levels=4, features_per_level=2, base_res=4, max_res=32, log2_hashmap_size=9)
PREFILTERS = ["ipe", "none"]


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", make_library())


def make_encoding(prefilter: str = "ipe", config: HashGridConfig = CONFIG, **changes) -> TcnnHashEncoding:
    encoding = TcnnHashEncoding(config, prefilter, **changes)
    with torch.no_grad():
        encoding.hash_table.copy_(0.1 * normal(encoding.hash_table.shape, 0))
    return encoding


def gaussians(intervals: int = 7) -> tuple:
    """Inside the cube but for its outermost cells, where the library reads on into other rows."""
    return uniform((intervals, 1, 3), 1, 0.15, 0.85), torch.exp(uniform((intervals, 1), 2, math.log(3e-3), -1.0))


def make_cones() -> Cones:
    """Four rays of three intervals inside a box; their frustums are from finest cells to half the box wide."""
    origins, radius = uniform((4, 3), 3, -0.3, 0.3), torch.tensor([[1e-3], [0.01], [0.1], [0.5]])
    tdist = torch.tensor([[0.0, 0.05, 0.15, 0.3]]).expand(4, 4).contiguous()
    return Cones(origins, unit_vectors(4, 4), radius, tdist, None, torch.tensor([[-1.0] * 3, [1.0] * 3]))


# --- layout ---


def test_the_layout_has_the_size_that_users_of_the_library_have_seen():
    # https://github.com/NVlabs/tiny-cuda-nn/issues/338, with nerfstudio's growth from 16 to 2048.
    levels, _ = library_levels(16, 16, math.exp((math.log(2048) - math.log(16)) / 15), 19)
    assert 2 * (levels[-1].offset + levels[-1].size) == 12196240


@pytest.mark.parametrize("base_res,max_res,num_levels", [(16, 8192, 10), (16, 2048, 16), (16, 512, 6), (7, 7, 3)])
def test_levels_reach_from_the_base_to_the_largest_resolution(base_res, max_res, num_levels):
    scale = growth(num_levels, base_res, max_res)
    levels, cells = library_levels(num_levels, base_res, scale, 19)
    assert levels[0].resolution == base_res and levels[-1].resolution == max_res
    assert cells == pytest.approx([float(side(index, scale, base_res)) for index in range(num_levels)])
    own = make_hash_grid(num_levels, base_res, max_res, 19, 2)
    for level, ours, count in zip(levels, own.levels, cells, strict=True):
        # Ours are the nearest whole numbers of the same progression, the library's the next.
        assert 0 <= level.resolution - ours.resolution <= 1 and level.resolution - 2 < count <= level.resolution - 1
        assert level.is_dense == (level.resolution**3 <= 2**19) and level.size % 8 == 0
        assert level.size - min(level.resolution**3, 2**19) in range(8)
    ends = [level.offset + level.size for level in levels]
    assert [level.offset for level in levels] == [0, *ends[:-1]]


def test_one_level():
    encoding = make_encoding(config=HashGridConfig(1, 1, 5, 5, 9))
    assert [level.resolution for level in encoding.grid.levels] == [5] and encoding.cells.tolist() == [4.0]


def test_a_library_that_lays_its_table_out_otherwise_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", make_library(extra_values=8))
    with pytest.raises(RuntimeError, match="lays it out otherwise"):
        TcnnHashEncoding(CONFIG)


# --- values ---


@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_features_are_the_librarys_lowered_by_our_weights_and_then_the_weight_features(prefilter):
    encoding = make_encoding(prefilter)
    cones = make_cones()
    positions, stds = cones_in_cube(cones, one_lookup=True)
    out = encoding(cones)
    read = encoding._library.encoding(positions[:, 0]).view(12, 4, 2)
    assert out.shape == (12, encoding.get_out_dim()) == (12, 12) and out.dtype == torch.float32
    for level, cells in enumerate(encoding.cells.tolist()):
        exponent = (0.5 * (stds[:, 0] * cells) ** 2).clamp(max=50.0)
        weight = torch.exp(-exponent) if prefilter == "ipe" else torch.ones(12)
        expected = 10.0 * weight[:, None] * read[:, level]
        torch.testing.assert_close(out[:, 2 * level : 2 * level + 2], expected, rtol=1e-5, atol=1e-7)
        rows = encoding.hash_table.detach().view(-1, 2)[encoding.grid.levels[level].offset :]
        scale = (1e-8 + 100.0 * rows[: encoding.grid.levels[level].size].square().mean()).sqrt()
        torch.testing.assert_close(out[:, 8 + level], (2.0 * weight - 1.0) * scale, rtol=1e-5, atol=1e-6)


def test_channels_come_in_the_precision_that_is_asked_for_and_no_half_precision_copy_is_kept():
    encoding = make_encoding()
    full, half = encoding(make_cones()), encoding(make_cones(), dtype=torch.bfloat16)
    assert torch.equal(half, full.bfloat16())
    encoding.ops = TORCH_OPS._replace(reads_half=lambda _: True)
    assert encoding.ops.reads_half(2) and not encoding.reads_half and encoding.summary().half is None


def test_a_constant_level_is_ten_times_its_value():
    encoding = make_encoding("none")
    with torch.no_grad():
        for index, level in enumerate(encoding.grid.levels):
            encoding.hash_table.view(-1, 2)[level.offset : level.offset + level.size] = 0.1 * (index + 1)
    per_level = encoding.per_level(encoding(make_cones()))
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None].expand(12, 4, 2)
    torch.testing.assert_close(per_level, expected)


def test_it_is_close_to_our_own_grid_of_as_many_cells():
    # A smooth function of position, stored at each grid's own corners, is read alike by both.
    config = HashGridConfig(1, 1, 32, 32, 15)
    encoding, grid = make_encoding("ipe", config), make_hash_grid(1, 31, 31, 15, 1)
    axis = torch.arange(32)
    corner = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1], dim=-1).view(-1, 3)
    with torch.no_grad():
        # Corner c lies where x * 31 + 1/2 = c.
        encoding.hash_table[: len(corner)] = smooth((corner - 0.5) / 31.0)
    center = torch.stack(torch.meshgrid(*(torch.arange(31),) * 3, indexing="ij")[::-1], dim=-1).view(-1, 3)
    positions, stds = gaussians(50)
    features, weights = encoding.look_up(positions, stds)
    truth, own_weights = hash_encode(smooth((center + 0.5) / 31.0)[:, None], positions, stds, grid, "ipe")
    torch.testing.assert_close(weights, own_weights)
    # Trilinear interpolation errs by an eighth of the second derivative (3) times the cell's side squared.
    torch.testing.assert_close(features, truth, rtol=0.0, atol=2 * 3 / 8 / 31**2)


def smooth(points: torch.Tensor) -> torch.Tensor:
    return torch.sin(points).prod(dim=-1)


def test_bandwidths_act_as_a_factor_on_the_variance():
    plain, scaled = make_encoding(), make_encoding(bandwidths=(0.25, 1.0, 2.0, 4.0))
    positions, stds = gaussians()
    for index, value in enumerate((0.25, 1.0, 2.0, 4.0)):
        expected = plain.look_up(positions, stds * math.sqrt(value))[0][:, index]
        torch.testing.assert_close(scaled.look_up(positions, stds)[0][:, index], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num_active", [0, 1, 3, 4, 9])
def test_levels_that_are_not_active_give_zero_and_take_no_gradient(num_active):
    encoding = make_encoding()
    full, part = encoding(make_cones()), encoding(make_cones(), num_active)
    active = min(num_active, 4)
    per_level = encoding.per_level(part)
    assert torch.equal(per_level[:, :active], encoding.per_level(full)[:, :active])
    assert not per_level[:, active:].any()
    assert torch.equal(part[:, 8:], full[:, 8:])
    objective = (per_level * normal(per_level.shape, 9)).sum()
    (v_table,) = torch.autograd.grad(objective, encoding.hash_table)
    rows = v_table.view(-1, 2)
    touched = [bool(rows[lv.offset : lv.offset + lv.size].any()) for lv in encoding.grid.levels]
    assert touched == [True] * active + [False] * (4 - active)


def test_gradients_reach_positions_and_extents():
    encoding = make_encoding()
    positions, stds = (tensor.requires_grad_() for tensor in gaussians())
    features, weights = encoding.look_up(positions, stds)
    objective = (features * normal(features.shape, 3)).sum() + (weights * normal(weights.shape, 4)).sum()
    v_positions, v_stds = torch.autograd.grad(objective, (positions, stds))
    assert v_positions.abs().amin() > 0.0 and v_stds.abs().amin() > 0.0


def test_cotangents_in_another_order_of_memory_reach_the_library_in_its_own():
    encoding = make_encoding()
    features, _ = encoding.look_up(*gaussians())
    # As the networks' kernels hand them over: all intervals of a channel one after the other.
    cotangent = normal((*features.shape[1:], features.shape[0]), 3).movedim(-1, 0)
    (found,) = torch.autograd.grad(features, encoding.hash_table, cotangent, retain_graph=True)
    (expected,) = torch.autograd.grad(features, encoding.hash_table, cotangent.contiguous())
    assert torch.equal(found, expected)


def test_positions_outside_and_no_positions():
    encoding = make_encoding()
    positions, stds = gaussians()
    outside, _ = encoding.look_up(positions + torch.tensor([2.0, 0.0, -3.0]), stds)
    at_the_face = torch.cat([torch.ones(7, 1, 1), positions[..., 1:2], torch.zeros(7, 1, 1)], dim=-1)
    assert torch.equal(outside, encoding.look_up(at_the_face, stds)[0])
    features, weights = encoding.look_up(positions[:0], stds[:0])
    assert features.shape == (0, 4, 2) and weights.shape == (0, 4)


# --- the table ---


def test_the_table_is_one_parameter_that_starts_like_ours():
    torch.manual_seed(0)
    encoding = TcnnHashEncoding(CONFIG)
    table = encoding.hash_table.detach()
    assert [name for name, _ in encoding.named_parameters()] == ["hash_table"] == list(encoding.state_dict())
    assert table.abs().max() <= 1e-5 and float(table.std()) == pytest.approx(1e-5 / math.sqrt(3.0), rel=0.1)
    assert not torch.equal(TcnnHashEncoding(CONFIG).hash_table, table)


@pytest.mark.parametrize("assign", [False, True])
def test_a_loaded_table_is_the_one_that_is_read(assign):
    encoding, other = make_encoding(), TcnnHashEncoding(CONFIG)
    inputs = (make_cones(),)
    other(*inputs)
    other.load_state_dict(encoding.state_dict(), assign=assign)
    assert torch.equal(other(*inputs), encoding(*inputs))
    copied = copy.deepcopy(encoding)
    with torch.no_grad():
        copied.hash_table.mul_(2.0)
    # Doubled features, and weight features whose scale is but for the initial values' square twice as large.
    torch.testing.assert_close(copied(*inputs), 2.0 * encoding(*inputs), rtol=1e-5, atol=1e-6)


def test_decay_and_statistics_are_by_level():
    encoding = make_encoding()
    encoding.decay = decay_coefficients(encoding.grid, 0.7)
    table = encoding.hash_table
    sizes = [level.size for level in encoding.grid.levels]
    parts = table.view(-1, 2).split(sizes)
    decay = 0.7 * 0.5 * sum(part.square().mean() for part in parts)
    (expected,) = torch.autograd.grad(decay, table)
    # The first step of Adam tells the gradient's sign, and its first moment the gradient.
    table.grad = torch.zeros_like(table)
    before = table.detach().clone()
    optimizer = DecayingAdam([table], lr=1e-3, betas=(0.9, 0.99))
    optimizer.adopt([encoding])
    optimizer.step()
    torch.testing.assert_close(optimizer.state[table]["exp_avg"], 0.1 * expected)
    assert torch.equal((table.detach() - before).sign(), -before.sign())
    assert encoding.is_current()
    means = torch.stack([part.square().mean() for part in table.detach().view(-1, 2).split(sizes)])
    torch.testing.assert_close(encoding.summary().mean_square, means)


def test_training_brings_the_features_to_a_target():
    encoding = TcnnHashEncoding(CONFIG)
    positions, stds = uniform((200, 1, 3), 1, 0.1, 0.9), torch.full((200, 1), 1e-3)
    target = smooth(3.0 * positions[:, 0])
    optimizer = DecayingAdam([encoding.hash_table], lr=0.01)
    optimizer.adopt([encoding])
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (10.0 * encoding.look_up(positions, stds)[0].sum(dim=(1, 2)) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]


# --- refusals ---


@pytest.mark.parametrize("error", [None, OSError("Unknown compute capability")])
def test_an_absent_library_is_told_with_how_to_install_it(monkeypatch, error):
    if error is None:
        monkeypatch.setitem(sys.modules, "tinycudann", None)
    else:
        monkeypatch.delitem(sys.modules, "tinycudann")
        monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=lambda *_: raise_error(error))])
    with pytest.raises(RuntimeError, match="pip install git.https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bind"):
        TcnnHashEncoding(CONFIG)


def raise_error(error: Exception) -> None:
    raise error


def test_what_the_library_cannot_do_is_refused():
    with pytest.raises(ValueError, match="one look-up an interval.*'ipe' or 'none'"):
        TcnnHashEncoding(CONFIG, "multisample")
    with pytest.raises(ValueError, match="features a level, got 3"):
        TcnnHashEncoding(dataclasses.replace(CONFIG, features_per_level=3))
    with pytest.raises(ValueError, match="max_res"):
        TcnnHashEncoding(dataclasses.replace(CONFIG, max_res=2))
    with pytest.raises(ValueError, match="3 bandwidths were given for 4 levels"):
        TcnnHashEncoding(CONFIG, bandwidths=(1.0, 1.0, 1.0))
    assert why_unsupported("ipe", 4) is None and why_unsupported("none", 1) is None


def test_it_is_an_anti_aliased_hash_encoding():
    assert isinstance(make_encoding(), AntiAliasedHashEncoding)
