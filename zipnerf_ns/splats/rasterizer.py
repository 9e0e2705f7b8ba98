"""gsplat's rasterizer: whether it can run here, and pictures and contributions of Gaussians by it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.distill.views import Pinhole

EXTENSION = "gsplat_cuda"
"""What gsplat compiles itself as at its first use."""
SECONDS_BETWEEN_LINES = 15.0
TILE_ROWS = 4
"""Rows of a picture's tiles whose contributions are found at a time: some five million, at 1,600 pixels of width."""
WITHOUT = (
    "Without splats the field can be looked at (ns-viewer), rendered (ns-render), and exported as a mesh "
    "(python -m zipnerf_ns.tools.export_mesh) or a point cloud (ns-export pointcloud)."
)


class Drawn(NamedTuple):
    """A picture of Gaussians."""

    rgb: Float[Tensor, "height width 3"]
    """Over black."""
    alpha: Float[Tensor, "height width 1"]


@runtime_checkable
class Rasterizer(Protocol):
    """What draws Gaussians, given by their parameters' names: ``means``, ``quats``, ``scales``, ``opacities``, ``sh0``
    and ``shN``, all as :class:`~zipnerf_ns.splats.gaussians.Gaussians` holds them."""

    def draw(self, splats: Mapping[str, Tensor], pinhole: Pinhole, degree: int) -> Drawn:
        """A picture, with colors up to a degree of the spherical harmonics; with gradients."""

    def largest_contributions(self, splats: Mapping[str, Tensor], pinhole: Pinhole) -> Float[Tensor, "gaussians"]:
        """The largest share of any pixel's color that each Gaussian has in a picture (RadSplat, equation 9)."""

    def shared(
        self, splats: Mapping[str, Tensor], pinhole: Pinhole, values: Float[Tensor, "height width 1"]
    ) -> Float[Tensor, "gaussians"]:
        """What a picture of numbers leaves each Gaussian: the sum over pixels, by its share of their colors."""


