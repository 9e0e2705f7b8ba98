"""PSNR and SSIM against their formulas written out, and LPIPS that may or may not be there."""

from __future__ import annotations

import math
from pathlib import Path

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


def in_8_bits(picture: torch.Tensor) -> torch.Tensor:
    """What reading a picture's PNG file gives."""
    return torch.from_numpy(np.floor(picture.double().numpy().clip(0.0, 1.0) * 255.0 + 0.5) / 255.0)


def pictures(height: int, width: int, noise: float = 0.1):
    """Two of them, whose values 8 bits do not hold."""
    truth = uniform((height, width, 3), 0)
    return (truth + noise * normal((height, width, 3), 1)).clamp(0.0, 1.0), truth


class ThinVgg(nn.Module):
    """Stands for LPIPS: VGG's windows and strides, so that it refuses the same sizes, with one channel a layer."""

    def __init__(self) -> None:
        super().__init__()
        stages = [[nn.Conv2d(inputs, 1, 3, padding=1), nn.MaxPool2d(2)] for inputs in (3, 1, 1, 1)]
        self.layers = nn.Sequential(*(layer for stage in stages for layer in stage), nn.Conv2d(1, 1, 3, padding=1))

    def forward(self, prediction, target):
        assert 0.0 <= float(min(prediction.min(), target.min())) and float(max(prediction.max(), target.max())) <= 1.0
        first, second = (self.layers(picture.permute(2, 0, 1)[None]) for picture in (prediction, target))
        return (first - second).square().mean()


@pytest.fixture
def with_lpips(monkeypatch) -> list:
    """The stand-in's weights are at hand; the folders in which they were looked for."""
    asked = []
    monkeypatch.setattr(metrics_module, "load_all", lambda folder: asked.append(folder) or {"lpips": ThinVgg()})
    return asked


@pytest.fixture
def without_lpips(monkeypatch) -> list:
    """No weights; the folders in which they were looked for."""
    asked = []
    monkeypatch.setattr(metrics_module, "load_all", lambda folder: asked.append(folder) or {})
    return asked


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
def test_ssim_is_its_formula_within_the_border(without_lpips, height, width, noise):
    prediction, truth = (in_8_bits(picture).float() for picture in pictures(height, width, noise))
    expected = ssim_windows(prediction.double().numpy(), truth.double().numpy())
    np.testing.assert_allclose(metrics_module.ssim(prediction, truth).numpy(), expected, rtol=0.0, atol=1e-12)
    assert ImageMetrics()(prediction, truth)["ssim"] == pytest.approx(expected.mean(), abs=1e-6)


