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
from typing import Any

import pytest

from zipnerf_ns.tools import check_gpu, rehearsal
from zipnerf_ns.tools.check_gpu import Row, format_table, format_verdict

KERNELS = Path(check_gpu.__file__).parents[1] / "kernels"
NETWORKS = {gpu: ("radiance", "density") for gpu in ("8.6", "9.0", "12.0")} | {"7.5": ("density",)}
"""GPUs with different shared memory, and the networks that have kernels there: Turing's tensor cores take no bfloat16,
without which the color network runs in torch."""

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch brought no Triton")


def is_kernel(node: ast.AST) -> bool:
    """Whether a function is compiled by Triton, and launched instead of called by other kernels."""
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
        return False
    return any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list) and "_kernel" in node.name


FIND = """
import functools, json, re, sys, torch
from zipnerf_ns.kernels.check.compiler import compile_launch
from zipnerf_ns.kernels.check.launches import recorded
from zipnerf_ns.tools.rehearsal import AS_CONFIGURED, rehearse

@functools.cache
def record(gpu, variation=AS_CONFIGURED, method="zipnerf"):
    with recorded(gpu) as launches:
        rehearse(method, variation)
    return {str(launch): launch for launch in launches}

def take(gpu):
    networks = {name: launch for name, launch in record(gpu).items() if name.startswith(("radiance_", "density_"))}
    return {name: compile_launch(gpu, launch)._asdict() for name, launch in networks.items()}

def fused(gpu="9.0"):
    found = {}
    for name, launch in record(gpu).items():
        if launch.kernel in ("march_kernel", "group_kernel", "distances_kernel"):
            compile_launch(gpu, launch)
            code = launch.function.preload(launch.specialization).asm["ptx"]
            shuffled = set(re.findall(r"shfl[.]sync[.]bfly[.]b32\\s+(%r\\d+)", code))
            sums = [line.split(",")[-1].strip(" ;") for line in code.splitlines() if "fma.rn.f32" in line]
            found[name] = [len(shuffled), len(shuffled & set(sums))]
    return found

def note():
    from zipnerf_ns.kernels.mlp.launch import encode_directions
    with recorded("9.0") as launches:
        made = [encode_directions(torch.ones(rays, 3, device="cuda"), dtype)
                for dtype in (torch.float32, torch.bfloat16) for rays in (16, 33)]
        within = {str(tensor.device) for tensor in made}
    return [len(launches), sorted(within), str(made[0].device), sum(float(tensor.sum()) for tensor in made)]

found = {"half": list(record("9.0")), "single": list(record("9.0", "precision float32")), "older": list(record("8.6")),
         "moving": list(record("9.0", method="zipnerf-dynamic")),
         "noted": note(), "fused": fused(), "taken": {gpu: take(gpu) for gpu in sys.argv[1:]}}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a Python of its own records and compiles: it leaves traces, and interpreted kernels cannot be compiled."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-c", FIND, *NETWORKS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@needs_triton
def test_launches_are_noted_once_a_code_and_not_made(found: dict[str, Any]) -> None:
    """Types make another code, numbers of rays none; tensors seem to lie on a GPU, and what is written stays zero."""
    assert found["noted"] == [2, ["cuda:0"], "cpu", 0.0]


@needs_triton
def test_the_rehearsal_launches_every_kernel_as_the_options_say(found: dict[str, Any]) -> None:
    """All kernels of the source are met; precision changes what is launched, and so does the GPU."""
    there = {node.name for path in KERNELS.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
             if is_kernel(node)}  # fmt: skip
    moving = {"shift_kernel", "join_kernel", "join_backward_kernel"}
    assert len(there) >= 21
    assert {launch.split("(")[0] for launch in found["half"]} == there - moving
    assert {launch.split("(")[0] for launch in found["moving"]} == there
    for precision, dtype in (("half", "bf16"), ("single", "fp32")):
        networks = [launch for launch in found[precision] if launch.startswith("radiance_")]
        assert networks and all(f"DTYPE={dtype}" in launch for launch in networks)
    # Windows of four entries are added at once from compute capability 9.0 on.
    for gpu, is_wide in (("half", True), ("older", False)):
        assert is_wide == any(launch.startswith("backward_") and "WIDE=True" in launch for launch in found[gpu])


@needs_triton
def test_threads_that_hold_the_same_sum_hold_the_same_bits(found: dict[str, Any]) -> None:
    """All of them write it to one place: a product that is fused into the sum is not what the other threads see."""
    assert {launch.split("(")[0] for launch in found["fused"]} == {"march_kernel", "group_kernel", "distances_kernel"}
    shuffled, fused = zip(*found["fused"].values(), strict=True)
    assert any(shuffled) and not any(fused)


@needs_triton
@pytest.mark.parametrize("gpu", NETWORKS)
def test_the_networks_fit(found: dict[str, Any], gpu: str) -> None:
    """The kernels that use most shared memory compile, at the paper's width, within what the GPU has."""
    taken = found["taken"][gpu]
    names = {f"{network}_{direction}_kernel" for network in NETWORKS[gpu] for direction in ("forward", "backward")}
    assert {launch.split("(")[0] for launch in taken} == names
    assert {launch: kernel["error"] for launch, kernel in taken.items() if kernel["error"]} == {}
    for kernel in taken.values():
        assert 0 < kernel["shared"] <= kernel["limit"] and 16 <= kernel["registers"] <= 255


