"""How intervals of pictures are looked up, against the twin: several rays a program.

Without a GPU, one test runs the others under Triton's interpreter; see ``test_cone_encode.py``.
"""

from __future__ import annotations

import pytest
import torch
from _cone_twins import PLAIN, assert_equals_twin, make_lookup, moved, random_cones
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _twins import BLOCK, DEVICE, even_grid, random_table

from zipnerf_ns.kernels.encode import cone_encode as kernels
from zipnerf_ns.kernels.encode import launch as launching
from zipnerf_ns.kernels.encode.tuning import Launch, Plan, Tuning


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("rays,n,features,boxed,launch", [
    (5, BLOCK // 4, 4, False, Launch("interval", block=BLOCK, num_warps=1, rays=4)),
    (3, BLOCK, 8, True, Launch("interval", False, 2, 2 * BLOCK, 2, rays=4)),
    (4, BLOCK, 1, False, Launch("none", True, 3, BLOCK, 1, rays=2)),
    (4, 7, 4, False, Launch("interval", levels_per_program=2, block=BLOCK, num_warps=1, rays=4)),
])  # fmt: skip
def test_neighboring_rays_share_programs(rays, n, features, boxed, launch):
    plain = PLAIN.forward
    tuning = Tuning(plain, plain, pictures=Plan(launch, launch))
    assert_equals_twin(random_cones(rays, n, False, boxed), make_lookup(even_grid(features), close=0.1), tuning)


@runs_kernels
def test_only_what_is_not_turned_is_looked_up_as_pictures_are(monkeypatch):
    plans, original = [], launching._parts

    def noted(plan, *rest):
        plans.append(plan)
        return original(plan, *rest)

    monkeypatch.setattr(launching, "_parts", noted)
    own = Plan(*[Launch("interval", block=BLOCK, num_warps=1)] * 2)
    tuning = Tuning(PLAIN.forward, PLAIN.forward, pictures=own)
    lookup, table = make_lookup(even_grid(4)), random_table(even_grid(4)).to(DEVICE)
    for turned in (True, False):
        cones = moved(random_cones(turned=turned), DEVICE, torch.float32)
        looks = torch.ones(3, device=DEVICE), moved(lookup, DEVICE, torch.float32), None
        kernels.tuned_cone_encode(table, cones, *looks, tuning)
    assert plans == [PLAIN.forward, own]
