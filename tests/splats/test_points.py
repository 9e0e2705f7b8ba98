"""First Gaussians at points of surfaces."""

from __future__ import annotations

import torch

from zipnerf_ns.splats.distill.points import SPREAD, THINNEST, gaussians_at


def test_gaussians_lie_in_their_neighbors_plane():
    """On a tilted plane: as thin as they may be along its normal, and round in it; on a grid as large as its step."""
    rows, columns = torch.meshgrid(0.1 * torch.arange(20.0), 0.1 * torch.arange(20.0), indexing="ij")
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    points = torch.stack([rows, columns, torch.zeros_like(rows)], dim=-1).view(-1, 3) @ turn.T
    found = gaussians_at(points, torch.rand(len(points), 3), 1)
    w, x, y, z = found.quats.unbind(-1)
    shortest = torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], dim=-1)
    assert float((shortest @ turn[:, 2]).abs().min()) > 0.999
    sizes = found.scales.exp()
    torch.testing.assert_close(sizes[:, 1], sizes[:, 2])
    torch.testing.assert_close(sizes[:, 0], THINNEST * sizes[:, 1])
    # Corners have their third neighbor at the diagonal.
    assert float(sizes[:, 1].min()) > 0.99 * SPREAD * 0.1 and float(sizes[:, 1].max()) < 1.15 * SPREAD * 0.1


def test_what_fills_space_is_round():
    """A cloud of points in all directions has no plane; points at one place have a size, too."""
    cloud = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1))
    thickness = gaussians_at(cloud, cloud, 0).scales
    assert float((thickness[:, 0] - thickness[:, 1]).exp().median()) > 0.4
    assert bool(gaussians_at(torch.zeros(5, 3), torch.zeros(5, 3), 0).finite().all())
