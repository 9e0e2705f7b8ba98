"""Whether the kernels would run on GPUs that are not here, and whether the check sees them all."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zipnerf_ns.tools import check_gpu, rehearsal
from zipnerf_ns.tools.check_gpu import Row, format_table, format_verdict

KERNELS = Path(check_gpu.__file__).parents[1] / "kernels"
FITTING = ("9.0",)
"""GPUs for which the networks' kernels are tuned; 7.5, 8.6 and 12.0 belong here as soon as they fit."""

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch brought no Triton")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own: what is recorded or compiled leaves traces, and interpreted kernels cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *command], env=environment, capture_output=True, text=True, timeout=600
    )


def is_kernel(node: ast.AST) -> bool:
    """Whether a function is compiled by Triton, and launched instead of called by other kernels."""
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
        return False
    return any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list) and "_kernel" in node.name


RECORD = """
import json, torch
from zipnerf_ns.kernels.check.launches import recorded
from zipnerf_ns.kernels.check.targets import device_of
from zipnerf_ns.tools.rehearsal import AS_CONFIGURED, rehearse
found = {}
for gpu, variation in (("9.0", AS_CONFIGURED), ("9.0", "precision float32"), ("8.6", AS_CONFIGURED)):
    with recorded(device_of(gpu)) as launches:
        rehearse("zipnerf", variation)
    found[f"{gpu}, {variation}"] = [str(launch) for launch in launches]
print(json.dumps(found))
"""
NOTE = """
import json, torch
from zipnerf_ns.kernels.check.launches import recorded
from zipnerf_ns.kernels.check.targets import device_of
from zipnerf_ns.kernels.mlp.launch import spherical_harmonics
with recorded(device_of("9.0")) as launches:
    made = [spherical_harmonics(torch.ones(rays, 3, device="cuda"), dtype)
            for dtype in (torch.float32, torch.bfloat16) for rays in (16, 33)]
    within = {str(tensor.device) for tensor in made}
print(json.dumps([len(launches), sorted(within), str(made[0].device), sum(float(tensor.sum()) for tensor in made)]))
"""


@needs_triton
def test_launches_are_noted_once_a_code_and_not_made() -> None:
    """Types make another code, numbers of rays none; tensors seem to lie on a GPU, and what is written stays zero."""
    result = run("-c", NOTE)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == [2, ["cuda:0"], "cpu", 0.0]


@needs_triton
def test_the_rehearsal_launches_every_kernel_as_the_options_say() -> None:
    """All kernels of the source are met; precision changes what is launched, and so does the GPU."""
    result = run("-c", RECORD)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    half, single, other = found.values()
    there = {node.name for path in KERNELS.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
             if is_kernel(node)}  # fmt: skip
    assert len(there) >= 19
    assert {launch.split("(")[0] for launch in half} == there
    training = [re.search(r"DTYPE=(\w+)", launch).group(1) for launch in half if "radiance" in launch]
    assert set(training) == {"bf16"}
    assert all("DTYPE=fp32" in launch for launch in single if "radiance" in launch)
    # Windows of four entries are added at once from compute capability 9.0 on.
    assert any("WIDE=True" in launch for launch in half if launch.startswith("backward_kernel"))
    assert not any("WIDE=True" in launch for launch in other if launch.startswith("backward_kernel"))


@needs_triton
def test_the_networks_fit() -> None:
    """The kernels that use most shared memory compile, at the paper's width, within what each GPU has."""
    kernels = ("--kernel", "radiance_", "density_backward")
    result = run("-m", check_gpu.__name__, "--capability", *FITTING, "--method", "zipnerf", *kernels, "--jobs", "1")
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    *_, verdict = result.stdout.splitlines()
    assert re.fullmatch(r"All \d+ kernels would run\.", verdict)
    lines = [line for line in result.stdout.splitlines() if "_kernel |" in line]
    rows = [line.strip("| ").replace(",", "").split(" | ") for line in lines]
    names = ("radiance_forward_kernel", "radiance_backward_kernel", "density_backward_kernel")
    assert {(gpu, kernel) for gpu, kernel, *_ in rows} == {(gpu, kernel) for gpu in FITTING for kernel in names}
    for _, _, _, shared, limit, registers, *_ in rows:
        assert 0 < int(shared) <= int(limit) and 16 <= int(registers) <= 255


@needs_triton
def test_an_unknown_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line that names those which are known."""
    assert check_gpu.main(["--capability", "8.6", "3.5"]) == 1
    assert re.search(r"^error: .*3\.5.*8\.6.*gfx942", capsys.readouterr().err)


def test_what_fails_is_said_and_decides() -> None:
    """A kernel that is over the limit or does not compile is named, and the verdict counts it."""
    good = Row("9.0", "march_kernel", 3, 512, 232_448, 40, 0, 1.5, ())
    bad = Row("8.6", "march_kernel", 2, 150_000, 101_376, 255, 12, 2.5, ("march_kernel(N=64) on 8.6: too much",))
    assert format_verdict([good]) == "All 3 kernels would run."
    assert format_verdict([good, bad]).splitlines() == [*bad.errors, "FAILED: 1 of 5 kernels would not run."]
    *_, first, second = format_table([good, bad]).splitlines()
    assert first == "| 9.0 | march_kernel | 3 | 512 | 232,448 | 40 | 0 | 1.5 s |"
    assert second == "| 8.6 | march_kernel | 2 | 150,000 OVER | 101,376 | 255 | 12 | 2.5 s |"


def test_every_variation_changes_its_method() -> None:
    """Options that a method has already are left out, and every precision and prefilter is tried."""
    for method, config in rehearsal.METHODS.items():
        names = set(rehearsal.variations(config.pipeline.model))
        assert rehearsal.AS_CONFIGURED in names and len(names) >= 14, method
    names = set(rehearsal.variations(rehearsal.METHODS["zipnerf"].pipeline.model))
    assert {"precision float32", "prefilter ipe", "cameras SE3", "8 features a level", "scene box"} <= names
    assert not {"precision bfloat16", "prefilter multisample", "3 color layers"} & names
