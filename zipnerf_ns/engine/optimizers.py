"""Adam for hash tables, decay and statistics in the same pass; a learning-rate schedule that any torch loads again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.lr_scheduler import LambdaLR

from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig

from zipnerf_ns.functional.adam import TableUpdate
from zipnerf_ns.functional.numerics import log_lerp
from zipnerf_ns.hash_table import HashTable
from zipnerf_ns.ops import resolve_ops

TableImplementation = Literal["auto", "triton", "torch"]

MOST_SCALED = 8.0
"""Factor by which rates are scaled at most to the length of a training."""

SHORT = 0.25
"""Share of ``full_steps`` below which rates fall linearly: 2,000 steps of bonsai end 0.27 dB better by it. Longer
trainings were not measured."""

OTHER_OPTIONS = ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable")
"""What torch's Adam can do beside: a group of a foreign checkpoint may ask for it."""


class DecayingAdam(torch.optim.Adam):
    """Adam that updates hash tables in one pass each: hash decay, update and what follows from the new values.

    Which parameters are tables it is told by :meth:`adopt`. A table's decay (Zip-NeRF, section 5) goes into the
    gradient within the update: autograd never sees a dense gradient for it, and every row is decayed whether or not a
    ray touched it. Other parameters get torch's Adam, all of them in one call.

    Where ``found_inf`` is set, as torch's grad scaler sets it for other optimizers, a step changes nothing while that
    is 1: neither values nor moments. It is read on the device, but for parameters that are not fused.

    The state of every parameter is torch.optim.Adam's, so either loads the other's checkpoints. A table's ``step`` lies
    on the CPU, where the bias corrections are computed.

    Args:
        params: parameters or groups of them, as torch takes them.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        fused: one kernel for all parameters that are not tables, instead of one an operation.
        implementation: of tables' updates: "triton" (CUDA), "torch" (anywhere) or "auto".
    Raises:
        ValueError: for a group with another option of torch's Adam.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
        fused: bool = True,
        implementation: TableImplementation = "auto",
    ) -> None:
        self.implementation = implementation
        self.found_inf: Tensor | None = None
        self._tables: list[HashTable] = []
        self._chosen: dict[tuple[torch.device, torch.dtype], Callable] = {}
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=fused)
        # A grad scaler must hand over unscaled gradients, for the decay is not scaled; Adam says otherwise when fused.
        self._step_supports_amp_scaling = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Torch's, which also refuses what this optimizer does not have."""
        super().add_param_group(param_group)
        _check_group(self.param_groups[-1])

    def adopt(self, tables: Sequence[HashTable]) -> None:
        """Takes over hash tables: decays them from now on, and leaves what they keep current after every step.

        Args:
            tables: whose parameters are in the groups.
        Raises:
            ValueError: if a table's parameter is not, or for an unknown implementation.
            RuntimeError: if the implementation cannot run on a table; the message says what it needs.
        """
        parameters = {parameter for group in self.param_groups for parameter in group["params"]}
        if not {table.hash_table for table in tables} <= parameters:
            raise ValueError("a hash table's parameter is not among those that the optimizer updates.")
        for table in tables:
            self._update_of(table.hash_table)
            table.is_decayed = True
        self._tables += [table for table in tables if table not in self._tables]
        self._keep_steps_on_cpu()

    def __getstate__(self) -> dict[str, Any]:
        # Of copies, torch keeps only its own attributes.
        names = ("implementation", "found_inf", "_tables", "_chosen", "_step_supports_amp_scaling")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over a state from a checkpoint, which may be torch's Adam's, or from a copy."""
        super().__setstate__(state)
        for group in self.param_groups:
            _check_group(group)
        for table in self._tables:
            table.is_decayed = True
        self._keep_steps_on_cpu()

    def _keep_steps_on_cpu(self) -> None:
        """Fused Adam keeps the step on the device: read there, every step of training would wait for it."""
        for table in self._tables:
            state = self.state.get(table.hash_table)
            if state:
                state["step"] = state["step"].to("cpu", torch.float32)

    def _update_of(self, table: Tensor) -> Callable:
        key = table.device, table.dtype
        if key not in self._chosen:
            self._chosen[key] = resolve_implementation(self.implementation, table)
        return self._chosen[key]

    def _state_of(self, parameter: Tensor, step_device: Any) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=step_device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tables = {table.hash_table: table for table in self._tables}
        for group in self.param_groups:
            due = [parameter for parameter in group["params"] if parameter.grad is not None]
            self._step_tables(group, [tables[parameter] for parameter in due if parameter in tables])
            self._step_others(group, [parameter for parameter in due if parameter not in tables])
        return loss

    def make_moments(self) -> None:
        """Makes those of tables, which the first update would put where its step has had something for a while: large
        pieces of memory that then stay taken."""
        for table in self._tables:
            self._state_of(table.hash_table, "cpu")

    @torch.no_grad()
    def rehearse(self) -> None:
        """Updates a copy of every table, for the launches that this takes."""
        for table in self._tables:
            copy, half = torch.empty_like(table.hash_table), table.half_buffer()
            half = None if half is None else torch.empty_like(half)
            update = TableUpdate(copy, copy, copy, copy, 1, table.grid, table.decay, half, self.found_inf)
            lr, betas, eps = (self.defaults[name] for name in ("lr", "betas", "eps"))
            self._update_of(table.hash_table)([update], lr, betas, eps)

    def _step_tables(self, group: dict[str, Any], tables: list[HashTable]) -> None:
        batches: dict[tuple[Callable, torch.device], list[tuple[HashTable, TableUpdate]]] = {}
        for table in tables:
            parameter = table.hash_table
            state = self._state_of(parameter, "cpu")
            state["step"] += 1.0
            update = TableUpdate(
                parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], int(state["step"]),
                table.grid, table.decay, table.half_buffer(), self.found_inf,
            )  # fmt: skip
            batches.setdefault((self._update_of(parameter), parameter.device), []).append((table, update))
        for (decayed_adam_, _), batch in batches.items():
            updates = [update for _, update in batch]
            summaries = decayed_adam_(updates, group["lr"], group["betas"], group["eps"])
            for (table, _), summary in zip(batch, summaries, strict=True):
                table.record(summary)

    def _step_others(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not parameters or (self.found_inf is not None and not group["fused"] and self.found_inf):
            return
        # Where torch's Adam has them: fused on the parameter's device, or else on the CPU.
        states = [self._state_of(p, p.device if group["fused"] else "cpu") for p in parameters]
        adam(
            parameters,
            [parameter.grad for parameter in parameters],
            *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")),
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
            foreach=group["foreach"],
            fused=group["fused"],
            found_inf=self.found_inf if group["fused"] else None,
        )


def _check_group(group: dict[str, Any]) -> None:
    unknown = [name for name in OTHER_OPTIONS if group.get(name)]
    if unknown:
        raise ValueError(f"DecayingAdam has no {', '.join(unknown)}: leave it out.")


def resolve_implementation(implementation: str, table: Tensor) -> Callable:
    """The function behind ``functional.adam.decayed_adam_``'s signature that an implementation's name stands for.

    Raises:
        ValueError: for a name that is not an implementation.
        RuntimeError: if the implementation cannot run on the table; the message says what it needs.
    """
    if table.dtype != torch.float32:
        if implementation == "triton":
            raise RuntimeError(f"The Triton optimizer updates float32 tables; the hash table is {table.dtype}.")
        implementation = "torch" if implementation == "auto" else implementation
    return resolve_ops(implementation, table.device, " of the optimizer").decayed_adam_


@dataclass
class DecayingAdamConfig(OptimizerConfig):
    """Adam as Zip-NeRF uses it (section 5)."""

    _target: type = DecayingAdam
    """Optimizer class."""
    lr: float = 0.01
    """Peak learning rate."""
    eps: float = 1e-15
    """Added to the root of the second moment; tiny, because the gradients of table entries are."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moments."""
    fused: bool = True
    """One kernel for the whole update of the networks instead of one an operation."""
    implementation: TableImplementation = "auto"
    """Who updates hash tables: "triton" (CUDA), "torch" (anywhere) or "auto"; networks are always torch's."""


