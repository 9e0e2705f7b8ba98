"""The optimizer of cameras' corrections: Adam in CamP's coordinates, without the drift that no photo tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.optimizers import OptimizerConfig, Optimizers

from zipnerf_ns.cameras.corrections import preconditioner
from zipnerf_ns.cameras.lens import NO_LENS, LensCorrections
from zipnerf_ns.errors import say
from zipnerf_ns.functional import camera_motion
from zipnerf_ns.functional.camera_motion import Preconditioner


class CameraAdam(torch.optim.Adam):
    """Adam for corrections of cameras, in coordinates in which a unit moves what a camera sees by a radian (CamP).

    Unlike torch's it has one second moment for all coordinates of a camera, the mean of theirs: what the photos hardly
    tell is hardly moved, where a root of each would make every coordinate's noise as large as another's signal.
    And steps are shortened by the share of the first moment's square that is noise (James and Stein's estimate of a
    mean): Adam's random walk about a pose that is right already would blur what is learned meanwhile. Last, a camera is
    drawn to its given pose until it is away from it: most are right, and a scene that is not sharp yet would have them
    elsewhere, but a pose that is wrong is no reason to stay near.

    The state is torch.optim.Adam's, of the preconditioned coordinates; ``step`` lies on the CPU. Where ``found_inf`` is
    set, as torch's grad scaler sets it, a step changes nothing while that is 1; it is read on the device.

    Args:
        params: corrections ``[cameras, 6]``: a shift and a turn each.
        lr: radians by which a step moves what a camera sees.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        caution: how much larger than noise would make it the first moment's square must be; 0 takes full steps.
        pull: share of a full step by which every step draws a camera back to its given pose.
        reach: the root mean square of a camera's coordinates, radians, at which half of the pull is left.
    Raises:
        ValueError: for a negative caution or pull, or a reach that is not positive.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
        caution: float = 1.0,
        pull: float = 0.2,
        reach: float = 0.001,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        if not (caution >= 0.0 and pull >= 0.0 and reach > 0.0):
            raise ValueError(f"caution ({caution}) and pull ({pull}) must not be negative, reach ({reach}) positive.")
        self.caution, self.pull, self.reach = caution, pull, reach
        self.found_inf: Tensor | None = None
        self._preconditioners: dict[Tensor, Preconditioner] = {}

    def adopt(self, parameter: Tensor, preconditioner: Preconditioner) -> None:
        """Says which cameras a parameter corrects; required of every parameter before its first step."""
        self._preconditioners[parameter] = Preconditioner(*(part.to(parameter) for part in preconditioner))

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        """One update of every parameter that has a gradient; nothing in it waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)
        return loss

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        preconditioner, state = self._preconditioners[parameter], self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        # What is not finite counts as zero: by way of the gauge it would reach every camera.
        gradient = camera_motion.apply(preconditioner.matrix, parameter.grad.nan_to_num(0.0, 0.0, 0.0))
        # A checkpoint may have brought it to the device.
        state["step"] = state["step"].cpu() + 1.0
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        # All of a step or nothing.
        taken = torch.ones_like(gradient[0, 0]) if self.found_inf is None else (1.0 - self.found_inf).to(gradient)
        state["exp_avg"].lerp_(gradient, (1.0 - beta1) * taken)
        state["exp_avg_sq"].lerp_(gradient.square(), (1.0 - beta2) * taken)
        mean = state["exp_avg"] / (1.0 - beta1**step)
        square = state["exp_avg_sq"].mean(dim=-1, keepdim=True) / (1.0 - beta2**step)
        # Variance of a mean with such weights, over that of a value.
        noise = (1.0 - beta1) / (1.0 + beta1) * (1.0 + beta1**step) / (1.0 - beta1**step)
        tiny = torch.finfo(square.dtype).tiny
        told = 1.0 - self.caution * noise * square / mean.square().mean(dim=-1, keepdim=True).clamp_min(tiny)
        direction = mean * told.clamp_min(0.0) / (square.sqrt() + group["eps"])
        values = camera_motion.apply(preconditioner.inverse, parameter) - group["lr"] * direction
        size = values.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(tiny)
        back = group["lr"] * self.pull / (1.0 + (size / self.reach).square())
        values = values * (1.0 - back / size).clamp_min(0.0)
        moved = camera_motion.apply(preconditioner.matrix, preconditioner.remove_gauge(values))
        parameter.copy_(torch.where(taken > 0.0, moved, parameter))


def adopt_cameras(optimizers: Optimizers, cameras: Cameras, lens: LensCorrections | None) -> None:
    """Says to the optimizers of cameras and of lenses, where they are a :class:`CameraAdam`, what they correct.

    Args:
        optimizers: of the groups "camera_opt" and "lens", where cameras and lenses are learned.
        cameras: of the training.
        lens: theirs.
    """
    if lens is not None and len(lens.known) == 0:
        say(NO_LENS)
    makers = {"camera_opt": lambda: preconditioner(cameras), "lens": lambda: lens.preconditioner()}
    for name, make in makers.items():
        if isinstance(adam := optimizers.optimizers.get(name), CameraAdam):
            (parameter,) = optimizers.parameters[name]
            adam.adopt(parameter, make())


@dataclass
class CameraAdamConfig(OptimizerConfig):
    """Adam for corrections of cameras, preconditioned as in CamP."""

    _target: type = CameraAdam
    """Optimizer class."""
    lr: float = 5e-4
    """Peak learning rate: radians by which a step moves what a camera sees."""
    eps: float = 1e-15
    """Added to the root of the second moment."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moments."""
    caution: float = 1.0
    """How much of a step is taken for noise: 1 as much as chance explains, 0 none."""
    pull: float = 0.2
    """Share of a full step by which every step draws a camera back to its given pose; 0 for poses that are bad."""
    reach: float = 0.001
    """Radians of correction at which half of the pull is left; beyond, it lets go."""
