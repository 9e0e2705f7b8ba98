"""PSNR and SSIM against their formulas written out, and LPIPS that may or may not be there."""

from __future__ import annotations

import math
import socket
import threading
import time

import numpy as np
import pytest
import torch
from _rays import normal, uniform
from torch import nn

from zipnerf_ns.render import metrics as metrics_module
from zipnerf_ns.render.metrics import ImageMetrics, psnr


def ssim_windows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wang et al. (2004): Gaussian window of 11 pixels, sigma 1.5, at each place where it fits; ``[rows, columns]``."""
    offsets = np.arange(11) - 5.0
    window = np.exp(-(offsets**2) / (2.0 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = np.zeros((a.shape[0] - 10, a.shape[1] - 10, 3))
    for row, column, channel in np.ndindex(values.shape):
        x = a[row : row + 11, column : column + 11, channel]
        y = b[row : row + 11, column : column + 11, channel]
        mean_x, mean_y = (window * x).sum(), (window * y).sum()
        var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
        covariance = (window * (x - mean_x) * (y - mean_y)).sum()
        numerator = (2.0 * mean_x * mean_y + c1) * (2.0 * covariance + c2)
        values[row, column, channel] = numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return values.mean(axis=-1)


def pictures(height: int, width: int, noise: float = 0.1):
    truth = uniform((height, width, 3), 0)
    return (truth + noise * normal((height, width, 3), 1)).clamp(0.0, 1.0), truth


class ThinAlexNet(nn.Module):
    """Stands for LPIPS: AlexNet's windows and strides, so that it refuses the same sizes, with one channel a layer."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        assert kwargs == {"net_type": "alex", "normalize": True}
        self.layers = nn.Sequential(
            nn.Conv2d(3, 1, 11, stride=4, padding=2), nn.MaxPool2d(3, 2),
            nn.Conv2d(1, 1, 5, padding=2), nn.MaxPool2d(3, 2), nn.Conv2d(1, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, prediction, target):
        assert 0.0 <= float(prediction.min()) and float(prediction.max()) <= 1.0
        return (self.layers(prediction) - self.layers(target)).square().mean()


@pytest.fixture
def with_lpips(monkeypatch) -> list:
    """The stand-in's weights are at hand; the networks that were built."""
    built = []
    monkeypatch.setattr(metrics_module, "_weights_within_reach", lambda: True)
    monkeypatch.setattr(
        metrics_module,
        "LearnedPerceptualImagePatchSimilarity",
        lambda **kwargs: built.append(ThinAlexNet(**kwargs)) or built[-1],
    )
    return built


@pytest.fixture
def said(monkeypatch) -> list:
    lines = []
    monkeypatch.setattr(metrics_module.CONSOLE, "log", lambda text, **_: lines.append(text))
    return lines


@pytest.fixture
def without_lpips(monkeypatch, said) -> list:
    """A network that breaks the download off; how often it was tried."""
    tries = []

    def fail(**kwargs):
        tries.append(1)
        raise OSError("no route to host")

    monkeypatch.setattr(metrics_module, "_weights_within_reach", lambda: True)
    monkeypatch.setattr(metrics_module, "LearnedPerceptualImagePatchSimilarity", fail)
    return tries


def test_psnr_is_its_formula():
    prediction, truth = pictures(7, 5)
    errors = [
        (a - b) ** 2
        for a, b in zip(prediction.double().flatten().tolist(), truth.double().flatten().tolist(), strict=True)
    ]
    assert float(psnr(prediction, truth)) == pytest.approx(-10.0 * math.log10(sum(errors) / len(errors)), rel=1e-6)


def test_psnr_of_equal_pictures_is_finite_and_falls_by_20_db_per_tenfold_error():
    truth = uniform((4, 4, 3), 2, dtype=torch.float64)
    assert math.isfinite(float(psnr(truth, truth)))
    noise = normal((4, 4, 3), 3, torch.float64)
    near, far = psnr(truth + 0.001 * noise, truth), psnr(truth + 0.01 * noise, truth)
    assert float(near - far) == pytest.approx(20.0, abs=1e-9)


@pytest.mark.parametrize("height, width, noise", [(11, 11, 0.1), (14, 19, 0.02), (20, 13, 0.5)])
def test_ssim_is_its_formula(without_lpips, height, width, noise):
    prediction, truth = pictures(height, width, noise)
    a, b = prediction.double().numpy(), truth.double().numpy()
    border = ((5, 5), (5, 5), (0, 0))
    # Older torchmetrics leave out the windows that reach over the border, newer ones mirror the picture there.
    mirrored = ssim_windows(*(np.pad(image, border, mode="reflect") for image in (a, b)))
    choices = [ssim_windows(a, b).mean(), mirrored.mean()]
    found = ImageMetrics()(prediction, truth)["ssim"]
    assert min(abs(found - expected) for expected in choices) < 1e-5


def test_equal_pictures_are_perfect(with_lpips):
    _, truth = pictures(40, 40)
    values = ImageMetrics()(truth, truth.clone())
    assert values["ssim"] == pytest.approx(1.0, abs=1e-6) and values["lpips"] == 0.0 and values["psnr"] > 100.0


def test_values_are_python_floats(with_lpips):
    values = ImageMetrics()(*pictures(40, 48))
    assert set(values) == {"psnr", "ssim", "lpips"} and all(type(value) is float for value in values.values())


def test_without_lpips_every_picture_lacks_the_key_and_one_warning_says_why(without_lpips, said):
    metrics = ImageMetrics()
    keys = [set(metrics(*pictures(40 + n, 33))) for n in range(3)]
    assert keys == [{"psnr", "ssim"}] * 3
    assert len(without_lpips) == 1
    assert len(said) == 1 and "LPIPS" in said[0] and "no route to host" in said[0]


def test_out_of_reach_the_weights_are_not_even_tried(with_lpips, said, monkeypatch):
    monkeypatch.setattr(metrics_module, "_weights_within_reach", lambda: False)
    metrics = ImageMetrics()
    assert [set(metrics(*pictures(40, 40))) for _ in range(2)] == [{"psnr", "ssim"}] * 2
    assert with_lpips == [] and len(said) == 1 and "LPIPS" in said[0]


def test_weights_are_within_reach_from_the_cache_or_by_a_name_that_resolves(monkeypatch, tmp_path):
    def unresolved(*_):
        raise OSError("no such host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [("address",)])
    assert metrics_module._weights_within_reach()
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    assert not metrics_module._weights_within_reach()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / metrics_module.LPIPS_BACKBONE).touch()
    assert metrics_module._weights_within_reach()


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch, tmp_path):
    let_go = threading.Event()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: let_go.wait(30.0))
    monkeypatch.setattr(metrics_module, "LOOKUP_SECONDS", 0.1)
    before = time.monotonic()
    assert not metrics_module._weights_within_reach()
    assert time.monotonic() - before < 5.0
    let_go.set()


