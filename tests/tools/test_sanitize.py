"""What is made of compute-sanitizer's words, and what is said where it cannot run; the launches take a GPU."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import torch

from zipnerf_ns.tools import sanitize
from zipnerf_ns.tools.sanitize import PLANTED, read

PLANTED_SAID = {
    "memcheck": f"""\
========= Invalid __global__ read of size 4 bytes
=========     at {PLANTED}+0x90
=========     by thread (63,0,0) in block (0,0,0)
=========     Access to 0x7f5a0a0040fc is out of bounds
=========     and is 16,125 bytes after the nearest allocation at 0x7f5a0a000000 of size 256 bytes
""",
    "racecheck": f"""\
========= Error: Race reported between Write access at {PLANTED}+0xa0
=========     and Read access at {PLANTED}+0xc0 [256 hazards]
=========
""",
    "initcheck": 2 * f"""\
========= Uninitialized __global__ memory read of size 4 bytes
=========     at {PLANTED}+0x90
=========     by thread (0,0,0) in block (0,0,0)
""",
}
SUMMARY = {
    "memcheck": "========= ERROR SUMMARY: {} errors",
    "racecheck": "========= RACECHECK SUMMARY: {0} hazards displayed ({0} errors, 0 warnings)",
    "initcheck": "========= ERROR SUMMARY: {} errors",
}
OVERRUN = """\
========= Invalid __global__ read of size 4 bytes
=========     at march_kernel+0x1a0 in ray_kernels.py:91
=========     by thread (5,0,0) in block (2,0,0)
=========     Access to 0x7f5a0a002100 is out of bounds
"""
OF_TORCH = """\
========= Uninitialized __global__ memory read of size 16 bytes
=========     at vectorized_elementwise_kernel+0x60
=========     by thread (0,0,0) in block (0,0,0)
"""


def said(tool: str, *blocks: str, errors: int) -> str:
    """What a tool prints around what the program prints."""
    return "\n".join(["========= COMPUTE-SANITIZER", "a word of the program's", *blocks, SUMMARY[tool].format(errors)])


def test_errors_are_read_with_their_kernels_and_places():
    found = read("memcheck", said("memcheck", OVERRUN, OVERRUN, PLANTED_SAID["memcheck"], errors=3))
    where = "march_kernel: Invalid __global__ read of size 4 bytes, ray_kernels.py:91"
    assert found.errors == {where: 2, f"{PLANTED}: Invalid __global__ read of size 4 bytes": 1}
    assert found.total == 3 and found.of(["march_kernel"]) == 2 and found.of(["draw_kernel"]) == 0
    race = read("racecheck", said("racecheck", PLANTED_SAID["racecheck"], errors=1))
    assert race.errors == {f"{PLANTED}: Error: Race reported between Write access": 1} and race.total == 1


def test_a_tool_that_refuses_the_device_has_no_errors_and_no_end():
    found = read("memcheck", "========= COMPUTE-SANITIZER\n========= Error: Device not supported.\n=========\n")
    assert found.errors == {} and found.total is None and found.last == "Error: Device not supported."


def run_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, outputs: dict[str, str]
) -> tuple[int, list[str]]:
    """Status and lines of the command, with a sanitizer that says ``outputs`` and launches that compile two codes."""
    for tool, output in outputs.items():
        (folder / f"{tool}.out").write_text(output)
    sanitizer = folder / "compute-sanitizer"
    # The second argument is the tool's name.
    sanitizer.write_text(f'#!/bin/sh\ntest "$PYTORCH_NO_CUDA_MEMORY_CACHING" = 1 && cat {folder}/"$2".out\n')
    python = folder / "python"
    python.write_text('#!/bin/sh\nmkdir -p "$TRITON_CACHE_DIR/a"; touch "$TRITON_CACHE_DIR/a/march_kernel.cubin"\n')
    for program in (sanitizer, python):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    status = sanitize.main(["--logs", str(folder / "logs")])
    return status, capsys.readouterr().out.splitlines()


def test_the_planted_fault_alone_is_a_clean_report(monkeypatch, capsys, tmp_path):
    """What torch's own kernels do is counted, and is no fault of ours."""
    outputs = {tool: said(tool, PLANTED_SAID[tool], errors=1) for tool in ("memcheck", "racecheck")}
    outputs["initcheck"] = said("initcheck", OF_TORCH, PLANTED_SAID["initcheck"], errors=3)
    status, lines = run_all(monkeypatch, capsys, tmp_path, outputs)
    assert status == 0 and lines[-1] == "No error in any kernel."
    assert lines[2:5] == [
        "| memcheck | 1 | 1 | 0 | 0 | yes |",
        "| racecheck | 1 | 1 | 0 | 0 | yes |",
        "| initcheck | 1 | 1 | 0 | 1 | yes |",
    ]
    assert lines[-2].startswith("initcheck: vectorized_elementwise_kernel: Uninitialized __global__ memory read of")
    assert (tmp_path / "logs" / "initcheck.txt").read_text() == outputs["initcheck"]


def test_an_error_in_a_kernel_fails_and_so_does_a_tool_that_sees_nothing(monkeypatch, capsys, tmp_path):
    outputs = {
        "memcheck": said("memcheck", OVERRUN, PLANTED_SAID["memcheck"], errors=2),
        "racecheck": said("racecheck", errors=0),
        "initcheck": "========= Error: Device not supported.",
    }
    status, lines = run_all(monkeypatch, capsys, tmp_path, outputs)
    assert status == 1 and lines[-1] == "FAILED: see above."
    assert lines[2:5] == [
        "| memcheck | 1 | 1 | 1 | 0 | yes |",
        "| racecheck | 1 | 1 | 0 | 0 | NO |",
        "| initcheck | 1 | 1 | 0 | did not end | NO |",
    ]
    text = "\n".join(lines)
    assert "memcheck: march_kernel: Invalid __global__ read of size 4 bytes, ray_kernels.py:91 (1 times)" in text
    assert "racecheck is no witness" in text and "initcheck is no witness: Error: Device not supported." in text


def test_without_a_gpu_or_a_sanitizer_a_line_says_what_lacks(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sanitize.main([]) == 1 and "NVIDIA's GPUs, and torch sees none" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitize.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "CUDA toolkit" in line and "cuda-sanitizer" in line
