"""Kernels compiled before they are launched: for a GPU that need not be there, in a process that interprets none."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import torch, triton
from concurrent.futures import wait
from zipnerf_ns.kernels import ahead
from zipnerf_ns.kernels.check.compiler import stand_in
from zipnerf_ns.kernels.device import pretending
from zipnerf_ns.kernels.march.ray_march import distortion
from zipnerf_ns.kernels.mlp.networks import encode_directions

def rehearse(rays=8):
    weights = torch.full((rays, 4), 0.25, requires_grad=True)
    distortion(torch.arange(5.0).expand(rays, 5), weights).sum().backward()
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        assert encode_directions(torch.ones(rays, 3), dtype).abs().max() == 0.0

with pretending(stand_in("9.0")):
    for rays in (8, 8, 4096):
        pending = ahead.prepare(lambda: rehearse(rays), torch.device("cpu"))
        assert not wait(pending).not_done
        print(*sorted(str(each.exception()) for each in pending))
    with ahead.noted() as launches:
        encode_directions(torch.ones(3, 3), torch.float16)
        print(*(launch.kernel for launch in launches))
assert triton.runtime.jit.JITFunction.run.__name__ == "run" and triton.knobs.runtime.jit_cache_hook is None
"""


def test_what_was_rehearsed_is_loaded_when_it_is_launched(tmp_path):
    """Three kernels are compiled, at once and once; later launches, also of other sizes, find them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["None None None", "", "", "directions_kernel"]
    assert len(list(tmp_path.glob("*/*.cubin"))) == 3
