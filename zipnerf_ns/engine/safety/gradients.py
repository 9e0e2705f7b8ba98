"""What a step's gradients say: their norms, and whether they may be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zipnerf_ns.errors import InputError, shorten
from zipnerf_ns.hash_table import HashTable

MOST_IN_A_ROW = 100
"""Skipped steps after which no other is expected to do better."""
MOST_LOSSES = 64
"""Names of losses that can be counted."""
ADVICE = (
    "The last good values are kept in the latest checkpoint. Go on from an earlier one (--load-checkpoint) or train "
    "anew with lower rates (--optimizers.networks.optimizer.lr, --optimizers.hash-tables.optimizer.lr), or with "
    "--pipeline.model.precision float32."
)
"""What to do where a field no longer trains."""


def gradient_norms(model: torch.nn.Module) -> dict[str, Tensor]:
    """The norm of every parameter's gradient, and their sum as the total, as Nerfstudio names them."""
    norms = {
        f"Gradients/{name}": parameter.grad.norm()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {**norms, "Gradients/Total": sum(norms.values(), torch.zeros(()))}


def update_scaler(scaler: Any) -> bool:
    """Adapts the gradients' scale; False if it fell, for then there was no update and schedules must wait."""
    if not scaler.is_enabled():
        return True
    scale = scaler.get_scale()
    scaler.update()
    return scale <= scaler.get_scale()


class NonFiniteGuard:
    """Has optimizers skip every step of which a loss or a gradient is NaN or infinite, and counts these steps.

    All of that happens on the device, also in a CUDA graph, and nobody waits for it: :meth:`look` leaves a mark, with
    which optimizers change neither values nor moments. It is torch's ``found_inf``, which its fused ones read, too.

    The gradients of hash tables are not looked at, for that would cost a pass over the largest tensors there are: where
    they alone are not finite, the optimizer counts an entry's as zero (``functional.adam``). With a scaler, which
    expects such gradients and skips by itself, losses alone are counted.

    Args:
        optimizers: of each group of parameters.
        tables: that the first of them update.
        device: of the parameters.
        has_scaler: whether gradients are scaled.
        advice: what to do after too many skipped steps.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        tables: Sequence[HashTable],
        device: torch.device,
        has_scaler: bool,
        advice: str = ADVICE,
    ) -> None:
        self.found, self._advice = torch.zeros((), device=device), advice
        self._known, self._watched = {table.hash_table for table in tables}, {} if has_scaler else optimizers
        self._names: list[str] = []
        self._waiting: set[str] = set()
        for group, optimizer in self._watched.items():
            if _reads_mark(optimizer):
                optimizer.found_inf = self.found
            else:
                self._waiting.add(group)
            self._names += [f"the gradient of {group}"] * len(self._parameters(optimizer))
        self._losses: list[str] = []
        self._nothing = torch.zeros((), device=device)
        counts = torch.zeros(2 + len(self._names) + MOST_LOSSES, dtype=torch.int64, device=device)
        self._counts, self._in_a_row, self._all, self._each = counts, counts[0], counts[1], counts[2:]
        self._told = 0

    def _parameters(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        return [each for part in optimizer.param_groups for each in part["params"] if each not in self._known]

    @torch.no_grad()
    def look(self, losses: Mapping[str, Tensor]) -> None:
        """Marks the step, after its backward pass.

        Args:
            losses: the parts of its loss, by name.
        """
        self._losses += [name for name in losses if name not in self._losses]
        # Looked up anew: where Gaussians are dropped, others take the parameters' place.
        parameters = [each for optimizer in self._watched.values() for each in self._parameters(optimizer)]
        gradients = [each.grad if each.grad is not None and each.grad.numel() else self._nothing for each in parameters]
        sizes = torch._foreach_norm(gradients, math.inf) if gradients else ()
        values = torch.stack([*sizes, *(losses.get(name, self._nothing) for name in self._losses)])
        is_bad = values * 0.0 != 0.0
        is_skipped = is_bad.any()
        self.found.copy_(is_skipped)
        self._each[: len(values)] += is_bad
        self._all += is_skipped
        self._in_a_row.add_(1).mul_(is_skipped)

    def steppable(self, groups: Sequence[str]) -> list[str]:
        """Those groups whose optimizers are to be called; of one that cannot read the mark, it is read here."""
        return [group for group in groups if group not in self._waiting or not self.found]

    def tell(self, say: Callable[[str], None]) -> None:
        """Says how many steps were skipped since the last time, and why; waits for the device.

        Args:
            say: prints a line.
        Raises:
            InputError: if there were too many in a row.
        """
        in_a_row, skipped, *each = self._counts.tolist()
        if skipped == self._told:
            return
        causes = [name for name, number in zip([*self._names, *self._losses], each, strict=False) if number]
        # Of a loss that is not finite, gradients follow.
        names = shorten(dict.fromkeys([name for name in causes if name in self._losses] or causes))
        say(f"Warning: {skipped - self._told} steps were skipped ({skipped} in all): {names} not finite.")
        self._told = skipped
        if in_a_row >= MOST_IN_A_ROW:
            raise InputError(f"{in_a_row} steps in a row were skipped: {names} not finite. {self._advice}")


def _reads_mark(optimizer: torch.optim.Optimizer) -> bool:
    is_fused = all(group.get("fused") for group in optimizer.param_groups)
    # Ours say so themselves.
    return hasattr(optimizer, "found_inf") or (isinstance(optimizer, torch.optim.Adam) and is_fused)
