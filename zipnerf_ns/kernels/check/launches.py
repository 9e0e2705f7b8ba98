"""Which launches a computation would make on a GPU: it runs here on a CPU, and none of them is made.

What a kernel would have written stays zero. Torch's own operations run on the CPU, and to the code that asks, every
tensor seems to lie on the GPU: what it decides by the device it decides as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from zipnerf_ns.kernels.ahead import Launch, Zeros, noted
from zipnerf_ns.kernels.check.compiler import stand_in
from zipnerf_ns.kernels.device import pretending


@contextmanager
def recorded(gpu: str) -> Iterator[dict[Launch, None]]:
    """Within it, launches are noted in what it gives, each once and in their order, instead of made.

    Args:
        gpu: its name, as ``kernels.device.find`` knows it. Triton takes it for the process's own from then on.
    """
    mode, run_backward = _SeemsOnGpu(), torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        # Torch leaves a mode for as long as a function lasts that the mode was asked about.
        with mode:
            return run_backward(*args, **kwargs)

    patched = patch.object(torch.autograd, "_engine_run_backward", backward)
    with pretending(stand_in(gpu)), patched, noted(mode) as found:
        yield found


class _SeemsOnGpu(Zeros):
    """Tensors on the CPU that answer as if they were on a GPU; new ones are zeros, and stay so.

    Tables, which nothing but kernels works on, are whatever the memory holds: they are gigabytes.
    """

    GPU = torch.device("cuda", 0)
    ANSWERS: dict[Callable, Any] = {Tensor.device.__get__: GPU, Tensor.is_cuda.__get__: True}
    PRODUCTS = (torch.nn.functional.linear, torch.mm, torch.matmul, Tensor.matmul, Tensor.__matmul__)
    EMPTY: dict[Callable, Callable] = {zeros: empty for empty, zeros in Zeros.ZEROS.items()}
    RANDOM = (Tensor.uniform_, Tensor.normal_)
    LARGE = 1 << 20

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.ANSWERS:
            return self.ANSWERS[func]
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        args, kwargs = tuple(map(_to_cpu, args)), {name: _to_cpu(value) for name, value in kwargs.items()}
        func = self.ZEROS.get(func, func)
        if func in self.EMPTY:
            made = self.EMPTY[func](*args, **kwargs)
            if made.numel() < self.LARGE:
                made.detach().zero_()
            return made
        if func in self.RANDOM:
            return args[0]
        if func in self.PRODUCTS:
            return _product(func, args, kwargs)
        return func(*args, **kwargs)


def _product(func: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """A matrix product whose result has the type that it would have on a GPU: there autocast allows mixed types, and
    ``out_dtype`` wider results."""
    types = {value.dtype for value in args if isinstance(value, Tensor)}
    dtype = kwargs.pop("out_dtype", None) or min(types, key=lambda each: each.itemsize)
    if types == {dtype}:
        return func(*args, **kwargs)
    return func(*(value.float() if isinstance(value, Tensor) else value for value in args), **kwargs).to(dtype)


def _to_cpu(value: Any) -> Any:
    is_gpu = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
    return torch.device("cpu") if is_gpu else value
