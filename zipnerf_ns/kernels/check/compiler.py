"""A launch compiled for a GPU that is not here."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tempfile
import time
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget

from zipnerf_ns.kernels.ahead import Launch
from zipnerf_ns.kernels.device import Device, find

MAX_TENSOR_MEMORY = 512
"""Columns of tensor memory that a program can have where there is some: on compute capability 10.0."""
HALF_MESSAGE = 300
"""Characters that are quoted of the beginning and of the end of a long error."""


class Compiled(NamedTuple):
    """What a kernel takes."""

    shared: int
    """Bytes of shared memory of a program."""
    limit: int
    """Bytes that there are."""
    registers: int
    """Registers of each thread."""
    spilled: int
    """NVIDIA: bytes of each thread's registers that are written to memory for lack of room; AMD: registers."""
    seconds: float
    error: str | None
    """Why there is no code, or why it cannot run."""


class _Driver:
    """Answers Triton as a GPU's would, as far as compiling asks."""

    def __init__(self, name: str, device: Device) -> None:
        major, minor = device.capability
        # A wavefront of AMD's data center GPUs, which are gfx9, is twice as wide.
        warp = 64 if name.startswith("gfx9") else 32
        self._target = GPUTarget(device.backend, 10 * major + minor if device.backend == "cuda" else name, warp)
        # Triton keeps what it knows of a kernel by this number.
        self._number = 100 * major + minor

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._number

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def stand_in(name: str) -> Device:
    """The GPU of a name, which Triton takes for the process's own from then on.

    Raises:
        ValueError: for a name that is not known.
    """
    device = find(name)
    triton.runtime.driver.set_active(_Driver(name, device))
    return device


def compile_launch(name: str, launch: Launch) -> Compiled:
    """Compiles a kernel for the GPU of a name, with what Triton leaves in its cache or anew."""
    start, limit, log = time.monotonic(), stand_in(name).shared_memory, io.StringIO()
    knobs.nvidia.dump_ptxas_log = True
    try:
        with redirect_stdout(log):
            code = launch.function.preload(launch.specialization)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is the answer
        return failed(name, _short(error), time.monotonic() - start)
    seconds = time.monotonic() - start
    shared, tensor_memory = code.metadata.shared, getattr(code.metadata, "tmem_size", None) or 0
    error = f"{shared:,} bytes of shared memory, of {limit:,}" if shared > limit else None
    if tensor_memory > MAX_TENSOR_MEMORY:
        error = f"{tensor_memory} columns of tensor memory, of {MAX_TENSOR_MEMORY}"
    registers, spilled = _usage(code, log.getvalue())
    return Compiled(shared, limit, registers, spilled, seconds, error)


def failed(name: str, error: str, seconds: float = 0.0) -> Compiled:
    """What is said of a kernel that could not be compiled."""
    return Compiled(0, find(name).shared_memory, 0, 0, seconds, error)


def _short(error: Exception) -> str:
    """What an error says in one line; Triton's quote the source, and end with what is wrong."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 2 * HALF_MESSAGE else f"{text[:HALF_MESSAGE]} … {text[-HALF_MESSAGE:]}"


def _usage(code: Any, log: str) -> tuple[int, int]:
    """Registers and spills, from the assembler's words on NVIDIA's GPUs and from the code's own on AMD's."""
    if "amdgcn" in code.asm:
        assembly = code.asm["amdgcn"]
        return _number(r"\.vgpr_count:\s+(\d+)", assembly), _number(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    if not log.strip():
        # Triton 3.4 keeps the assembler's words to itself.
        log = _assembler_log(code.asm["ptx"])
    return _number(r"Used (\d+) registers", log), _number(r"(\d+) bytes spill stores", log)


def _assembler_log(ptx: str) -> str:
    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE).group(1)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={architecture}", file.name, "-o", os.devnull]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def _number(pattern: str, text: str) -> int:
    return int(re.search(pattern, text).group(1))
