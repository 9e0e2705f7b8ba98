"""The collision monitor against sets counted in Python; that it disturbs nothing; features' sizes."""

from __future__ import annotations

import math

import pytest
import torch
from _rays import TINY_GRID, make_encoding, make_rays, uniform

from zipnerf_ns.encoding import AntiAliasedHashEncoding
from zipnerf_ns.field import ZipNerfDensityField
from zipnerf_ns.functional.hash_grid import make_hash_grid
from zipnerf_ns.functional.spacing import s_to_t
from zipnerf_ns.render import monitor as monitor_module
from zipnerf_ns.render.monitor import CollisionMonitor, collision_shares, feature_sizes


def counted_share(positions: torch.Tensor, resolution: int, size: int, is_dense: bool) -> float:
    """Distinct entries over distinct cells, with Instant-NGP's hash in Python's whole numbers."""
    cells = set()
    for point in positions.tolist():
        cells.add(tuple(min(int(math.floor(min(max(x, 0.0), 1.0) * resolution)), resolution - 1) for x in point))
    if is_dense:
        entries = {x + resolution * (y + resolution * z) for x, y, z in cells}
    else:
        entries = {((x ^ y * 2654435761 ^ z * 805459861) & 0xFFFFFFFF) % size for x, y, z in cells}
    return len(entries) / len(cells)


@pytest.mark.parametrize("count, log2_size", [(1, 6), (300, 6), (300, 9), (3000, 14)])
def test_shares_are_those_of_counted_sets(count, log2_size):
    grid = make_hash_grid(5, 3, 800, log2_size, 2)
    positions = uniform((count, 3), count, -0.1, 1.1)
    expected = [counted_share(positions, lv.resolution, lv.size, lv.is_dense) for lv in grid.levels]
    assert collision_shares(positions, grid).tolist() == pytest.approx(expected)


def test_more_points_than_entries_crowd_the_table():
    grid = make_hash_grid(1, 64, 64, 4, 1)
    shares = collision_shares(uniform((4000, 3), 1), grid)
    assert 0.0 < float(shares[0]) <= 16.0 / 3000.0


def make_batch(count: int = 40):
    rays = make_rays(count, near=0.05, far=10.0)
    tdist = s_to_t(torch.linspace(0.0, 1.0, 13).repeat(count, 1), rays.near, rays.far)
    return ZipNerfDensityField(make_encoding(log2_hashmap_size=6)), rays, tdist


@pytest.fixture
def said(monkeypatch) -> list:
    lines = []
    monkeypatch.setattr(monitor_module.CONSOLE, "log", lambda text, **_: lines.append(text))
    return lines


def test_it_looks_only_at_its_steps(said):
    field, *batch = make_batch()
    monitor = CollisionMonitor(10)
    looked = []
    for step in range(31):
        monitor.step, monitor.shares = step, {}
        monitor.observe(field, *batch, TINY_GRID)
        looked += [step] if monitor.shares else []
    assert looked == [10, 20, 30]
    assert list(monitor.shares) == [f"collision_free/level_{level}" for level in range(4)]


def test_an_interval_of_zero_never_looks(said):
    field, *batch = make_batch()
    monitor = CollisionMonitor(0)
    for monitor.step in (0, 1, 5000):
        monitor.observe(field, *batch, TINY_GRID)
    assert monitor.shares == {} and said == []


def test_it_reports_the_shares_of_the_cones_means(said):
    field, *batch = make_batch()
    monitor = CollisionMonitor(1)
    monitor.step = 1
    monitor.observe(field, *batch, TINY_GRID)
    rays, tdist = batch
    starts, ends = tdist[:, :-1, None], tdist[:, 1:, None]
    half, middle = 0.5 * (ends - starts), 0.5 * (ends + starts)
    distance = middle + 2.0 * middle * half**2 / (3.0 * middle**2 + half**2)
    mean = rays.origins[:, None] + distance * rays.directions[:, None]
    radius = mean.norm(dim=-1, keepdim=True).clamp_min(1.0)
    positions = ((2.0 - 1.0 / radius) * mean / radius + 2.0) / 4.0
    for index, level in enumerate(field.encoding.grid.levels):
        expected = counted_share(positions.reshape(-1, 3), level.resolution, level.size, level.is_dense)
        # A point that rounding moves over a cell's face may change the count by one.
        assert float(monitor.shares[f"collision_free/level_{index}"]) == pytest.approx(expected, abs=3e-3)


def test_it_warns_once_and_names_the_setting_and_the_level(said):
    field, *batch = make_batch()
    monitor = CollisionMonitor(1)
    for monitor.step in (1, 2, 3):
        monitor.observe(field, *batch, TINY_GRID)
    worst = min(monitor.shares, key=lambda key: float(monitor.shares[key]))
    assert float(monitor.shares[worst]) < 0.5
    assert len(said) == 1
    assert f"level {worst.rsplit('_', 1)[1]} " in said[0]
    assert "--pipeline.model.grid.log2-hashmap-size" in said[0] and "now 9" in said[0]


def test_an_uncrowded_table_brings_no_warning(said):
    field, *batch = make_batch()
    field.encoding = make_encoding(log2_hashmap_size=15)
    monitor = CollisionMonitor(1)
    monitor.step = 1
    monitor.observe(field, *batch, TINY_GRID)
    assert min(monitor.shares.values()) > 0.5 and said == []


def test_it_draws_no_random_numbers_and_keeps_no_graph(said):
    field, *batch = make_batch()
    monitor = CollisionMonitor(1)
    monitor.step = 1
    torch.manual_seed(3)
    state = torch.get_rng_state()
    monitor.observe(field.train(), *batch, TINY_GRID)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(share.requires_grad for share in monitor.shares.values())


def test_sizes_are_those_of_the_features_that_are_read():
    """A table whose level l holds l + 1 everywhere has features of ten times that."""
    tables = {name: AntiAliasedHashEncoding(TINY_GRID) for name in ("proposals.0.grid", "grid")}
    first = feature_sizes(tables)
    assert list(first) == [f"{name}/level_{level}" for name in tables for level in range(4)]
    # Uniform in +-1e-4: their root mean square is that over the root of 3.
    assert all(size == pytest.approx(1e-4 / math.sqrt(3.0), rel=0.1) for size in first.values())
    encoding = tables["grid"]
    with torch.no_grad():
        for index, level in enumerate(encoding.grid.levels):
            encoding.hash_table[level.offset : level.offset + level.size] = (-1.0) ** index * (index + 1.0)
    second = feature_sizes(tables)
    assert [second[f"grid/level_{level}"] for level in range(4)] == pytest.approx([10.0, 20.0, 30.0, 40.0])
    assert second["proposals.0.grid/level_0"] == first["proposals.0.grid/level_0"]