def test_ssim_is_skimages():
    """With Wang's window: an implementation of others, for pictures of every smoothness."""
    metrics = pytest.importorskip("skimage.metrics")
    prediction, truth = pictures(30, 41)
    smooth = torch.linspace(0.2, 0.9, 30)[:, None, None].expand(30, 41, 3)
    for first, second in ((prediction, truth), (smooth, (smooth + 0.01 * truth)), (smooth, prediction)):
        expected = metrics.structural_similarity(
            first.double().numpy(), second.double().numpy(), data_range=1.0, channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert float(metrics_module.ssim(first, second).mean()) == pytest.approx(expected, abs=1e-12)


def test_metrics_are_those_of_the_pictures_files(with_lpips):
    """Finer than a step of 8 bits nothing is gained, and colors out of range are what they are shown as."""
    prediction, truth = pictures(40, 44)
    a, b = in_8_bits(prediction), in_8_bits(truth)
    metrics = ImageMetrics()
    found = metrics(prediction, truth)
    assert found["psnr"] == pytest.approx(-10.0 * math.log10(float((a - b).square().mean())), rel=1e-6)
    assert found == metrics(a.float(), b.float())
    assert found == metrics(torch.where(prediction == 1.0, 3.0, prediction), truth)
    flat = torch.full((40, 44, 3), 100.0 / 255.0)
    assert metrics(flat + 0.4 / 255.0, flat - 0.4 / 255.0)["psnr"] > 100.0
    assert metrics(flat + 0.6 / 255.0, flat)["psnr"] == pytest.approx(20.0 * math.log10(255.0), rel=1e-4)


def test_equal_pictures_are_perfect(with_lpips):
    _, truth = pictures(40, 40)
    values = ImageMetrics()(truth, truth.clone())
    assert values["ssim"] == pytest.approx(1.0, abs=1e-6) and values["lpips"] == 0.0 and values["psnr"] > 100.0


def test_values_are_python_floats(with_lpips):
    values = ImageMetrics()(*pictures(40, 48))
    assert set(values) == {"psnr", "ssim", "lpips"} and all(type(value) is float for value in values.values())


def test_without_lpips_every_picture_lacks_the_key_and_weights_are_looked_for_once(without_lpips):
    metrics = ImageMetrics()
    assert [set(metrics(*pictures(40 + n, 33))) for n in range(3)] == [{"psnr", "ssim"}] * 3
    assert without_lpips == [None]


def test_lpips_is_built_at_the_first_picture_once_and_is_no_part_of_the_model(with_lpips):
    metrics = ImageMetrics(Path("weights"))
    assert with_lpips == []
    values = [metrics(*pictures(40, 40)) for _ in range(2)]
    assert with_lpips == [Path("weights")] and values[0] == values[1]
    assert list(metrics.parameters()) == [] and metrics.state_dict() == {}


@pytest.mark.parametrize("size", [(1, 1), (10, 40), (15, 40), (16, 16), (30, 64)])
def test_pictures_too_small_for_a_metrics_window_still_have_a_psnr(with_lpips, size):
    values = ImageMetrics()(*pictures(*size))
    assert math.isfinite(values["psnr"])
    assert ("ssim" in values) == (min(size) >= 11) and ("lpips" in values) == (min(size) >= 16)


# --- masks ---


def a_mask(height: int, width: int) -> torch.Tensor:
    """A disc away from the border that is not used, and a corner."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ignored = (torch.hypot(y - height / 2.0, x - width / 2.0) < height / 4.0) | ((y < 7) & (x < 9))
    return ~ignored[..., None]


def test_psnr_is_that_of_the_used_pixels():
    prediction, truth = (in_8_bits(picture).float() for picture in pictures(20, 24))
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
    prediction, truth = (in_8_bits(picture).float() for picture in pictures(21, 26))
    mask = a_mask(21, 26)
    replaced = torch.where(mask, prediction, truth)
    windows = ssim_windows(replaced.double().numpy(), truth.double().numpy())
    expected = windows[mask[5:-5, 5:-5, 0].numpy()].mean()
    assert ImageMetrics()(prediction, truth, mask)["ssim"] == pytest.approx(expected, abs=1e-6)


def test_without_a_window_around_a_used_pixel_there_is_no_ssim(with_lpips):
    mask = torch.ones(20, 20, 1, dtype=torch.bool)
    mask[5:-5, 5:-5] = False
    assert set(ImageMetrics()(*pictures(20, 20), mask)) == {"psnr", "lpips"}


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
    assert masked == whole


def test_a_picture_that_is_ignored_wholly_has_no_metrics(with_lpips):
    assert ImageMetrics()(*pictures(40, 44), torch.zeros(40, 44, 1, dtype=torch.bool)) == {}


class OnGpu(torch.Tensor):
    """A picture that says it is on a GPU, until it is copied from there."""

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_what_does_not_fit_onto_the_gpu_is_measured_on_the_cpu_and_said_once(monkeypatch, said):
    asked, emptied = [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))

    def measure(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        asked.append(type(a))
        if isinstance(a, OnGpu):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return (a - b).square().mean()

    a, b = pictures(20, 20)
    for _ in range(2):
        assert metrics_module.with_room("SSIM", measure, a.as_subclass(OnGpu), b.as_subclass(OnGpu)) == measure(a, b)
    assert asked == [OnGpu, torch.Tensor, torch.Tensor] * 2 and len(emptied) == 2
    assert len(said) == 1 and "SSIM" in said[0]
