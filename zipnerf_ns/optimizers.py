"""Adam for hash tables with decay inside the step, and a learning-rate schedule that any torch can load again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, Tuple, Type

import torch
from torch.optim.lr_scheduler import LambdaLR

from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig

from zipnerf_ns.functional.numerics import log_lerp


class DecayingAdam(torch.optim.Adam):
    """Adam that adds ``coefficient * rows`` to the gradient of the row ranges in a parameter's ``row_decay``.

    Hash decay (Zip-NeRF, section 5) as part of the optimiser's own pass over the table: autograd never sees a dense
    gradient for it, and every row is decayed whether or not a ray touched it. Parameters without ``row_decay`` get
    plain Adam.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A grad scaler must hand over unscaled gradients, for the decay is not scaled; Adam says otherwise when fused.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Optional[Callable] = None) -> Any:
        """One update, decay included."""
        loss = None
        if closure is not None:
            # Before the decay: it fills the gradients.
            with torch.enable_grad():
                loss = closure()
        for parameter in [p for group in self.param_groups for p in group["params"] if p.grad is not None]:
            for offset, size, coefficient in getattr(parameter, "row_decay", ()):
                rows = slice(offset, offset + size)
                parameter.grad[rows].add_(parameter[rows], alpha=coefficient)
        super().step()
        return loss


@dataclass
class DecayingAdamConfig(OptimizerConfig):
    """Adam as Zip-NeRF uses it (section 5)."""

    _target: Type = DecayingAdam
    """Optimizer class."""
    lr: float = 0.01
    """Peak learning rate."""
    eps: float = 1e-15
    """Added to the root of the second moment; tiny, because the gradients of table entries are."""
    max_norm: Optional[float] = None
    """Largest norm of the group's gradient; longer ones are scaled down. None: never."""
    betas: Tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moments."""
    fused: bool = True
    """One kernel for the whole update instead of one an operation."""


@dataclass
class WarmupLogDecayConfig(SchedulerConfig):
    """A short warm-up, then a log-linear decay to the last step."""

    _target: Type = field(default_factory=lambda: WarmupLogDecay)
    """Scheduler class."""
    lr_final: float = 0.001
    """Learning rate at the last step."""
    warmup_fraction: float = 0.1
    """Share of the training over which the rate grows to its schedule."""
    warmup_start: float = 0.01
    """Factor on the rate at the first step."""
    max_steps: Optional[int] = None
    """Step at which lr_final is reached; the trainer's max-num-iterations if not given."""


class WarmupLogDecay(Scheduler):
    """lr(f) = exp(lerp(log lr, log lr_final, f)), times a sine warm-up (mip-NeRF 360's supplement)."""

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

        def factor(step: int) -> float:
            progress = step / max(config.max_steps, 1)
            warmup = 1.0
            if config.warmup_fraction > 0.0:
                ramp = math.sin(0.5 * math.pi * min(progress / config.warmup_fraction, 1.0))
                warmup = config.warmup_start + (1.0 - config.warmup_start) * ramp
            return float(warmup * log_lerp(progress, lr_init, config.lr_final) / lr_init)

        return LambdaLR(optimizer, lr_lambda=factor)