class Gsplat:
    """gsplat's rasterizer on an NVIDIA GPU.

    Args:
        antialiased: whether opacities make up for the blur that keeps Gaussians as wide as a pixel.
    """

    def __init__(self, antialiased: bool = True) -> None:
        self._mode = "antialiased" if antialiased else "classic"

    def draw(self, splats: Mapping[str, Tensor], pinhole: Pinhole, degree: int) -> Drawn:
        """As :class:`Rasterizer` has it."""
        from gsplat import spherical_harmonics

        # Given coefficients, the rasterizer would invert the camera's matrix, for which the CPU waits.
        coefficients = torch.cat([splats["sh0"], splats["shN"]], dim=1)
        directions = splats["means"] - pinhole.pose[:, 3].to(coefficients.device)
        colors = (spherical_harmonics(degree, directions, coefficients) + 0.5).clamp_min(0.0)
        rgb, alpha, _ = self._rasterize(splats, pinhole, colors)
        return Drawn(rgb[0], alpha[0])

    def _rasterize(
        self, splats: Mapping[str, Tensor], pinhole: Pinhole, colors: Float[Tensor, "gaussians channels"]
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        # Late: it is not needed by those who have no GPU, and takes a second.
        from gsplat import rasterization

        device = colors.device
        return rasterization(
            splats["means"], splats["quats"], splats["scales"].exp(), splats["opacities"].sigmoid(), colors,
            pinhole.viewmat[None].to(device), pinhole.intrinsics[None].to(device), pinhole.width, pinhole.height,
            packed=False, rasterize_mode=self._mode,
        )  # fmt: skip

    def shared(
        self, splats: Mapping[str, Tensor], pinhole: Pinhole, values: Float[Tensor, "height width 1"]
    ) -> Float[Tensor, "gaussians"]:
        """As :class:`Rasterizer` has it: what a picture of one channel says of the Gaussians' values in it."""
        own = torch.zeros_like(splats["opacities"].detach())[:, None].requires_grad_()
        picture, _, _ = self._rasterize(splats, pinhole, own)
        return torch.autograd.grad(picture, own, values[None])[0][:, 0]

    @torch.no_grad()
    def largest_contributions(self, splats: Mapping[str, Tensor], pinhole: Pinhole) -> Float[Tensor, "gaussians"]:
        """As :class:`Rasterizer` has it, a band of tiles at a time."""
        from gsplat import rasterize_to_indices_in_range

        _, _, info = self._rasterize(splats, pinhole, torch.zeros_like(splats["opacities"])[:, None])
        means, conics, opacities = (info[name] for name in ("means2d", "conics", "opacities"))
        starts, order, side = info["isect_offsets"], info["flatten_ids"], info["tile_size"]
        largest = torch.zeros_like(splats["opacities"])
        for first in range(0, starts.shape[1], TILE_ROWS):
            band = starts[:, first : first + TILE_ROWS].contiguous()
            last = first + band.shape[1]
            # Of the last tile gsplat takes all that is left.
            end = len(order) if last == starts.shape[1] else int(starts[0, last, 0])
            rows = min(last * side, pinhole.height) - first * side
            shifted = means - means.new_tensor([0.0, first * side])
            clear = means.new_ones(1, rows, pinhole.width)
            which, pixels, _ = rasterize_to_indices_in_range(
                0, 1 << 20, clear, shifted, conics, opacities, pinhole.width, rows, side, band, order[:end]
            )
            if len(which) == 0:
                continue
            places = torch.stack([pixels % pinhole.width, pixels // pinhole.width], dim=-1) + 0.5
            x, y = (places - shifted[0, which]).unbind(-1)
            a, b, c = conics[0, which].unbind(-1)
            alphas = opacities[0, which] * torch.exp(-0.5 * (a * x * x + c * y * y) - b * x * y)
            largest.scatter_reduce_(0, which, contributions(alphas.clamp_max(0.999), pixels), "amax")
        return largest


def contributions(alphas: Float[Tensor, "pairs"], pixels: Int[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
    """What each Gaussian adds to each pixel: its opacity there, times what those before it let through.

    Args:
        alphas: below 1; of each pixel from near to far.
        pixels: whose they are, each pixel's one after the other.
    """
    # Sums over all pairs in float64, of which those up to a pixel's first are taken away again.
    logs = torch.log1p(-alphas.double())
    before = logs.cumsum(0) - logs
    _, counts = torch.unique_consecutive(pixels, return_counts=True)
    firsts = counts.cumsum(0) - counts
    return alphas * torch.exp(before - before[firsts].repeat_interleave(counts)).to(alphas)


def prepare_gsplat(device: torch.device, say: Callable[[str], object]) -> None:
    """Has gsplat ready on a GPU: compiled, if it never was here.

    Args:
        device: that is to draw.
        say: takes a line about what is done, now and then.
    Raises:
        InputError: if it cannot run here, with what to install.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        raise InputError(f"splats need an NVIDIA GPU, for gsplat draws them, and there is none here. {WITHOUT}")
    if importlib.util.find_spec("gsplat") is None:
        raise InputError(f"splats are drawn by gsplat, which is not installed: pip install gsplat==1.4.0. {WITHOUT}")
    if importlib.util.find_spec("gsplat.csrc") is None:
        _compile(say)


def _compile(say: Callable[[str], object]) -> None:
    """Compiles gsplat, if that was not done before."""
    from torch.utils import cpp_extension

    folder = Path(cpp_extension._get_build_directory(EXTENSION, verbose=False))
    is_there = any((folder / f"{EXTENSION}.{ending}").is_file() for ending in ("so", "pyd", "lib"))
    if shutil.which("nvcc") is None and cpp_extension.CUDA_HOME is not None:
        # gsplat looks for it on the path only.
        os.environ["PATH"] += os.pathsep + str(Path(cpp_extension.CUDA_HOME) / "bin")
    cuda = torch.version.cuda
    if shutil.which("nvcc") is None:
        raise InputError(
            f"gsplat is compiled at its first use, for which nvcc is missing. Install CUDA's toolkit {cuda}, as with "
            f"conda install -c nvidia cuda-toolkit={cuda}, or a gsplat that is compiled already "
            f"(see https://docs.gsplat.studio/whl). {WITHOUT}"
        )
    if is_there:
        return
    version = importlib.metadata.version("gsplat")
    jobs = os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 10))
    say(f"Compiling gsplat {version} with {jobs} jobs, once: 2 minutes on 28 cores, 6 on ten. It is kept in {folder}.")
    begun, done = time.monotonic(), threading.Event()

    def report() -> None:
        while not done.wait(SECONDS_BETWEEN_LINES):
            parts = len(list(folder.glob("*.o")))
            say(f"Compiling gsplat: {parts} parts after {time.monotonic() - begun:.0f} s.")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        importlib.import_module("gsplat.cuda._backend")
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"gsplat {version} could not be compiled: {reason}. {WITHOUT}") from error
    finally:
        done.set()
        reporter.join()
    say(f"gsplat is compiled, in {time.monotonic() - begun:.0f} s.")
