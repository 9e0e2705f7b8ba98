"""The kernels that join channels of what stands still and of what moves, against their torch twin."""

from __future__ import annotations

import pytest
import torch
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _twins import DEVICE
from torch import Tensor

from zipnerf_ns.functional.cones import join_channels as twin
from zipnerf_ns.kernels.encode.join import BLOCK, PART, join_channels


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


def inputs(rays: int, n: int, still: int, moving: int, masked: bool) -> list[Tensor | None]:
    """Leaves of float32; some rays see nothing of what moves, some a part of it."""
    torch.manual_seed(1)
    seen = torch.linspace(0.0, 1.0, rays)[:, None]
    layer = [torch.randn(1, still), torch.randn(1)] if masked else [None, None]
    made = [torch.randn(still, rays * n).t(), torch.randn(moving, rays * n).t(), seen, *layer]
    return [value if value is None else value.to(DEVICE).requires_grad_() for value in made]


@runs_kernels
@pytest.mark.parametrize("masked,used", [(True, (0, 1)), (True, (0,)), (True, (1,)), (False, (0, 1))])
@pytest.mark.parametrize("rays,n,still,moving", [
    (3, 32, 50, 40), (5, 6, 3, PART), (2, BLOCK + 8, PART + 1, 2), (0, 8, 5, 5)
])  # fmt: skip
def test_values_and_gradients_equal_the_twins(rays, n, still, moving, masked, used):
    given = inputs(rays, n, still, moving, masked)
    exact = [value if value is None else value.detach().double().requires_grad_() for value in given]
    found, truth = join_channels(*given), twin(*exact)
    assert (found[1] is not None) == (truth[1] is not None) == masked
    # The mask has a loss of its own, alone or beside that of the channels.
    found, truth = ([values[index] for index in used if values[index] is not None] for values in (found, truth))
    cotangents = [torch.randn_like(value) for value in found]
    for value, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(value, expected.float(), rtol=1e-5, atol=1e-5)
    for outputs, leaves in ((found, given), (truth, exact)):
        leaves = [leaf for leaf in leaves if leaf is not None]
        torch.autograd.backward(outputs, [v.to(outputs[0].dtype) for v in cotangents], inputs=leaves)
    assert given[2].grad is None and exact[2].grad is None
    for leaf, expected in zip(given, exact, strict=True):
        if leaf is not None and leaf is not given[2]:
            # Without channels the twin has nothing to say of what moves.
            wanted = torch.zeros_like(leaf) if expected.grad is None else expected.grad.float()
            torch.testing.assert_close(leaf.grad, wanted, rtol=1e-4, atol=1e-4)


@runs_kernels
def test_half_precision_is_summed_in_float32():
    given = inputs(3, 32, 20, 12, True)
    still, moving = (value.detach().bfloat16().requires_grad_() for value in given[:2])
    found, _ = join_channels(still, moving, *given[2:])
    assert found.dtype == torch.bfloat16
    exact = [value.detach().float().requires_grad_() for value in (still, moving, *given[2:])]
    truth, _ = twin(*exact)
    torch.testing.assert_close(found.float(), truth, rtol=2.0**-7, atol=1e-6)
    v = torch.randn_like(truth).bfloat16()
    found.backward(v)
    truth.backward(v.float())
    assert still.grad.dtype == moving.grad.dtype == torch.bfloat16
    for value, expected in ((still, exact[0]), (moving, exact[1])):
        torch.testing.assert_close(value.grad.float(), expected.grad, rtol=2.0**-7, atol=1e-5)
    torch.testing.assert_close(given[3].grad, exact[3].grad, rtol=1e-4, atol=1e-4)
