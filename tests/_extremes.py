"""Every function of ``functional/``, and every kernel behind one, with the most extreme numbers that it may be given.

``python tests/_extremes.py --cases 500`` tries more of them than the tests do and prints how many ended well; with
``--kernels``, on a GPU or under TRITON_INTERPRET=1, the kernels. What each argument may be is said in
``_extreme_rows.py``.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from zipnerf_ns import functional

LARGEST = torch.finfo(torch.float32).max
SMALLEST = 1e-45
"""Subnormal in float32."""


class Draw:
    """The numbers of one case: equal for equal seeds, and of all kinds within a few seeds.

    Args:
        seed: of the case. Every third one has no ray, and every third a single one.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.rays = (1, 3, 0)[seed % 3]
        self.bins = self.pick(1, 2, 7, 33)

    def pick(self, *options: Any) -> Any:
        """One of the options."""
        return options[int(torch.randint(len(options), (), generator=self._generator))]

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), in float64."""
        return torch.rand(*shape, generator=self._generator, dtype=torch.float64)

    def numbers(
        self, *shape: int, low: float = -LARGEST, high: float = LARGEST, dtype: torch.dtype = torch.float32,
        leaf: bool = False,
    ) -> Tensor:  # fmt: skip
        """Numbers from ``low`` to ``high``: their ends, zero, tiny and ordinary ones, each alone or all mixed.

        Args:
            leaf: whether a gradient is asked of them.
        """
        ends = torch.finfo(dtype)
        low, high = max(low, ends.min), min(high, ends.max)
        told = [low, high, 0.0, 1.0, -1.0, ends.tiny, -ends.tiny, SMALLEST, -SMALLEST, 1.0 + ends.eps, 1.0 - ends.eps]
        extremes = torch.tensor([value for value in told if low <= value <= high], dtype=torch.float64)
        ordinary = (torch.randn(*shape, generator=self._generator, dtype=torch.float64)).clamp(low, high)
        sizes = 10.0 ** (self.uniform(*shape) * 76.0 - 38.0)
        any_size = (torch.where(self.uniform(*shape) < 0.5, -sizes, sizes)).clamp(low, high)
        picked = extremes[(self.uniform(*shape) * len(extremes)).long()]
        kind = self.pick("one", "extremes", "sizes", "ordinary", "all")
        if kind == "all":
            which = self.uniform(*shape)
            values = torch.where(which < 0.4, picked, torch.where(which < 0.7, any_size, ordinary))
        else:
            one = torch.full(shape, float(self.pick(*extremes.tolist())), dtype=torch.float64)
            values = {"one": one, "extremes": picked, "sizes": any_size, "ordinary": ordinary}[kind]
        return values.to(dtype).requires_grad_(leaf)

    def directions(self, *shape: int, leaf: bool = False) -> Tensor:
        """Unit vectors, some along an axis or nearly so."""
        vectors = torch.randn(*shape, 3, generator=self._generator, dtype=torch.float64)
        axes = torch.eye(3, dtype=torch.float64)[(self.uniform(*shape) * 3).long()] * self.pick(-1.0, 1.0)
        vectors = torch.where(self.uniform(*shape, 1) < 0.5, axes + self.pick(0.0, 1e-9, 1e-4) * vectors, vectors)
        return torch.nn.functional.normalize(vectors, dim=-1).float().requires_grad_(leaf)

    def sdist(self, *shape: int, bins: int) -> Tensor:
        """Fenceposts from 0 to 1, in some rays several in one place."""
        inner = self.uniform(*shape, max(bins - 1, 0))
        kind = self.pick("anywhere", "rounded", "near", "far", "one")
        inner = {
            "anywhere": inner, "rounded": (inner * 2.0).round() / 2.0, "near": inner * 1e-30, "far": 1.0 - inner * 1e-7,
            "one": inner[..., :1].expand(inner.shape),
        }[kind]  # fmt: skip
        ends = inner.new_zeros(*shape, 1), inner.new_ones(*shape, 1)
        return torch.cat([ends[0], inner.sort(dim=-1).values, ends[1]], dim=-1).float()

    def limits(self) -> tuple[float, float]:
        """Near and far of scenes whose scale is 1e-3 to 1e3, near from 0 and far up to 1e10."""
        scale = self.pick(1e-3, 1.0, 1e3)
        near = scale * self.pick(0.0, SMALLEST, 1e-6, 0.05, 1.0)
        return near, max(self.pick(1e10, scale * 1e6, scale * 1e3, scale), near * (1.0 + 1e-6))

    def tdist(self, rays: int, bins: int) -> Tensor:
        """Fenceposts in world units, increasing."""
        near, far = self.limits()
        sdist = self.sdist(rays, bins=bins).double()
        even = near + sdist * (far - near)
        return self.pick(even, (near + 1e-3) * ((far + 1e-3) / (near + 1e-3)) ** sdist - 1e-3).clamp(near, far).float()

    def weights(self, *shape: int, leaf: bool = False) -> Tensor:
        """Masses of intervals, whose sum is at most one."""
        values = self.numbers(*shape, low=0.0, high=1.0)
        return (values / values.sum(dim=-1, keepdim=True).clamp_min(1.0)).requires_grad_(leaf)


class Row(NamedTuple):
    """How a function is tried."""

    arguments: Callable[[Draw], Sequence[Any]]
    """All that it may be given; tensors that require a gradient are asked for it."""
    call: Callable[..., Any] | None = None
    """Calls it, where its result is not what tensors can be read from."""


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function of ``functional/`` that has no underscore, as module.name."""
    for module in pkgutil.iter_modules(functional.__path__):
        found = importlib.import_module(f"{functional.__name__}.{module.name}")
        for name, value in vars(found).items():
            if inspect.isfunction(value) and value.__module__ == found.__name__ and not name.startswith("_"):
                yield f"{module.name}.{name}", value


