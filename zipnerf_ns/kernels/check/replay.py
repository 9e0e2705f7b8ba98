"""Launches taken down with all that they are given, and made again, in a process that does nothing else.

A tool that watches every access to memory instruments whatever code a process brings to the GPU, and torch's own takes
it minutes. Here torch gives memory and fills it from the host, for which nothing is launched.
"""

from __future__ import annotations

import functools
import pickle
import pkgutil
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

UNWRITTEN = 0xA5
"""Each byte of new memory while launches are taken down: what is still so has not been written."""
WORD = 4
"""Bytes that are looked at together; numbers have a byte like that."""
MOST_RUNS = 64
"""Stretches of written memory that are copied one by one; where there are more, all of it is."""


class Place(NamedTuple):
    """A tensor within one of a launch's pieces of memory."""

    memory: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class Taken(NamedTuple):
    """A launch, as it was before it was made."""

    module: str
    kernel: str
    grid: tuple[int, ...]
    memories: list[Tensor]
    """Bytes of all that its tensors lie in: copies where they lay, or from :func:`read` on the CPU."""
    arguments: list[Any]
    """As it was given them, but tensors as places."""
    options: dict[str, Any]


@contextmanager
def taken_down() -> Iterator[dict[Hashable, Taken]]:
    """Within it, launches are noted in what it gives before they are made: one for each code and number of programs."""
    found: dict[Hashable, Taken] = {}

    def noting(run: Callable[..., Any]) -> Callable[..., Any]:
        def noted(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            name = kernel.fn.__module__, kernel.fn.__name__
            key = *name, grid, *map(_kind, args), *options.items()
            if not warmup and key not in found:
                found[key] = _take(name, grid, args, options)
            return run(kernel, *args, grid=grid, warmup=warmup, **options)

        return noted

    def marking(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(make)
        def marked(*args: Any, **options: Any) -> Tensor:
            made = make(*args, **options)
            made.untyped_storage().fill_(UNWRITTEN)
            return made

        return marked

    with ExitStack() as changed:
        for kind in (JITFunction, InterpretedFunction):
            changed.enter_context(patch.object(kind, "run", noting(kind.run)))
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            changed.enter_context(patch.object(owner, name, marking(getattr(owner, name))))
        yield found


def _kind(value: Any) -> Hashable:
    """What Triton's code depends on."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16
    return (value == 1, value % 16 == 0) if type(value) is int else type(value)


def _take(name: tuple[str, str], grid: tuple[int, ...], args: Sequence[Any], options: dict[str, Any]) -> Taken:
    memories: dict[int, Tensor] = {}

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        if storage.data_ptr() not in memories:
            content = torch.zeros(0, dtype=torch.uint8, device=value.device).set_(storage)
            memories[storage.data_ptr()] = content.clone()
        number = list(memories).index(storage.data_ptr())
        return Place(number, value.storage_offset(), tuple(value.shape), value.stride(), value.dtype)

    arguments = [place(value) for value in args]
    return Taken(*name, grid, list(memories.values()), arguments, options)


def write(launches: Iterable[Taken], path: Path) -> None:
    """Keeps launches for :func:`read`: first one of each kernel, then another one of each, and so on."""
    turns: dict[str, list[Taken]] = defaultdict(list)
    for launch in launches:
        turns[launch.kernel].append(launch)
    rounds = sorted(((turn, each) for of_kernel in turns.values() for turn, each in enumerate(of_kernel)),
                    key=lambda pair: pair[0])  # fmt: skip
    # In one piece: for each by itself the device would have to be waited for.
    sizes = [len(memory) for _, launch in rounds for memory in launch.memories]
    pieces = iter(torch.cat([memory for _, launch in rounds for memory in launch.memories]).cpu().split(sizes))
    kept = [launch._replace(memories=[next(pieces).clone() for _ in launch.memories]) for _, launch in rounds]
    path.write_bytes(pickle.dumps(kept))


def read(path: Path) -> list[Taken]:
    """What this program has written; of others it would run anything."""
    return pickle.loads(path.read_bytes())


def launch_again(taken: Taken, device: torch.device) -> list[Tensor]:
    """Makes a launch; gives the tensors that it was given, each in memory of its own that nobody else has written."""
    memories = [_fill(content, device) for content in taken.memories]

    def restore(value: Any) -> Any:
        if not isinstance(value, Place):
            return value
        storage = memories[value.memory].untyped_storage()
        return torch.empty(0, dtype=value.dtype, device=device).set_(storage, *value[1:4])

    arguments = [restore(value) for value in taken.arguments]
    pkgutil.resolve_name(f"{taken.module}:{taken.kernel}")[taken.grid](*arguments, **taken.options)
    return [value for value in arguments if isinstance(value, Tensor)]


def _fill(content: Tensor, device: torch.device) -> Tensor:
    made = torch.empty(len(content), dtype=torch.uint8, device=device)
    for begin, end in written(content.numpy()):
        made[begin:end].copy_(content[begin:end])
    return made


def written(content: np.ndarray) -> list[tuple[int, int]]:
    """Where bytes have been written: beginnings and ends."""
    if not len(content):
        return []
    words = np.logical_or.reduceat(content != UNWRITTEN, np.arange(0, len(content), WORD))
    edges = np.flatnonzero(np.diff(words, prepend=False, append=False)) * WORD
    runs = [(int(begin), min(int(end), len(content))) for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    return runs if len(runs) <= MOST_RUNS else [(0, len(content))]