def test_lpips_is_built_at_the_first_picture_once_and_is_no_part_of_the_model(with_lpips):
    metrics = ImageMetrics()
    assert with_lpips == []
    values = [metrics(*pictures(40, 40)) for _ in range(2)]
    assert len(with_lpips) == 1 and values[0] == values[1]
    assert list(metrics.parameters()) == [] and metrics.state_dict() == {}


@pytest.mark.parametrize("size", [(1, 1), (10, 40), (16, 16), (30, 64)])
def test_pictures_too_small_for_a_metrics_window_still_have_a_psnr(with_lpips, size):
    values = ImageMetrics()(*pictures(*size))
    assert math.isfinite(values["psnr"])
    assert ("ssim" in values) == (min(size) >= 11)


# --- masks ---


def a_mask(height: int, width: int) -> torch.Tensor:
    """A disc away from the border that is not used, and a corner."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ignored = (torch.hypot(y - height / 2.0, x - width / 2.0) < height / 4.0) | ((y < 7) & (x < 9))
    return ~ignored[..., None]


def test_psnr_is_that_of_the_used_pixels():
    prediction, truth = pictures(20, 24)
    mask = a_mask(20, 24)
    found = ImageMetrics()(prediction[:9, :9], truth[:9, :9], mask[:9, :9])
    squares = [
        float((prediction[y, x, c] - truth[y, x, c]) ** 2)
        for y, x, c in np.ndindex(9, 9, 3)
        if bool(mask[y, x, 0])
    ]  # fmt: skip
    assert 0 < len(squares) < 9 * 9 * 3
    assert found["psnr"] == pytest.approx(-10.0 * math.log10(sum(squares) / len(squares)), rel=1e-6)


def test_ssim_is_that_of_the_windows_around_used_pixels(without_lpips):
    prediction, truth = pictures(21, 26)
    mask = a_mask(21, 26)
    # Far from the border, where versions of torchmetrics agree.
    mask[:5] = mask[-5:] = mask[:, :5] = mask[:, -5:] = False
    replaced = torch.where(mask, prediction, truth)
    windows = ssim_windows(replaced.double().numpy(), truth.double().numpy())
    expected = windows[mask[5:-5, 5:-5, 0].numpy()].mean()
    assert ImageMetrics()(prediction, truth, mask)["ssim"] == pytest.approx(expected, abs=1e-5)


def test_what_a_mask_ignores_changes_no_metric(with_lpips):
    prediction, truth = pictures(40, 44)
    mask = a_mask(40, 44)
    metrics = ImageMetrics()
    expected = metrics(prediction, truth, mask)
    wrong = torch.where(mask, prediction, uniform((40, 44, 3), 9))
    assert set(expected) == {"psnr", "ssim", "lpips"}
    assert metrics(wrong, truth, mask) == expected
    assert metrics(wrong, truth)["psnr"] < expected["psnr"] - 3.0


def test_a_mask_that_uses_everything_is_none(with_lpips):
    prediction, truth = pictures(40, 44)
    metrics = ImageMetrics()
    masked, whole = metrics(prediction, truth, torch.ones(40, 44, 1, dtype=torch.bool)), metrics(prediction, truth)
    assert masked["psnr"] == pytest.approx(whole["psnr"], rel=1e-6) and masked["lpips"] == whole["lpips"]
    # Older torchmetrics leave out the border.
    assert masked["ssim"] == pytest.approx(whole["ssim"], abs=0.01)


def test_a_picture_that_is_ignored_wholly_has_no_metrics(with_lpips):
    assert ImageMetrics()(*pictures(40, 44), torch.zeros(40, 44, 1, dtype=torch.bool)) == {}