def to_device(arguments: Sequence[Any], device: torch.device) -> Any:
    """The arguments with their tensors, whatever they lie in, on a device; leaves stay leaves."""

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(device).requires_grad_(value.requires_grad)

    return tree.tree_map(move, arguments)


def fault(function: Callable[..., Any], arguments: Sequence[Any], seed: int) -> str | None:
    """What is not finite of a call's results, of what it wrote into its arguments, or of its gradients; None if all is.

    Cotangents are random numbers, large and small; every other case has some zeros among them.
    """
    results = function(*arguments)
    written = [value for value in tree.tree_leaves((results, arguments)) if isinstance(value, Tensor)]
    for value in written:
        if value.is_floating_point() and not torch.isfinite(value).all():
            return f"value: {value.detach().flatten()[:8].tolist()} of shape {tuple(value.shape)}"
    outputs = [value for value in tree.tree_leaves(results) if isinstance(value, Tensor) and value.requires_grad]
    leaves = [value for value in tree.tree_leaves(arguments) if isinstance(value, Tensor) and value.requires_grad]
    if not outputs or not leaves:
        return None
    generator = torch.Generator().manual_seed(seed)
    cotangents = []
    for out in outputs:
        v, kept = torch.randn(out.shape, generator=generator), torch.rand(out.shape, generator=generator) < 0.5
        v = v * (1.0, 1e-9, 1e-40, 100.0)[seed % 4]
        cotangents.append((v * kept if seed % 2 else v).to(out.device, out.dtype))
    for number, gradient in enumerate(torch.autograd.grad(outputs, leaves, cotangents, materialize_grads=True)):
        if not torch.isfinite(gradient).all():
            return f"gradient of leaf {number}: {gradient.flatten()[:8].tolist()} of shape {tuple(gradient.shape)}"
    return None


def faults(
    function: Callable[..., Any], row: Row, seeds: Sequence[int], device: torch.device
) -> list[tuple[int, str]]:
    """Seeds of the cases that did not end well, and what was wrong."""
    found = []
    for seed in seeds:
        arguments = to_device(row.arguments(Draw(seed)), device)
        try:
            what = fault(function, arguments, seed)
        except (RuntimeError, ValueError) as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if what is not None:
            found.append((seed, what))
    return found


def main() -> int:
    """Prints each function with its cases, and a sum; 1 if one did not end well."""
    from _extreme_rows import KERNEL_ROWS, ROWS, kernels

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="of each function")
    parser.add_argument("--kernels", action="store_true", help="the kernels instead of functional/")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", default="", help="functions whose names contain this")
    options = parser.parse_args()
    functions = kernels() if options.kernels else dict(public_functions())
    device = torch.device("cuda" if options.kernels and torch.cuda.is_available() else "cpu")
    functions = {name: function for name, function in functions.items() if options.only in name}
    tried = ended_well = 0
    for name, function in functions.items():
        row = {**ROWS, **KERNEL_ROWS}[name]
        call = function if options.kernels else row.call or function
        found = faults(call, row, range(options.first, options.first + options.cases), device)
        tried, ended_well = tried + options.cases, ended_well + options.cases - len(found)
        print(f"{name}: {options.cases - len(found)} of {options.cases}", *(f"  seed {s}: {w}" for s, w in found[:3]),
              sep="\n", flush=True)  # fmt: skip
    print(f"{ended_well} of {tried} inputs ended well, {len(functions)} functions on {device}.")
    return int(ended_well != tried)


if __name__ == "__main__":
    sys.exit(main())
