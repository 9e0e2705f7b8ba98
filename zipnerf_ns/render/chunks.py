"""Pictures rendered chunk by chunk, in chunks as large as the device's free memory takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nerfstudio.cameras.rays import RayBundle

from zipnerf_ns.data.memory import room_on
from zipnerf_ns.errors import say_once

KERNEL_BYTES_PER_RAY = 32_768
"""What a ray of the paper's sizes needs while the kernels render it, with a margin of two."""
TORCH_BYTES_PER_RAY = 524_288
"""The same for the torch twins, which hold every sample's corners of a level."""
CPU_BYTES = 2**31
"""Memory that a picture may take on a CPU."""
MIN_CHUNK = 256
"""Fewer rays at once would not help: what does not fit then is the model itself."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Whatever mode a model is in, it is in evaluation mode within."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


class ChunkLimit:
    """The most rays that fitted at once so far; halved whenever they do not."""

    def __init__(self) -> None:
        self.rays = 2**30

    def halve(self, rays: int) -> None:
        """Remembers that ``rays`` were too many."""
        self.rays = max(rays // 2, MIN_CHUNK)


def rays_that_fit(device: torch.device, uses_kernels: bool) -> int:
    """Rays for which the device has memory, by what may be taken of it now."""
    room = room_on(device) if device.type == "cuda" else CPU_BYTES
    return max(room // (KERNEL_BYTES_PER_RAY if uses_kernels else TORCH_BYTES_PER_RAY), MIN_CHUNK)


def render_in_chunks(
    render: Callable[[RayBundle], dict[str, Tensor]],
    device: torch.device,
    uses_kernels: bool,
    bundle: Callable[[int, int], RayBundle],
    num_rays: int,
    most: int,
    limit: ChunkLimit,
    together: int = 1,
) -> dict[str, Tensor]:
    """Outputs ``[num_rays, channels]`` of rays that are generated as they are needed.

    Args:
        render: from a flat bundle to outputs ``[rays, channels]``; what is no tensor among them is left out.
        device, uses_kernels: of what renders.
        bundle: the rays from the first number up to the second.
        num_rays: of the picture.
        most: rays at once.
        limit: what is known of the device; learns from running out of memory.
        together: rays that must not be divided between two chunks, one after the other.
    Raises:
        torch.cuda.OutOfMemoryError: if not even the smallest chunk fits.
    """
    chunk = _whole(min(most, limit.rays, rays_that_fit(device, uses_kernels)), together)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    start = 0
    while start < num_rays:
        outputs, tried = None, min(chunk, num_rays - start)
        try:
            outputs = render(bundle(start, start + tried))
        except torch.cuda.OutOfMemoryError:
            if tried <= MIN_CHUNK:
                raise
        if outputs is None:
            # Not while the error is handled: it keeps alive what the failed chunk held, and nothing would be freed.
            torch.cuda.empty_cache()
            say_once("The GPU's memory ran out while a picture was rendered: it goes on in smaller chunks of rays.")
            limit.halve(tried)
            chunk = _whole(min(chunk, limit.rays), together)
            continue
        for name, output in outputs.items():
            if isinstance(output, Tensor):
                parts[name].append(output)
        start += tried
    return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in parts.items()}


def _whole(rays: int, together: int) -> int:
    return max(rays // together, 1) * together
