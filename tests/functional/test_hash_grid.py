"""Levels, rows, trilinear weights and prefilters against explicit loops over python integers and floats."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from _hash_truth import (
    LEVEL_NAMES,
    LEVELS,
    PREFILTERS,
    faces_and_centers,
    looped_corners,
    looped_weight,
    random_samples,
)
from _truth import assert_finite, rng

from zipnerf_ns.functional.hash_grid import (
    HASH_PRIMES,
    Level,
    level_corners,
    make_hash_grid,
    prefilter_weights,
)

# --- make_hash_grid ---


@pytest.mark.parametrize(
    "num_levels,base_res,max_res,resolutions",
    [
        (10, 16, 8192, [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]),
        (6, 16, 512, [16, 32, 64, 128, 256, 512]),
        (8, 16, 2048, [16, 32, 64, 128, 256, 512, 1024, 2048]),
        (3, 4, 25, [4, 10, 25]),
        (1, 7, 7, [7]),
        (3, 5, 5, [5, 5, 5]),
    ],
)
def test_resolutions_are_a_geometric_progression(num_levels, base_res, max_res, resolutions):
    assert list(make_hash_grid(num_levels, base_res, max_res, 10, 2).resolutions) == resolutions


def test_sixteen_levels_grow_by_one_factor():
    found = np.array(make_hash_grid(16, 16, 2048, 19, 2).resolutions)
    np.testing.assert_allclose(found, 16.0 * 128.0 ** (np.arange(16) / 15.0), rtol=0.0, atol=0.5)
    assert found[0] == 16 and found[-1] == 2048


@pytest.mark.parametrize("log2_hashmap_size", [4, 12, 15, 21])
@pytest.mark.parametrize("features_per_level", [1, 4])
def test_levels_follow_each_other_and_are_dense_where_they_fit(log2_hashmap_size, features_per_level):
    grid = make_hash_grid(6, 16, 512, log2_hashmap_size, features_per_level)
    offset = 0
    for level in grid.levels:
        assert level.offset == offset
        assert level.is_dense == (level.resolution**3 <= 2**log2_hashmap_size)
        assert level.size == min(level.resolution**3, 2**log2_hashmap_size)
        offset += level.size
    assert grid.num_entries == offset and grid.features_per_level == features_per_level


def test_a_level_that_fits_exactly_is_dense():
    assert [level.is_dense for level in make_hash_grid(2, 16, 17, 12, 1).levels] == [True, False]


@pytest.mark.parametrize(
    "argument,value,match",
    [
        ("num_levels", 0, "num_levels"),
        ("base_res", 0, "base_res"),
        ("features_per_level", 0, "features_per_level"),
        ("max_res", 15, "max_res"),
        ("max_res", 2**15 + 1, "max_res"),
        ("log2_hashmap_size", 3, "log2_hashmap_size"),
        ("log2_hashmap_size", 27, "log2_hashmap_size"),
    ],
)
def test_impossible_grids_are_refused_by_name(argument, value, match):
    sizes = {"num_levels": 2, "base_res": 16, "max_res": 32, "log2_hashmap_size": 10, "features_per_level": 1}
    make_hash_grid(**sizes)
    with pytest.raises(ValueError, match=match):
        make_hash_grid(**{**sizes, argument: value})


# --- level_corners ---


def test_primes_are_instant_ngps():
    assert HASH_PRIMES == (1, 2654435761, 805459861, 3674653429)


@pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
def test_corners_match_a_loop_over_python_integers(level):
    random = torch.rand(100, 3, generator=rng(0), dtype=torch.float64) * 1.4 - 0.2
    positions = torch.cat([random, faces_and_centers(level)])
    rows, weights = level_corners(positions, level)
    truth = [looped_corners(position, level) for position in positions.tolist()]
    assert rows.dtype == torch.int32
    assert torch.equal(rows, torch.tensor([row for row, _ in truth], dtype=torch.int32))
    # float64 rounds x n - 1/2, up to 32768, to 4e-12.
    torch.testing.assert_close(weights, torch.tensor([w for _, w in truth], dtype=torch.float64), rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
def test_rows_exist_and_weights_are_shares_of_one(level):
    positions = (torch.rand(500, 3, generator=rng(2)) * 1.4 - 0.2).float()
    rows, weights = level_corners(positions, level)
    assert (rows >= 0).all() and (rows < level.size).all()
    assert (weights >= 0.0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(500), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("level", [LEVELS[k] for k in (0, 1, 5, 6)], ids=[LEVEL_NAMES[k] for k in (0, 1, 5, 6)])
def test_float32_finds_the_same_rows_as_float64(level):
    # Positions on a lattice of 2^-18: every step to cells is then exact in float32 as well.
    steps = torch.randint(0, 2**18 + 1, (500, 3), generator=rng(3))
    positions = steps.double() / 2**18
    rows, weights = level_corners(positions.float(), level)
    exact_rows, exact_weights = level_corners(positions, level)
    assert torch.equal(rows, exact_rows)
    torch.testing.assert_close(weights.double(), exact_weights, rtol=0.0, atol=3e-7)


@pytest.mark.parametrize("resolution", [2, 5])
def test_a_dense_level_gives_every_cell_its_own_row(resolution):
    level = Level(resolution, 0, resolution**3, True)
    centers = (torch.cartesian_prod(*[torch.arange(resolution, dtype=torch.float64)] * 3) + 0.5) / resolution
    rows, weights = level_corners(centers, level)
    own = rows.gather(1, weights.argmax(dim=1, keepdim=True)).flatten()
    assert torch.equal(own.sort().values, torch.arange(resolution**3, dtype=torch.int32))


def test_weights_make_any_linear_function_of_the_cell_centers_exact():
    # Between the outermost centers, trilinear interpolation of x, y and z is the position itself.
    n = 6
    level = Level(n, 0, n**3, True)
    positions = torch.rand(200, 3, generator=rng(4), dtype=torch.float64) * (1.0 - 1.0 / n) + 0.5 / n
    rows, weights = level_corners(positions, level)
    cells = torch.stack([rows % n, rows // n % n, rows // n**2], dim=-1)
    torch.testing.assert_close((weights[..., None] * (cells + 0.5) / n).sum(dim=1), positions, rtol=0.0, atol=1e-14)


# --- prefilter_weights ---


@pytest.mark.parametrize("dtype,atol", [(torch.float64, 1e-14), (torch.float32, 3e-7)])
@pytest.mark.parametrize("with_bandwidths", [False, True])
@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_prefilter_weights_match_the_formula(prefilter, with_bandwidths, dtype, atol):
    resolutions, bandwidths = (16, 100, 8192), (0.3, 1.0, 2.5) if with_bandwidths else (1.0, 1.0, 1.0)
    _, stds = random_samples(20, 6, seed=5, dtype=dtype)
    stds = stds * 10.0 ** torch.linspace(-3.0, 0.0, 20, dtype=dtype)[:, None]
    given = torch.tensor(bandwidths, dtype=dtype) if with_bandwidths else None
    found = prefilter_weights(stds, resolutions, prefilter, given)
    truth = [
        [[looped_weight(s, n, prefilter, b) for n, b in zip(resolutions, bandwidths, strict=True)] for s in row]
        for row in stds.tolist()
    ]
    torch.testing.assert_close(found.double(), torch.tensor(truth, dtype=torch.float64), rtol=0.0, atol=atol)


@pytest.mark.parametrize("cells", [0.05, 0.2, 0.5, 1.0, 5.0])
def test_the_multisample_weight_is_the_share_of_a_gaussian_within_its_cell(cells):
    # Along one axis, a Gaussian of std sigma about a cell's center, integrated from face to face.
    n = 64
    sigma = cells / n
    x = ((np.arange(200_000) + 0.5) / 200_000 - 0.5) / n
    share = np.exp(-0.5 * (x / sigma) ** 2).sum() / (200_000 * n) / (sigma * math.sqrt(2.0 * math.pi))
    found = prefilter_weights(torch.tensor([[sigma]], dtype=torch.float64), [n], "multisample").item()
    assert found == pytest.approx(share, abs=1e-9)


def test_the_ipe_weight_is_the_mean_of_a_wave_over_a_gaussian():
    # mip-NeRF, eq. 11: E[sin(f x)] is sin(f mean) exp(-f^2 sigma^2 / 2); f is n sqrt(lambda).
    n, sigma, bandwidth = 32, 0.03, 0.7
    frequency = n * math.sqrt(bandwidth)
    x = np.linspace(-10.0 * sigma, 10.0 * sigma, 200_001)
    density = np.exp(-0.5 * (x / sigma) ** 2) / (sigma * math.sqrt(2.0 * math.pi))
    mean = (density * np.sin(frequency * (x + 0.4))).sum() * (x[1] - x[0]) / math.sin(frequency * 0.4)
    stds, lambdas = (
        torch.tensor([[sigma]], dtype=torch.float64),
        torch.tensor([bandwidth], dtype=torch.float64),
    )
    assert prefilter_weights(stds, [n], "ipe", lambdas).item() == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
def test_prefilter_weights_fall_from_one_to_nothing(prefilter):
    resolutions = (16, 512, 8192)
    stds = torch.cat([torch.zeros(1), torch.logspace(-8, 4, 300)])[None]
    weights = prefilter_weights(stds, resolutions, prefilter)[0]
    assert (weights[0] == 1.0).all() and (weights[-1] < 1e-4).all() and (weights >= 0.0).all()
    assert (weights.diff(dim=0) <= 0.0).all(), "wider Gaussians weigh less"
    assert (weights.diff(dim=1) <= 0.0).all(), "finer levels weigh less"
    finer = prefilter_weights(stds / 32.0, (512,), prefilter)[0, :, 0]
    torch.testing.assert_close(finer, weights[:, 0], rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
def test_prefilter_weights_are_finite_with_their_gradients(prefilter):
    stds = torch.tensor([[0.0, 1e-38, 1e-20, 1e-4, 1.0, 1e4, 1e12]])
    assert_finite(lambda s, b: prefilter_weights(s, (1, 16, 32768), prefilter, b), stds, torch.tensor([0.1, 1.0, 9.0]))


def test_an_unknown_prefilter_is_refused():
    # Unwrapped, because under the shape checker the Literal in the signature refuses it first.
    with pytest.raises(ValueError, match="prefilter.*gaussian"):
        inspect.unwrap(prefilter_weights)(torch.ones(1, 1), [4], "gaussian")
