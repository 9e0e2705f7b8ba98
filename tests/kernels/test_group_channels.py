"""The kernels of means over neighboring intervals against their torch twin, on a GPU or under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _twins import DEVICE

from zipnerf_ns.functional.ray_march import group_channels as twin
from zipnerf_ns.kernels.march.groups import LANES, group_channels


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("channel_major", [True, False])
@pytest.mark.parametrize("rays,n,size,count", [
    (3, 32, 4, 50), (5, 6, 4, 3), (2, 7, 2, 11), (LANES // 8 + 3, 8, 8, 2), (1, 5, 16, 1), (0, 8, 4, 5)
])  # fmt: skip
def test_means_and_gradients_equal_the_twins(rays, n, size, count, channel_major):
    channels = torch.randn(count, rays * n, device=DEVICE).t()
    channels = (channels if channel_major else channels.contiguous()).requires_grad_()
    # Groups without any weight, with a little, and with a lot.
    weights = torch.rand(rays, n, device=DEVICE) * 10.0 ** -torch.randint(0, 5, (rays, 1), device=DEVICE)
    weights[: rays // 2, :size] = 0.0
    weights.requires_grad_()
    found, truth = group_channels(channels, weights, size), twin(channels.double(), weights.double(), size)
    assert found.shape == (rays * -(-n // size), count)
    torch.testing.assert_close(found, truth.float(), rtol=1e-5, atol=1e-6)
    v = torch.randn_like(found)
    for means, cotangent in ((found, v), (truth, v.double())):
        means.backward(cotangent, inputs=[channels, weights])
        assert weights.grad is None
    expected = torch.autograd.grad(twin(channels.double(), weights.double(), size), channels, v.double())[0]
    torch.testing.assert_close(channels.grad, 2.0 * expected, rtol=1e-5, atol=1e-6)


@runs_kernels
def test_half_precision_is_summed_in_float32():
    channels = torch.randn(20, 64, device=DEVICE).bfloat16().t().requires_grad_()
    weights = torch.rand(2, 32, device=DEVICE, requires_grad=True)
    found = group_channels(channels, weights, 4)
    assert found.dtype == torch.bfloat16
    truth = twin(channels.float(), weights, 4)
    torch.testing.assert_close(found.float(), truth, rtol=2.0**-7, atol=1e-6)
    (v_channels,) = torch.autograd.grad(found, channels, torch.ones_like(found))
    (expected,) = torch.autograd.grad(truth, channels, torch.ones_like(truth))
    assert v_channels.dtype == torch.bfloat16
    torch.testing.assert_close(v_channels, expected, rtol=2.0**-7, atol=1e-6)


@runs_kernels
def test_what_the_kernels_do_not_take():
    channels, weights = torch.zeros(12, 3, device=DEVICE), torch.zeros(2, 6, device=DEVICE)
    with pytest.raises(ValueError, match="not of 3"):
        group_channels(channels, weights, 3)
    with pytest.raises(ValueError, match="11 intervals have channels, 12 have weights"):
        group_channels(channels[1:], weights, 4)
