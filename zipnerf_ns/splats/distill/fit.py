"""Gaussians fitted to pictures: schedule, growth and pruning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zipnerf_ns.engine.checkpoints import capture_rng, restore_rng
from zipnerf_ns.engine.progress import format_duration
from zipnerf_ns.engine.safety.gradients import NonFiniteGuard
from zipnerf_ns.errors import InputError
from zipnerf_ns.render.metrics import WINDOW
from zipnerf_ns.splats.distill.growth import gathered_errors, halve
from zipnerf_ns.splats.distill.loss import loss_gradient
from zipnerf_ns.splats.distill.views import Target
from zipnerf_ns.splats.files.compact import palette, visibility
from zipnerf_ns.splats.files.sog import MOST_SH
from zipnerf_ns.splats.gaussians import Gaussians
from zipnerf_ns.splats.rasterizer import Rasterizer

FIRST_SHARE, GROW_AT, GROW_VIEWS = 0.5, (0.08, 0.16, 0.25, 0.35), 64
"""Share of the Gaussians that a fit begins with; shares of the whole after which others come, where most is wrong in so
many views."""
RATES = {"means": 3.2e-4, "scales": 0.02, "quats": 4e-3, "opacities": 0.2, "sh0": 0.01, "shN": 5e-4}
"""First learning rates: twice that of 3DGS, which takes more steps, for the means, and times the cameras' extent; four
times for others."""
MEANS_FALL, FALL, FALL_FROM = 0.01, 0.05, 0.5
"""What rates have become at the end, of their first values: the means' fall all the time, others' from here on."""
PRUNE_AT = 0.6
"""Share of the whole after which Gaussians that contribute little are dropped (RadSplat, 3.3)."""
SMALL_UNTIL = 0.15
"""Share of the whole in which pictures have half their size."""
DEGREE_EVERY = 0.05
"""Share of the whole after which another degree of the spherical harmonics is taken up."""
SECONDS_BETWEEN_LINES = 5.0


@dataclass
class SplatConfig:
    """Settings of the way from a field to Gaussians."""

    max_gaussians: int = 1_000_000
    """Gaussians at the most. Phones carry 1.5 million."""
    seconds: float | None = 120.0
    """Time for it all but the compilation of gsplat; None: steps say it."""
    steps: int | None = None
    """Steps instead of seconds: the same ones again give the same Gaussians, but for the order of the GPU's sums."""
    sh_degree: int = 3
    """Degree of the spherical harmonics, in which colors depend on the view: 0 to 3."""
    prune_below: float = 0.01
    """Gaussians are dropped whose share of any pixel stays below this: 0.25 makes a light scene of the fewest."""
    photo_share: float = 0.5
    """Share of the steps that look at photographs; the others look at what the field shows."""
    field_views: int | None = None
    """Views that the field renders, between and at the cameras; None: what a tenth of the time suffices for."""
    antialiased: bool = True
    """Opacities that make up for the blur of small Gaussians. Viewers must know it, and most do."""
    compact: bool = False
    """Groups of Gaussians share how their colors depend on the view, as in a .sog, which then loses little."""
    seed: int = 0
    """Seed of all that is drawn at random."""

    def __post_init__(self) -> None:
        if self.steps is not None:
            self.seconds = None
        elif self.seconds is None:
            raise InputError("give seconds or steps for the splats.")
        for name in ("seconds", "steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}: it must be positive.")
        if self.max_gaussians < 2:
            raise InputError(f"max_gaussians is {self.max_gaussians}: it must be at least 2.")
        if not 0 <= self.sh_degree <= 3:
            raise InputError(f"sh_degree is {self.sh_degree}: it must be 0 to 3.")
        for name in ("prune_below", "photo_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} is {getattr(self, name)}: it must lie between 0 and 1.")
        if self.field_views is not None and self.field_views < 0:
            raise InputError(f"field_views is {self.field_views}: it must not be negative.")