@dataclass
class WarmupLogDecayConfig(SchedulerConfig):
    """A short warm-up, then a decay to the last step: log-linear, in very short trainings linear."""

    _target: type = field(default_factory=lambda: WarmupLogDecay)
    """Scheduler class."""
    lr_final: float = 0.001
    """Learning rate at the last step."""
    full_steps: int | None = None
    """Length of training from which lr_final is the last rate. A shorter one, which has no time for small steps, ends
    higher by the cube of its share of that length, at most at a tenth of the first; one of less than a quarter keeps
    the peak for its first half and then falls linearly, to a thousandth. Always lr_final if not given."""
    hold_fraction: float = 0.0
    """Share of the training before the warm-up, over which the rate is zero."""
    warmup_fraction: float = 0.1
    """Share of the training over which the rate then grows to its schedule."""
    warmup_start: float = 0.01
    """Factor on the rate at the first step."""
    max_steps: int | None = None
    """Step at which lr_final is reached; the trainer's max-num-iterations if not given."""
    for_steps: int | None = None
    """Length of training that the rates are meant for: in others they are scaled, at most eightfold, so that all steps
    together go as far; as they are if not given."""


def complete_schedules(groups: dict[str, Any], steps: int) -> dict[str, Any]:
    """The configuration of optimizers whose schedules end with the training.

    Args:
        groups: the trainer's configuration of optimizers.
        steps: of the training.
    """
    completed = {}
    for name, group in groups.items():
        scheduler = group["scheduler"]
        if isinstance(scheduler, WarmupLogDecayConfig) and scheduler.max_steps is None:
            scheduler = dataclasses.replace(scheduler, max_steps=steps)
        completed[name] = {**group, "scheduler": scheduler}
    return completed


