"""Whether the Triton kernels can run on a device: asked before any is imported, also where there is no Triton."""

from __future__ import annotations

import os
from functools import cache

import torch

from zipnerf_ns.errors import LaunchFailed
from zipnerf_ns.kernels.device import describe, is_pretending

MIN_TRITON = (3, 4)
"""The first Triton whose functions may return tuples of tuples; it comes with torch 2.8."""
MIN_CAPABILITY = (7, 0)
"""The oldest CUDA devices that Triton compiles for."""


def why_unavailable(device: torch.device) -> str | None:
    """What the kernels lack to run on ``device``, as a sentence for the user; None if nothing.

    Found out once a device, for asking the driver takes longer than a launch. Triton's interpreter (TRITON_INTERPRET=1
    before the first use) stands in for a CUDA device, slowly.
    """
    return None if is_pretending() else _why_unavailable(device)


@cache
def _why_unavailable(device: torch.device) -> str | None:
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not is_interpreted and (device.type != "cuda" or not torch.cuda.is_available()):
        return f"The Triton kernels need a CUDA device and a torch built for it, not '{device}'."
    triton = _triton_version()
    if triton is None or tuple(int(part) for part in triton.split(".")[:2]) < MIN_TRITON:
        needed = ".".join(str(part) for part in MIN_TRITON)
        return (
            f"The Triton kernels need triton {needed} or later (found: {triton or 'none'}): install torch 2.8 or "
            "later, which brings it on Linux; on Windows also 'pip install triton-windows'."
        )
    found = describe(device)
    if found.backend == "cuda" and found.capability < MIN_CAPABILITY:
        return f"The Triton kernels need compute capability {MIN_CAPABILITY} or later; {found.name} is older."
    return None if is_interpreted else _why_no_launch(device)


def _why_no_launch(device: torch.device) -> str | None:
    """What keeps the smallest of kernels from being compiled and launched, as a sentence; None if nothing."""
    # Not at the top: it imports triton.
    from zipnerf_ns.kernels.launching import launching
    from zipnerf_ns.kernels.mlp.launch import encode_directions

    direction = torch.ones(1, 3, device=device)
    try:
        with launching("encode_directions", direction):
            encode_directions(direction, torch.float32)
    except LaunchFailed as failed:
        return str(failed)
    return None


def why_untried(device: torch.device) -> str | None:
    """Why nobody is given the kernels who does not ask for them by name, as a sentence; None where they are known."""
    if not torch.version.hip or device.type != "cuda" or not torch.cuda.is_available():
        return None
    return (
        f"The Triton kernels are untried on AMD's GPUs, such as this {describe(device).name}; "
        "'--pipeline.model.implementation triton' tries them."
    )


def require(device: torch.device) -> None:
    """Does nothing where the kernels can run.

    Raises:
        RuntimeError: elsewhere; the message says what to install.
    """
    reason = why_unavailable(device)
    if reason is not None:
        raise RuntimeError(reason)


def _triton_version() -> str | None:
    # Not at the top: who asks may have no Triton, and where there is no CUDA device nobody needs to load it.
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__