class Fit:
    """Gaussians that are being fitted.

    Args:
        gaussians: the first ones.
        photos, fields: what photographs and what the field show, each possibly empty, but not both.
        config: the settings.
        rasterizer: draws them.
        extent: of the cameras' places.
        seconds: what is left of the time; None where steps are counted.
        background: behind transparent photos; None for one drawn at random at every step.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        photos: Sequence[Target],
        fields: Sequence[Target],
        config: SplatConfig,
        rasterizer: Rasterizer,
        extent: float,
        seconds: float | None,
        background: Float[Tensor, "3"] | None = None,
    ) -> None:
        self.config, self.photos, self.fields, self.rasterizer = config, photos, fields, rasterizer
        self.device = gaussians.means.device
        self.extent, self.seconds = extent, seconds
        self.background = None if background is None else background.to(self.device)
        self.step, self.grown, self.is_pruned, self.spent = 0, 0, False, 0.0
        self.waiting: list[list[int]] = [[], []]
        """Photos and views of the field that are to be looked at before any is again."""
        self.labels: Tensor | None = None
        """Which set of coefficients above the constant each Gaussian has; None: its own."""
        self._draws = torch.Generator().manual_seed(config.seed)
        self._set(
            {"means": gaussians.means, "scales": gaussians.scales, "quats": gaussians.quats,
             "opacities": gaussians.opacities, "sh0": gaussians.sh[:, :1], "shN": gaussians.sh[:, 1:]}
        )  # fmt: skip

    def _set(self, values: dict[str, Tensor]) -> None:
        self.params = {name: nn.Parameter(value.detach().clone().contiguous()) for name, value in values.items()}
        self.optimizers = {
            name: torch.optim.Adam([value], lr=self._rate(name), eps=1e-15, fused=self.device.type == "cuda")
            for name, value in self.params.items()
        }
        self.guard = NonFiniteGuard(self.optimizers, (), self.device, False, "Try another --seed.")

    def _rate(self, name: str) -> float:
        share = min(self.share, 1.0)
        if name == "means":
            return RATES[name] * self.extent * MEANS_FALL**share
        return RATES[name] * FALL ** max(0.0, (share - FALL_FROM) / (1.0 - FALL_FROM))

    @property
    def share(self) -> float:
        """How much of the whole is done."""
        return self.spent / self.seconds if self.seconds is not None else self.step / self.config.steps

    @property
    def degree(self) -> int:
        """Of the spherical harmonics, now."""
        return min(int(self.share / DEGREE_EVERY), self.config.sh_degree)

    def _behind(self) -> Float[Tensor, "3"]:
        if self.background is not None:
            return self.background
        return torch.rand(3, generator=self._draws).to(self.device)

    def gaussians(self) -> Gaussians:
        """As they are now."""
        found = self._all()
        return found.select(found.finite())

    def _all(self) -> Gaussians:
        values = {name: value.detach() for name, value in self.params.items()}
        sh = torch.cat([values.pop("sh0"), values.pop("shN")], dim=1)
        values["quats"] = nn.functional.normalize(values["quats"], dim=-1)
        return Gaussians(**values, sh=sh, antialiased=self.config.antialiased)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` goes on from."""
        return {
            "params": {name: value.detach() for name, value in self.params.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "counts": {name: getattr(self, name) for name in ("step", "grown", "is_pruned", "spent", "waiting")},
            "labels": self.labels,
            "draws": self._draws.get_state(),
            "rng": capture_rng(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where another one was, of the same settings."""
        vars(self).update(state["counts"])
        self._set({name: value.to(self.device) for name, value in state["params"].items()})
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.labels = None if state["labels"] is None else state["labels"].to(self.device)
        self._draws.set_state(state["draws"])
        restore_rng(state["rng"])

    def run(
        self,
        say: Callable[[str], object] = lambda line: None,
        save: Callable[[], object] = lambda: None,
        stops: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Steps until the whole is done, or it is to stop; whether it is done.

        Args:
            say: takes a line of progress now and then.
            save: is called at every tenth of the whole.
            stops: whether to stop.
        Raises:
            InputError: if gradients are no longer finite.
        """
        begun, before = time.monotonic(), self.spent
        said, errors, saved = begun, [], int(10 * self.share)
        while self.share < 1.0:
            if stops():
                return False
            errors.append(self._take_step())
            now = time.monotonic()
            self.spent = before + now - begun
            if now - said > SECONDS_BETWEEN_LINES:
                said = now
                say(self._describe(errors))
                self.guard.tell(say)
                errors = []
            if int(10 * self.share) > saved and self.share < 1.0:
                saved = int(10 * self.share)
                save()
        if errors:
            say(self._describe(errors))
            self.guard.tell(say)
        return True

    def _describe(self, errors: list[Tensor]) -> str:
        psnr = -10.0 * math.log10(max(float(torch.stack(errors).nanmean()), 1e-10))
        share = min(self.share, 1.0)
        left = format_duration(self.spent * (1.0 / max(share, 1e-6) - 1.0))
        return (
            f"{share:4.0%}  step {self.step:,}  PSNR {psnr:.2f} dB of what it is fitted to  "
            f"{len(self.params['means']):,} Gaussians  {left} left"
        )

    def _choose(self) -> Target:
        is_photo = float(torch.rand((), generator=self._draws)) < self.config.photo_share
        is_photo = bool(self.photos) and (is_photo or not self.fields)
        pool, waiting = (self.photos, self.waiting[0]) if is_photo else (self.fields, self.waiting[1])
        if not waiting:
            waiting += torch.randperm(len(pool), generator=self._draws).tolist()
        return pool[waiting.pop()]

    def _take_step(self) -> Tensor:
        """One update; the mean square error of its picture."""
        share, target = self.share, self._choose()
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = self._rate(name)
        is_halved = share < SMALL_UNTIL and min(target.colors.shape[:2]) >= 4 * WINDOW
        background = self._behind()
        truth, used = target.picture(background, is_halved)
        drawn = self.rasterizer.draw(self.params, target.pinhole.halved if is_halved else target.pinhole, self.degree)
        rgb = drawn.rgb + background * (1.0 - drawn.alpha)
        seen = rgb.detach() if used is None else torch.lerp(truth, rgb.detach(), used)
        gradient = loss_gradient(seen, truth)
        rgb.backward(gradient if used is None else gradient * used)
        if self.labels is not None:
            # All that have a set learn as one, and stay equal to the last bit.
            each = self.params["shN"].grad
            whole = torch.zeros_like(each[:MOST_SH]).index_add_(0, self.labels, each)
            self.params["shN"].grad = whole[self.labels]
        error = (seen - truth).square().mean()
        self.guard.look({"the picture": error})
        for name in self.guard.steppable(list(self.optimizers)):
            self.optimizers[name].step()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.grown < len(GROW_AT) and self.share >= GROW_AT[self.grown]:
            self.grow()
        if not self.is_pruned and self.share >= PRUNE_AT:
            self.prune()
            self.is_pruned = True
            if self.config.compact:
                self.share_colors()
        return error

    def grow(self) -> None:
        """Cuts in two what gathers most of the errors: as many as bring the next part of what may still come."""
        wanted = (self.config.max_gaussians - len(self.params["means"])) // (len(GROW_AT) - self.grown)
        self.grown += 1
        if wanted < 1:
            return
        targets = [self._choose() for _ in range(GROW_VIEWS)]
        errors = gathered_errors(self.rasterizer, self.params, targets, self._behind(), self.degree)
        chosen = torch.zeros_like(errors, dtype=torch.bool)
        chosen[errors.topk(min(wanted, len(errors))).indices] = True
        halve(self.params, self.optimizers, chosen)

    @torch.no_grad()
    def prune(self) -> None:
        """Drops what contributes little to every photo, or else every view of the field, wherever something stays."""
        from gsplat.strategy.ops import remove

        largest = torch.zeros_like(self.params["opacities"])
        for target in self.photos or self.fields:
            largest = torch.maximum(largest, self.rasterizer.largest_contributions(self.params, target.pinhole))
        dropped = largest < self.config.prune_below
        if 0 < int(dropped.sum()) < len(dropped):
            remove(self.params, self.optimizers, {}, dropped)

    @torch.no_grad()
    def share_colors(self) -> None:
        """Leaves as many sets of coefficients above the constant as a .sog holds, which then are learned by all that
        have them; none where there are fewer Gaussians."""
        rest = self.params["shN"]
        if len(rest) <= MOST_SH or rest.numel() == 0:
            return
        sets, self.labels = palette(rest.flatten(1), MOST_SH, visibility(self._all()))
        rest.copy_(sets[self.labels].view_as(rest))
        moments = self.optimizers["shN"].state[rest]
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name].zero_()
