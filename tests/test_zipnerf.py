"""Zip-NeRF by itself: what README's example does, cameras and rays without Nerfstudio, and what it imports."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nerfstudio.cameras.cameras import Cameras

from zipnerf_ns import HashGridConfig, ProposalConfig, Rays, ZipNerf, ZipNerfConfig
from zipnerf_ns.cameras.rays import rays_of_bundle
from zipnerf_ns.encoding.moving import MotionConfig, MovingGridConfig
from zipnerf_ns.functional.frustum import pinhole_cones

ROOT = Path(__file__).resolve().parents[1]
SMALL = ZipNerfConfig(
    grid=HashGridConfig(5, 2, 8, 64, 10), proposals=(ProposalConfig(8, HashGridConfig(3, 1, 8, 32, 10), 8),) * 2,
    num_samples=6, hidden_dim=8, bottleneck_dim=8, color_layers=2, color_dim=8, implementation="torch",
)  # fmt: skip
MOVING = MovingGridConfig(3, 1, 8, 32, 10, 2, 4)


def some_rays(count: int = 20) -> Rays:
    """Rays from near the origin in all directions."""
    directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    return Rays.between(0.1, 100.0, 0.1 * torch.randn(count, 3), directions, torch.full((count, 1), 0.01))


def test_pinhole_cones_are_nerfstudios():
    """Origins, directions and radii are those of Nerfstudio's cameras."""
    pose = torch.linalg.qr(torch.randn(3, 3))[0] * torch.tensor([1.0, 1.0, 1.0])
    poses = torch.cat([pose, torch.tensor([[1.0], [2.0], [3.0]])], dim=1)[None]
    camera = Cameras(poses, 30.0, 40.0, 9.0, 7.0, 20, 15)
    rows, columns = (torch.randint(size, (50,)) for size in (15, 20))
    bundle = camera.generate_rays(torch.zeros(50, 1, dtype=torch.int64), torch.stack([rows, columns], dim=-1) + 0.5)
    expected = rays_of_bundle(bundle, 0.1, 10.0)
    pixels = torch.stack([columns, rows], dim=-1) + 0.5
    cones = pinhole_cones(poses.expand(50, 3, 4), pixels, torch.tensor([30.0, 40.0]), torch.tensor([9.0, 7.0]))
    for found, wanted in zip(Rays.between(0.1, 10.0, *cones), expected, strict=True):
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_step_trains_every_parameter():
    """The losses' gradient reaches tables and networks of every round; at evaluation a rendering is repeatable."""
    model = ZipNerf(SMALL)
    rendering = model(some_rays())
    found = model.losses(rendering, rendering.rgb, torch.rand(20, 3))
    assert set(found) == {"rgb_loss", "interlevel_loss", "distortion_loss", "hash_decay"}
    sum(found.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    tables, networks = model.parameter_groups()
    named = dict(model.named_parameters())
    assert set(map(id, tables)) == {id(named[name]) for name in named if name.endswith("hash_table")}
    assert sorted(map(id, [*tables, *networks])) == sorted(map(id, model.parameters()))
    rays = some_rays()
    first, second = (model.eval()(rays) for _ in range(2))
    assert torch.equal(first.rgb, second.rgb)
    assert set(model.distances(first.rounds)) == {"depth", "expected_depth", "prop_depth_0", "prop_depth_1"}
    lengths = model.normals(rays, first.rounds[-1]).norm(dim=-1)
    assert bool((lengths <= 1.0 + 1e-5).all())


def test_every_loss_has_its_weight():
    """The weight of each multiplies it alone, and without one it is not computed; the color loss is their unit."""
    weights = {field.name for field in dataclasses.fields(ZipNerfConfig) if field.name.endswith("_mult")}
    moving = dataclasses.replace(SMALL.proposals[0], moving_grid=MOVING)
    motion = MotionConfig("both", MOVING, MOVING, hidden_dim=8)

    def losses(**changed: float) -> dict[str, float]:
        torch.manual_seed(0)
        config = dataclasses.replace(
            SMALL, proposals=(moving,) * 2, motion=motion, proposal_catchup=False,
            **{name: changed.get(name, 1.0) for name in weights},
        )  # fmt: skip
        model = ZipNerf(config, num_images=4)
        with torch.no_grad():
            model.appearance.log_gains.normal_()
        times, images = torch.rand(20, 1), torch.randint(4, (20, 1))
        rendering = model(some_rays()._replace(times=times, camera_indices=images))
        found = model.losses(rendering, rendering.rgb, torch.rand(20, 3))
        return {name.removesuffix("_loss"): float(loss) for name, loss in found.items()}

    whole = losses()
    assert whole.keys() == {"rgb", *(name.removesuffix("_mult").removesuffix("_loss") for name in weights)}
    assert all(value != 0.0 for value in whole.values())
    for name in weights:
        stem = name.removesuffix("_mult").removesuffix("_loss")
        assert losses(**{name: 0.0}).keys() == whole.keys() - {stem}
        assert losses(**{name: 2.0}) == pytest.approx(whole | {stem: 2.0 * whole[stem]})


def test_the_hash_decay_has_a_gradient_where_no_optimizer_applies_it():
    """Any optimizer then decays the tables; one that has been given them does so by itself."""
    model = ZipNerf(SMALL)

    def hash_decay() -> torch.Tensor:
        rendering = model(some_rays())
        return model.losses(rendering, rendering.rgb, torch.rand(20, 3))["hash_decay"]

    value = hash_decay()
    value.backward()
    for table in model.tables():
        found = table.hash_table.grad
        for level, coefficient in zip(table.grid.levels, table.decay, strict=True):
            rows = slice(level.offset, level.offset + level.size)
            torch.testing.assert_close(found[rows], coefficient * table.hash_table.detach()[rows])
        table.is_decayed = True
    torch.testing.assert_close(hash_decay(), value.detach())
    assert not hash_decay().requires_grad


def test_levels_come_on_with_progress():
    model = ZipNerf(ZipNerfConfig(grid=HashGridConfig(8, 1, 8, 64, 10), proposals=SMALL.proposals,
                                  progressive_levels=True, implementation="torch"))  # fmt: skip
    levels = []
    for progress in (0.0, 0.5, 0.75, 1.0):
        model.set_progress(progress)
        levels.append(model.num_active_levels())
    assert levels == [4, 4, 6, 8] and model.eval().num_active_levels() is None


def test_it_imports_no_nerfstudio():
    """A researcher's notebook need not have it, and does not wait for it."""
    command = "import sys, zipnerf_ns.zipnerf; print([m for m in sys.modules if m.split('.')[0] == 'nerfstudio'])"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_an_unknown_public_name_is_an_attribute_error():
    import zipnerf_ns

    with pytest.raises(AttributeError, match="Nothing"):
        _ = zipnerf_ns.Nothing


def test_readmes_example_trains(tiny_scene: Path, tmp_path: Path):
    """The example as it stands, with fewer and smaller steps, in its own process beside the built-in scene."""
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
                  if "ZipNerf(" in block]  # fmt: skip
    assert "range(2000)" in example and "ZipNerfConfig())" in example
    (tmp_path / "scene").symlink_to(tiny_scene)
    program = example.replace("range(2000)", "range(40)") + "\nprint(json.dumps(history))\n"
    small = "ZipNerfConfig(zipnerf_ns.HashGridConfig(6, 4, 16, 256, 14)))"
    program = program.replace("ZipNerfConfig())", small).replace("(1024,)", "(128,)")
    program = "import torch, zipnerf_ns\ntorch.manual_seed(0)\n" + program
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True,
                            cwd=tmp_path, env={**__import__("os").environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert result.returncode == 0, result.stderr
    history = json.loads(result.stdout.splitlines()[-1])
    # Each step has rays of its own.
    assert len(history) == 40 and sum(history[20:]) < sum(history[:20])