class WarmupLogDecay(Scheduler):
    """lr(f) = exp(lerp(log lr, log lr_final, f)), times a sine warm-up (mip-NeRF 360's supplement); in very short
    trainings lr clip(2 - 2f, 0.001, 1), times the same."""

    config: WarmupLogDecayConfig

    def get_scheduler(self, optimizer: torch.optim.Optimizer, lr_init: float) -> LambdaLR:
        """The torch scheduler.

        Every rate is a Python float: numpy's would enter the checkpoint, which torch >= 2.6 then refuses to load.

        Raises:
            ValueError: if the number of steps is not known.
        """
        config = self.config
        if config.max_steps is None:
            raise ValueError("WarmupLogDecayConfig.max_steps is not set and no trainer filled it in.")

        final, scale, share = config.lr_final, 1.0, 1.0
        if config.full_steps is not None:
            share = min(max(config.max_steps, 1) / config.full_steps, 1.0)
            final = max(final, min(final / share**3, lr_init / 10.0))
        if config.for_steps is not None:
            scale *= min(max(config.for_steps / max(config.max_steps, 1), 1.0 / MOST_SCALED), MOST_SCALED)

        def factor(step: int) -> float:
            progress = step / max(config.max_steps, 1)
            if progress < config.hold_fraction:
                return 0.0
            warmup = 1.0
            if config.warmup_fraction > 0.0:
                ramp = math.sin(0.5 * math.pi * min((progress - config.hold_fraction) / config.warmup_fraction, 1.0))
                warmup = config.warmup_start + (1.0 - config.warmup_start) * ramp
            is_short = share < SHORT
            linear, log_linear = 2.0 - 2.0 * progress, log_lerp(progress, lr_init, final) / lr_init
            return float(scale * warmup * (min(max(linear, 0.001), 1.0) if is_short else log_linear))

        return LambdaLR(optimizer, lr_lambda=factor)
