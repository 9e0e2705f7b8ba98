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


def said(tool: str, *blocks: str, errors: int) -> str:
    """What a tool prints around what the program prints."""
    lines = "========= COMPUTE-SANITIZER", "a word of the program's", *blocks, SUMMARY[tool].format(errors), ""
    return "\n".join(lines)


SEEN = "launched: 1 of 2 march_kernel\n", "launched: 2 of 2 march_kernel\n"
PLANTS = {tool: said(tool, block, errors=1) for tool, block in PLANTED_SAID.items()}


def test_errors_are_read_with_their_kernels_and_places():
    found = read("memcheck", PLANTS["memcheck"], said("memcheck", *SEEN, OVERRUN, OVERRUN, errors=2))
    where = "march_kernel: Invalid __global__ read of size 4 bytes, ray_kernels.py:91"
    assert found.errors == {where: 2, f"{PLANTED}: Invalid __global__ read of size 4 bytes": 1}
    assert found.ended and found.of("march_kernel") == 2 and found.of("draw_kernel") == 0
    assert found.launched == {"march_kernel": 2}
    race = read("racecheck", PLANTS["racecheck"], "")
    assert race.errors == {f"{PLANTED}: Error: Race reported between Write access": 1} and not race.ended


def test_a_tool_that_refuses_the_device_has_no_errors_and_no_end():
    found = read("memcheck", "", "========= COMPUTE-SANITIZER\n========= Error: Device not supported.\n=========\n")
    assert found.errors == {} and not found.ended and found.last == "Error: Device not supported."


def run_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, plants: dict[str, str],
    outputs: dict[str, str], *options: str,
) -> tuple[int, list[str], list[str]]:  # fmt: skip
    """Status, lines and progress of the command, with a sanitizer that says ``plants`` of the kernel with faults and
    ``outputs`` of two launches of another one; it then waits where the output says so."""
    for kind, texts in (("plant", plants), ("launch", outputs)):
        for tool, output in texts.items():
            (folder / f"{tool}.{kind}").write_text(output)
    sanitizer = folder / "compute-sanitizer"
    # The second argument is the tool's name.
    sanitizer.write_text(
        '#!/bin/sh\ntest "$PYTORCH_NO_CUDA_MEMORY_CACHING" = 1 || exit 1\n'
        f'case "$*" in *--plant*) kind=plant;; *) kind=launch;; esac\ncat {folder}/"$2".$kind\n'
        f'grep -q WAITS {folder}/"$2".$kind && exec sleep 100\n'
    )
    python = folder / "python"
    # The last argument is where launches are written.
    python.write_text(f'#!/bin/sh\nfor last; do :; done; touch "$last"; printf "{"".join(SEEN)}"\n')
    for program in (sanitizer, python):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    status = sanitize.main(["--logs", str(folder / "logs"), *options])
    printed = capsys.readouterr()
    return status, printed.out.splitlines(), printed.err.splitlines()


def test_the_planted_fault_alone_is_a_clean_report(monkeypatch, capsys, tmp_path):
    outputs = {tool: said(tool, *SEEN, errors=0) for tool in PLANTS}
    status, lines, progress = run_all(monkeypatch, capsys, tmp_path, PLANTS, outputs)
    assert status == 0 and lines[-1] == "No error in any kernel."
    assert lines[0] == "| launches, errors | memcheck | racecheck | initcheck |"
    assert lines[2] == "| planted_fault | found | found | found |"
    assert lines[3] == "| march_kernel | 2 of 2, 0 | 2 of 2, 0 | 2 of 2, 0 |"
    assert (tmp_path / "logs" / "initcheck.txt").read_text() == PLANTS["initcheck"] + outputs["initcheck"]
    assert [line.split(" s, ")[1] for line in progress if "memcheck" in line] == [
        "memcheck, 1 of 2 march_kernel: 0 errors until then", "memcheck, 2 of 2 march_kernel: 0 errors until then",
    ]  # fmt: skip


def test_an_error_in_a_kernel_fails_and_so_does_a_tool_that_sees_nothing(monkeypatch, capsys, tmp_path):
    refused = "========= Error: Device not supported.\n"
    outputs = {
        "memcheck": said("memcheck", OVERRUN, *SEEN, errors=1),
        "racecheck": said("racecheck", *SEEN, errors=0),
        "initcheck": refused,
    }
    plants = {**PLANTS, "racecheck": said("racecheck", errors=0), "initcheck": refused}
    status, lines, progress = run_all(monkeypatch, capsys, tmp_path, plants, outputs)
    assert status == 1 and lines[-1] == "FAILED: see above."
    assert lines[2:4] == [
        "| planted_fault | found | NOT FOUND | NOT FOUND |", "| march_kernel | 2 of 2, 1 | 2 of 2, 0 | 0 of 2, 0 |"
    ]  # fmt: skip
    text = "\n".join(lines)
    assert "memcheck: march_kernel: Invalid __global__ read of size 4 bytes, ray_kernels.py:91 (1 times)" in text
    assert "racecheck is no witness" in text and "initcheck is no witness: Error: Device not supported." in text
    assert any(line.endswith("memcheck, 2 of 2 march_kernel: 1 errors until then") for line in progress)


def test_a_run_that_is_cut_off_tells_what_was_seen(monkeypatch, capsys, tmp_path):
    """And ends what it has begun."""
    outputs = {"memcheck": f"{SEEN[0]}WAITS\n"}
    options = "--tool", "memcheck", "--seconds", "3"
    status, lines, _ = run_all(monkeypatch, capsys, tmp_path, PLANTS, outputs, *options)
    assert status == 1 and lines[2:4] == ["| planted_fault | found |", "| march_kernel | 1 of 2, 0 |"]
    assert "memcheck did not end; its last words: WAITS" in lines


def test_without_a_gpu_or_a_sanitizer_a_line_says_what_lacks(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sanitize.main([]) == 1 and "NVIDIA's GPUs, and torch sees none" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitize.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "CUDA toolkit" in line and "cuda-sanitizer" in line
