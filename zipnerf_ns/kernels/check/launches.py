"""Which launches a computation would make on a GPU: it runs here on a CPU, and none of them is made.

What a kernel would have written stays zero. Torch's own operations run on the CPU, and to the code that asks, every
tensor seems to lie on the GPU: what it decides by the device it decides as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton.runtime.jit import JITFunction

from zipnerf_ns.kernels.device import Device, pretending

ALIGNMENT = 16
"""Triton compiles pointers and numbers that this divides by themselves."""


@dataclass(frozen=True)
class Pointer:
    """A tensor, as far as the code depends on it."""

    dtype: torch.dtype
    is_aligned: bool

    def data_ptr(self) -> int:
        """An address like the tensor's."""
        return ALIGNMENT if self.is_aligned else 1


class Launch(NamedTuple):
    """A kernel and what its code depends on: two launches are equal where Triton makes one code for both."""

    module: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        """The kernel with its constants, which are in capitals, and its warps and stages."""
        constants = [(name, value) for name, value in self.arguments if name.isupper()]
        chosen = ", ".join(f"{name}={value}" for name, value in (*constants, *self.options))
        return f"{self.kernel}({chosen})"


@contextmanager
def recorded(device: Device) -> Iterator[dict[Launch, None]]:
    """Within it, launches are noted in what it gives, each once and in their order, instead of made."""
    found: dict[Launch, None] = {}

    def note(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found.setdefault(_launch(kernel, args, kwargs))

    mode, run_backward = _SeemsOnGpu(), torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        # Torch leaves a mode for as long as a function lasts that the mode was asked about.
        with mode:
            return run_backward(*args, **kwargs)

    patches = patch.object(JITFunction, "run", note), patch.object(torch.autograd, "_engine_run_backward", backward)
    with pretending(device), patches[0], patches[1], mode:
        yield found


def _launch(kernel: JITFunction, args: Sequence[Any], kwargs: dict[str, Any]) -> Launch:
    parameters = {parameter.name: parameter for parameter in kernel.params}
    given = dict(zip(parameters, args, strict=False)) | {k: v for k, v in kwargs.items() if k in parameters}
    arguments = tuple(
        (name, value if parameters[name].is_constexpr else _kind(value, not parameters[name].do_not_specialize))
        for name, value in given.items()
    )
    options = tuple(sorted((name, value) for name, value in kwargs.items() if name not in parameters))
    return Launch(kernel.fn.__module__, kernel.fn.__name__, arguments, options)


def _kind(value: Any, is_specialized: bool) -> Any:
    """What stands for all values that give the same code."""
    if isinstance(value, Tensor):
        return Pointer(value.dtype, value.data_ptr() % ALIGNMENT == 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if isinstance(value, float):
        return 0.5
    if value == 1 and is_specialized:
        return 1
    large = 0 if -(2**31) <= value < 2**31 else 2**40
    return large + (ALIGNMENT if value % ALIGNMENT == 0 and is_specialized else ALIGNMENT + 1)


class _SeemsOnGpu(TorchFunctionMode):
    """Tensors on the CPU that answer as if they were on a GPU; new ones are zeros, and stay so.

    Tables, which nothing but kernels works on, are whatever the memory holds: they are gigabytes.
    """

    GPU = torch.device("cuda", 0)
    ANSWERS: dict[Callable, Any] = {Tensor.device.__get__: GPU, Tensor.is_cuda.__get__: True}
    PRODUCTS = (torch.nn.functional.linear, torch.mm, torch.matmul, Tensor.matmul, Tensor.__matmul__)
    NEW: dict[Callable, Callable] = {
        torch.empty: torch.empty, torch.zeros: torch.empty, Tensor.new_empty: Tensor.new_empty,
        torch.empty_like: torch.empty_like, torch.zeros_like: torch.empty_like,
    }  # fmt: skip
    RANDOM = (Tensor.uniform_, Tensor.normal_)
    LARGE = 1 << 20

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.ANSWERS:
            return self.ANSWERS[func]
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        args, kwargs = tuple(map(_to_cpu, args)), {name: _to_cpu(value) for name, value in kwargs.items()}
        if func in self.NEW:
            made = self.NEW[func](*args, **kwargs)
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
