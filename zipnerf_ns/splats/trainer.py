"""The method ``zipnerf-splat``: a field is trained, then Gaussians are distilled from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation

from zipnerf_ns.engine.messages import command_line, tell
from zipnerf_ns.engine.trainer import ZipNerfTrainer, ZipNerfTrainerConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.distill.distill import Stopped
from zipnerf_ns.splats.distill.fit import SplatConfig
from zipnerf_ns.splats.making import UNFINISHED, make_splats
from zipnerf_ns.splats.rasterizer import prepare_gsplat


@dataclass
class SplatTrainerConfig(ZipNerfTrainerConfig):
    """A field's training, and what is made of it at its end."""

    _target: type = field(default_factory=lambda: SplatTrainer)
    """Trainer class."""
    splats: SplatConfig = field(default_factory=SplatConfig)
    """The way from the field to splats."""


class SplatTrainer(ZipNerfTrainer):
    """A field's trainer that ends with its splats."""

    config: SplatTrainerConfig

    def setup(self, test_mode: Any = "val") -> None:
        """The field's, once it is known that its splats can be made here."""
        with tell(self.config):
            if self.world_size > 1:
                raise InputError(
                    "splats are made on one GPU. Train zipnerf on several, then python -m zipnerf_ns.tools.splat."
                )
            prepare_gsplat(torch.device(self.device), self._say)
        super().setup(test_mode)

    def _after_train(self) -> None:
        """Makes the splats once the field is saved, before its trainer waits with the viewer."""
        end = TrainingCallbackLocation.AFTER_TRAIN
        self.callbacks = [*self.callbacks, TrainingCallback([end], lambda step: self._make_splats())]
        super()._after_train()

    def _make_splats(self) -> None:
        # A graph's memory is wanted.
        self.gradients.forget()
        config, unfinished = self.config, self.base_dir / UNFINISHED
        try:
            make_splats(
                self.pipeline, config.splats, config.output_dir, config.experiment_name, unfinished, self._say,
                stops=lambda: self.stops.received is not None,
            )  # fmt: skip
        except Stopped:
            resume = ["--load-config", self.base_dir / "config.yml", "--resume"]
            self._say(f"Stopped. To go on: {command_line('python', '-m', 'zipnerf_ns.tools.splat', *resume)}")
            raise SystemExit(self.stops.status) from None
