"""gsplat on a GPU against its pure-torch reference on the CPU; and what is said where it cannot run."""

from __future__ import annotations

import importlib
import importlib.util
import shutil

import pytest
import torch
from _scenes import pose
from _torch_rasterizer import TorchRasterizer
from torch import Tensor
from torch.utils import cpp_extension

from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.distill.views import Pinhole
from zipnerf_ns.splats.rasterizer import Gsplat, contributions, prepare_gsplat

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="gsplat draws on NVIDIA GPUs only")


def scene(device: str) -> tuple[dict[str, Tensor], Pinhole]:
    """Two hundred Gaussians, and a camera whose picture is several bands of tiles high."""
    draws = torch.Generator().manual_seed(3)
    params = {
        "means": torch.rand(200, 3, generator=draws) - 0.5,
        "quats": torch.randn(200, 4, generator=draws),
        "scales": torch.log(0.01 + 0.1 * torch.rand(200, 3, generator=draws)),
        "opacities": torch.randn(200, generator=draws),
        "sh0": torch.randn(200, 1, 3, generator=draws),
        "shN": 0.2 * torch.randn(200, 8, 3, generator=draws),
    }
    view = Pinhole(torch.tensor(pose(1, 7))[:3].float(), 150.0, 140.0, 50.0, 140.0, 100, 290)
    return {name: value.to(device) for name, value in params.items()}, view


@needs_gpu
def test_gsplat_draws_as_its_reference():
    """Colors and opacities to half a step of 8 bits, largest contributions to a thousandth, over several bands."""
    prepare_gsplat(torch.device("cuda"), print)
    (on_cpu, view), (on_gpu, _) = scene("cpu"), scene("cuda")
    truth, drawn = TorchRasterizer().draw(on_cpu, view, 2), Gsplat().draw(on_gpu, view, 2)
    assert float((drawn.rgb.cpu() - truth.rgb).abs().max()) < 0.002
    assert float((drawn.alpha.cpu() - truth.alpha).abs().max()) < 0.002
    largest = Gsplat().largest_contributions(on_gpu, view).cpu()
    expected = TorchRasterizer().largest_contributions(on_cpu, view)
    assert float((largest - expected).abs().max()) < 1e-3 and float(expected.max()) > 0.5
    values = torch.rand(view.height, view.width, 1, generator=torch.Generator().manual_seed(1))
    shared = Gsplat().shared(on_gpu, view, values.cuda()).cpu()
    torch.testing.assert_close(shared, TorchRasterizer().shared(on_cpu, view, values), rtol=0.01, atol=0.05)


def test_contributions_are_each_pixels_weights():
    """By brute force, pixel after pixel; long lists lose no digits."""
    counts = [1, 5, 3000, 2]
    alphas = torch.rand(sum(counts), generator=torch.Generator().manual_seed(0)) * 0.1
    pixels = torch.repeat_interleave(torch.tensor([3, 4, 9, 17]), torch.tensor(counts))
    expected = []
    for each in alphas.split(counts):
        clear = 1.0
        for alpha in each.double().tolist():
            expected.append(clear * alpha)
            clear *= 1.0 - alpha
    torch.testing.assert_close(contributions(alphas, pixels), torch.tensor(expected), rtol=1e-5, atol=1e-30)


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    """No GPU, no gsplat, no compiler: each one line with what to install and what works without."""
    with pytest.raises(InputError, match="need an NVIDIA GPU.*ns-viewer.*export_mesh.*pointcloud"):
        prepare_gsplat(torch.device("cpu"), print)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gsplat" else find(name))
    with pytest.raises(InputError, match="pip install gsplat==1.4.0.*ns-viewer"):
        prepare_gsplat(torch.device("cuda"), print)
    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(cpp_extension, "_get_build_directory", lambda *_, **__: str(tmp_path))
    with pytest.raises(InputError, match="nvcc is missing.*toolkit 12.8.*ns-viewer"):
        prepare_gsplat(torch.device("cuda"), print)


def test_compilation_is_announced(monkeypatch, tmp_path):
    """Before it begins, and when it is over or has failed; what is compiled already is not."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvcc")
    monkeypatch.setattr(cpp_extension, "_get_build_directory", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    said: list[str] = []
    prepare_gsplat(torch.device("cuda"), said.append)
    assert f"once: 2 minutes on 28 cores, 6 on ten. It is kept in {tmp_path}" in said[0]
    assert said[1].startswith("gsplat is compiled, in ")

    def fail(name: str) -> None:
        raise RuntimeError("Error building extension\nnvcc fatal : Unsupported gpu architecture")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(InputError, match="could not be compiled: nvcc fatal : Unsupported gpu architecture"):
        prepare_gsplat(torch.device("cuda"), said.append)
    (tmp_path / "gsplat_cuda.so").write_bytes(b"")
    count = len(said)
    prepare_gsplat(torch.device("cuda"), said.append)
    assert len(said) == count