@needs_triton
def test_the_command_ends_with_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """Every kernel has a row for NVIDIA's GPU and for AMD's, with its registers."""
    options = ["--capability", "12.0", "gfx1100", "--method", "zipnerf-lite", "--kernel", "mean_*", "adam*"]
    assert check_gpu.main([*options, "--jobs", "1"]) == 0
    *rows, blank, verdict = capsys.readouterr().out.splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in rows]
    kernels = ("adam_kernel", "mean_square_kernel")
    assert {(gpu, kernel) for gpu, kernel, *_ in cells} == {(gpu, name) for gpu in options[1:3] for name in kernels}
    assert all(int(registers) >= 16 for *_, registers, _, _ in cells)
    assert blank == "" and re.fullmatch(r"All \d+ kernels would run\.", verdict)


@needs_triton
def test_an_unknown_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line that names those which are known."""
    assert check_gpu.main(["--capability", "8.6", "3.5"]) == 1
    assert re.search(r"^Error: .*3\.5.*8\.6.*gfx942", capsys.readouterr().err)


def test_what_fails_is_said_and_decides() -> None:
    """A kernel that is over the limit or does not compile is named, and the verdict counts it."""
    good = Row("9.0", "march_kernel", 3, 512, 232_448, 40, 0, 1.5, ())
    bad = Row("8.6", "march_kernel", 2, 150_000, 101_376, 255, 12, 2.5, ("march_kernel(N=64) on 8.6: too much",))
    assert format_verdict([good]) == "All 3 kernels would run."
    assert format_verdict([good, bad]).splitlines() == [*bad.errors, "FAILED: 1 of 5 kernels would not run."]
    *_, first, second = format_table([good, bad]).splitlines()
    assert first == "| 9.0 | march_kernel | 3 | 512 | 232,448 | 40 | 0 | 1.5 s |"
    assert second == "| 8.6 | march_kernel | 2 | 150,000 FAILS | 101,376 | 255 | 12 | 2.5 s |"


def test_methods_with_the_same_model_are_rehearsed_once() -> None:
    """Others each, and of all methods every option that another does not have."""
    plans = check_gpu.rehearsals(["zipnerf", "zipnerf-big", "zipnerf-lite"], every_option=True)
    assert {method for method, variation in plans if variation == "precision float32"} == {"zipnerf", "zipnerf-lite"}
    assert check_gpu.rehearsals(["zipnerf-lite"], every_option=False) == [("zipnerf-lite", rehearsal.AS_CONFIGURED)]


def test_every_variation_changes_its_method() -> None:
    """Options that a method has already are left out, and every precision and prefilter is tried."""
    for method, config in rehearsal.METHODS.items():
        names = set(rehearsal.variations(config.pipeline.model))
        assert rehearsal.AS_CONFIGURED in names and len(names) >= 14, method
    names = set(rehearsal.variations(rehearsal.METHODS["zipnerf"].pipeline.model))
    assert {"precision float32", "prefilter ipe", "cameras SE3", "8 features a level", "scene box"} <= names
    assert not {"precision bfloat16", "prefilter multisample", "3 color layers"} & names
