"""A training step's losses and gradients; where that can be as a CUDA graph: captured once, replayed by one launch.

A step is some two hundred launches, which take Python 15 ms; at few rays the device is done in a fifth of that.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.engine.messages import raise_for_user
from zipnerf_ns.engine.optimizers import DecayingAdam
from zipnerf_ns.engine.parallel.exchange import GradientExchange
from zipnerf_ns.engine.safety.determinism import repeatable
from zipnerf_ns.errors import InputError
from zipnerf_ns.hash_table import HashTable
from zipnerf_ns.ops import with_fallbacks

Result = TypeVar("Result")

EAGER_STEPS = 3
"""Steps before one is captured: they let libraries set themselves up."""


class GraphedStep:
    """Replays a computation that leaves gradients in some parameters.

    What the computation reads must stay in the same memory, as tensors do that are written in place. Parameters that
    have moved are noticed, and it is captured anew. Random numbers are drawn anew by every replay. Its result is the
    same tensors every time, with new values in them; what was not computed on the device stays as it was captured.

    Args:
        parameters: those that may receive gradients.
        tables: that the computation reads.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], tables: Sequence[HashTable] = ()) -> None:
        self.parameters = list(parameters)
        self.tables = list(tables)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: Hashable | None = None
        self._addresses: list[int] = []
        self._result: object = None
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = []

    def __call__(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """The computation's result; the gradients are then those of the parameters.

        Args:
            key: of everything about the computation that is not in tensors: another one captures anew.
            compute: the computation, backward pass included. The result must not hold on to autograd's graph.
        Raises:
            RuntimeError: if the computation does something that cannot be captured, such as waiting for the device.
        """
        if self._graph is None or key != self._key or self._addresses != self._find_addresses():
            self._capture(key, compute)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._result

    def forget(self) -> None:
        """Gives the graph and its memory back, the gradients among it; the next call captures anew."""
        if self._graph is not None:
            self._clear()

    def has_current_tables(self) -> bool:
        """Whether what the look-ups keep of every hash table is of its present values.

        The optimizer leaves it so. A checkpoint that was loaded since has not: a replay would read what is kept of the
        values before, and only Python, which it does without, would notice.
        """
        return all(table.is_current() for table in self.tables)

    def _find_addresses(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self.parameters]

    def _clear(self) -> None:
        self._graph, self._key, self._result, self._gradients, self._addresses = None, None, None, [], []
        for parameter in self.parameters:
            parameter.grad = None
        # What eager steps have left in torch's cache is of no use to a graph, which has memory of its own, nor a
        # graph's to them.
        torch.cuda.empty_cache()

    def _capture(self, key: Hashable, compute: Callable[[], Result]) -> None:
        self._clear()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on to use the device: the viewer's, and those that pin memory.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = compute()
        self._graph, self._key, self._result, self._addresses = graph, key, result, self._find_addresses()
        self._gradients = [(parameter, parameter.grad) for parameter in self.parameters]


def set_up_graph(trainer: Trainer) -> GraphedStep | None:
    """Decides whether a trainer's steps are replayed from a CUDA graph, and says so; None if not.

    Raises:
        SystemExit: if graphs are asked for and cannot be; the message says what keeps them.
    """
    wanted = trainer.config.use_cuda_graphs
    reason = why_no_graph(trainer)
    if wanted == "on" and reason is not None:
        raise_for_user(InputError(f"--use-cuda-graphs on cannot be: {reason} Choose auto or off."))
    if wanted == "off" or reason is not None:
        return None
    CONSOLE.log("Training steps are replayed as one CUDA graph.")
    parameters = [parameter for group in trainer.optimizers.parameters.values() for parameter in group]
    return GraphedStep(parameters, trainer.pipeline.model.zipnerf.tables())


def why_no_graph(trainer: Trainer) -> str | None:
    """What in a training cannot be captured, as a sentence; None if nothing."""
    model = trainer.pipeline.model
    if torch.device(trainer.device).type != "cuda":
        return f"the device is {trainer.device}."
    if any(steps != 1 for steps in trainer.gradient_accumulation_steps.values()):
        return "gradients are accumulated over steps."
    if trainer.grad_scaler.is_enabled():
        return "the gradients' scale changes during training."
    if model.config.implementation == "tcnn" or not model.uses_kernels:
        return "the implementation is not triton."
    if not all(table.is_decayed for table in model.zipnerf.tables()):
        return "the hash tables' optimizer is not DecayingAdam, which keeps their mean squares current."
    if not getattr(trainer.pipeline.datamanager, "is_capturable", False):
        return "pixels or rays are not made by our kernels on the GPU."
    return None


class StepGradients:
    """Computes a trainer's losses and gradients, step by step.

    Args:
        trainer: whose steps they are; it need not be set up yet.
    """

    def __init__(self, trainer: Any) -> None:
        # Without a circle a trainer's memory is free when the trainer is.
        self._trainer = weakref.proxy(trainer)
        self.exchange: GradientExchange | None = None
        self.graph: GraphedStep | None = None
        self._eager_steps = 0

    def __call__(self, step: int, begun: Sequence[str]) -> TRAIN_INTERATION_OUTPUT:
        """The loss, its parts and the metrics, detached; the gradients are left in the parameters.

        Args:
            step: its number.
            begun: groups of parameters whose gradients begin anew.
        Raises:
            InputError: if a kernel cannot be launched and nothing may take its place.
        """
        trainer, model = self._trainer, self._trainer.pipeline.model
        # What was true of the model at set-up need not be any more: its configuration can be changed between steps.
        is_eager = self.graph is None or not model.uses_kernels or model.monitor.is_due()
        if is_eager or self._eager_steps < EAGER_STEPS or not self.graph.has_current_tables():
            self._make_room()
            self._eager_steps += 1
            trainer.optimizers.zero_grad_some(list(begun))
            return self._guarded(step)
        learns_lens = model.lens is not None and model.lens.is_learned
        key = trainer.pipeline.datamanager.get_train_rays_per_batch(), model.zipnerf.num_active_levels(), learns_lens
        loss, loss_dict, metrics_dict = self.graph(key, lambda: self._guarded(step))
        # What is measured by eager steps alone is not written by a replay, whose metrics are those of its capture.
        return loss, loss_dict, {**metrics_dict, **model.monitor.shares}

    def forget(self) -> None:
        """Gives a graph's memory back."""
        if self.graph is not None:
            self.graph.forget()

    def compute(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """What calling gives, by Python and unguarded."""
        implementation = self._trainer.pipeline.model.config.implementation
        # Gradients of a failed attempt go, and with them what earlier steps may have accumulated.
        return with_fallbacks(implementation, lambda: self._attempt(step), self._trainer.optimizers.zero_grad_all)

    def _make_room(self) -> None:
        """Has an eager step find memory: a graph gives back its own, for there is none for two, and what stays from the
        process's first step on is made before it."""
        self.forget()
        adam = self._trainer.optimizers.optimizers["hash_tables"]
        if self._eager_steps == 0 and isinstance(adam, DecayingAdam):
            adam.make_moments()

    def _guarded(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        result = self.compute(step)
        # Gradients are the same in all processes, losses are not.
        self._trainer.guard.look(result[1] if self._trainer.world_size == 1 else {})
        return result

    def _attempt(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        trainer = self._trainer
        with repeatable(trainer.config.deterministic):
            with torch.autocast(torch.device(trainer.device).type) if trainer.mixed_precision else nullcontext():
                _, loss_dict, metrics_dict = trainer.pipeline.get_train_loss_dict(step=step)
                loss = functools.reduce(torch.add, loss_dict.values())
            with nullcontext(loss) if self.exchange is None else self.exchange.averaging(loss) as share:
                trainer.grad_scaler.scale(share).backward()
        return loss.detach(), {name: value.detach() for name, value in loss_dict.items()}, metrics_dict
