"""What processes that train one model tell each other: initial values once, gradients at every step.

Every process draws rays of its own, and then takes the same step: the gradients are means over all rays, the
optimizer's state and the tables' statistics follow from them, and nothing else need be exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zipnerf_ns.engine.parallel.processes import PAUSE
from zipnerf_ns.hash_table import HashTable


class GradientExchange:
    """Gives all processes the first one's values, and averages gradients over them within a backward pass.

    A table's gradient goes as soon as it is there, beside the rest of the backward pass: the rendered round's, which is
    nearly all of what is exchanged, comes first, and the proposals' follow. Everything else, a thousandth of it, goes
    in one buffer at the end. Nothing waits for the device, and a CUDA graph can hold all of it.

    Args:
        model: of the same shape everywhere.
        tables: of the model.
        groups: its parameters that receive gradients, in the same order everywhere.
    """

    def __init__(
        self, model: nn.Module, tables: Sequence[HashTable], groups: Mapping[str, Sequence[nn.Parameter]]
    ) -> None:
        large = {table.hash_table for table in tables}
        self._others = [parameter for group in groups.values() for parameter in group if parameter not in large]
        self._begun: list[dist.Work] | None = None
        self._group = _make_group(tables[0].hash_table.device)
        for parameter in large:
            parameter.register_post_accumulate_grad_hook(self._begin)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0, self._group)
        for table in tables:
            # Torch does not count what it receives as a write.
            table.forget()

    @contextmanager
    def averaging(self, loss: Tensor) -> Iterator[Tensor]:
        """Within, the backward pass of what this gives leaves gradients of the loss's mean over all processes.

        Args:
            loss: this process's, a mean over its rays. All processes come here equally often.
        """
        self._begun = []
        try:
            yield loss / dist.get_world_size()
            self._sum_others()
        finally:
            for work in self._begun:
                work.wait()
            self._begun = None

    def _begin(self, table: Tensor) -> None:
        # Outside of a step's own backward pass nobody else takes part.
        if self._begun is not None:
            self._begun.append(dist.all_reduce(table.grad, group=self._group, async_op=True))

    @torch.no_grad()
    def _sum_others(self) -> None:
        gradients = [parameter.grad for parameter in self._others if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        # On the same stream as the tables', as torch has it of what is waited for.
        dist.all_reduce(flat, group=self._group, async_op=True).wait()
        sums = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(old) for part, old in zip(sums, gradients, strict=True)])


def _make_group(device: torch.device) -> dist.ProcessGroup:
    """All processes; on a GPU, what they exchange goes before kernels of the backward pass that wait beside it."""
    options = None
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
        options._timeout = PAUSE
    return dist.new_group(timeout=PAUSE, pg_options=options)
