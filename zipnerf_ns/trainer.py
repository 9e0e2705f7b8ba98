"""Nerfstudio's trainer with atomic checkpoints, exact resume, and a progress line."""

from __future__ import annotations

import dataclasses
import os
import random
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional, Type

import numpy as np
import torch

from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer, TrainerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.utils.writer import EventName

from zipnerf_ns.checks import InputError, latest_checkpoint, load_checkpoint_file
from zipnerf_ns.optimizers import WarmupLogDecayConfig
from zipnerf_ns.progress import ProgressLine


@dataclass
class ZipNerfTrainerConfig(TrainerConfig):
    """Nerfstudio's trainer settings; only their handling differs."""

    _target: Type = field(default_factory=lambda: ZipNerfTrainer)
    """Trainer class."""

    def save_config(self) -> None:
        """Writes config.yml, unless that would overwrite another run's.

        Raises:
            SystemExit: if the run's folder holds checkpoints and the run does not resume from there.
        """
        folder = self.get_checkpoint_dir()
        source = self.load_dir or (self.load_checkpoint and self.load_checkpoint.parent)
        resumes_here = source is not None and source.resolve() == folder.resolve()
        if not resumes_here and any(folder.glob("*.ckpt")):
            raise_for_user(
                InputError(
                    f"{folder} holds checkpoints of an earlier run. Resume it with --load-dir {folder}, "
                    "or choose another --timestamp or --experiment-name."
                )
            )
        super().save_config()


def quiet_dependencies() -> None:
    """Drops warnings that Nerfstudio's own code causes under newer versions of torch: nothing a user could mend."""
    for message in ("Using a non-tuple sequence", "Converting a tensor with requires_grad", "`torch.cuda.amp"):
        warnings.filterwarnings("ignore", message=message)


def raise_for_user(error: InputError) -> None:
    """Prints an input error without a stack trace and ends the program."""
    CONSOLE.print("Error:", style="bold red", end=" ")
    # Without markup: a path may contain brackets.
    CONSOLE.print(str(error), markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(1) from None


class ZipNerfTrainer(Trainer):
    """Trainer whose interrupted and resumed run equals the uninterrupted one."""

    config: ZipNerfTrainerConfig

    def setup(self, test_mode: Any = "val") -> None:
        """Nerfstudio's set-up; what is wrong with the input is told in one line."""
        quiet_dependencies()
        self._resumed_rng: Optional[Dict[str, Any]] = None
        try:
            super().setup(test_mode)
        except InputError as error:
            raise_for_user(error)

    def setup_optimizers(self) -> Optimizers:
        """Optimisers whose schedules end with the training, if the configuration does not say otherwise."""
        config = {}
        for name, group in self.config.optimizers.items():
            scheduler = group["scheduler"]
            if isinstance(scheduler, WarmupLogDecayConfig) and scheduler.max_steps is None:
                scheduler = dataclasses.replace(scheduler, max_steps=self.config.max_num_iterations)
            config[name] = {**group, "scheduler": scheduler}
        return Optimizers(config, self.pipeline.get_param_groups())

    def train(self) -> None:
        """Trains up to max_num_iterations steps *in total*: Nerfstudio itself adds that many to a resumed run."""
        total = self.config.max_num_iterations
        remaining = total - self._start_step
        if remaining <= 0:
            CONSOLE.print(
                f"The checkpoint has all {total} steps already: nothing to train. "
                "Give a larger --max-num-iterations to go on."
            )
            return
        if self._resumed_rng is not None:
            restore_rng(self._resumed_rng)
        self.progress = ProgressLine(self._start_step, total, lambda line: CONSOLE.log(line, highlight=False))
        whole = self.config
        self.config = dataclasses.replace(whole, max_num_iterations=remaining)
        try:
            super().train()
        finally:
            self.config = whole

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step, and a line about it when one is due."""
        result = super().train_iteration(step)
        rays = self.pipeline.datamanager.get_train_rays_per_batch() * self.world_size
        if self.local_rank == 0:
            self.progress.update(step, rays, result[2])
        return result

    def eval_iteration(self, step: int) -> None:
        """Nerfstudio's evaluation; its last test PSNR also goes into the progress line."""
        super().eval_iteration(step)
        for event in reversed(writer.EVENT_STORAGE):
            if event["name"] == "Eval Images Metrics" and "psnr" in event["event"]:
                self.progress.test_psnr = float(event["event"]["psnr"])
                writer.put_scalar(name=EventName.CURR_TEST_PSNR, scalar=self.progress.test_psnr, step=step)
                return

    def _load_checkpoint(self) -> None:
        """Loads a checkpoint strictly, random state included."""
        path: Optional[Path] = self.config.load_checkpoint
        if self.config.load_dir is not None:
            step = self.config.load_step
            folder = self.config.load_dir
            path = latest_checkpoint(folder) if step is None else folder / f"step-{step:09d}.ckpt"
        if path is None:
            CONSOLE.print("No checkpoint to load: training from scratch.")
            return
        state = load_checkpoint_file(path)
        absent = sorted(set(self.optimizers.optimizers) - set(state["optimizers"]))
        if absent:
            raise InputError(
                f"checkpoint {path} lacks the optimiser state of {', '.join(absent)}: it is of another configuration. "
                "Load it with the options it was trained with (its config.yml), or train anew without it."
            )
        self._start_step = state["step"] + 1
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        self.optimizers.load_optimizers(state["optimizers"])
        if "schedulers" in state and self.config.load_scheduler:
            self.optimizers.load_schedulers(state["schedulers"])
        if "scalers" in state:
            self.grad_scaler.load_state_dict(state["scalers"])
        self._resumed_rng = state.get("rng")
        CONSOLE.print(f"Resuming after step {state['step']} of {path}")

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Writes a checkpoint so that a kill at any moment leaves either the old one or the new one, whole."""
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        pipeline = getattr(self.pipeline, "module", self.pipeline)
        state = {
            "step": step,
            "pipeline": pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            "rng": capture_rng(),
        }
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        # Beside the folder, not in it: ns-eval takes any file in there for a checkpoint.
        unfinished = self.checkpoint_dir.parent / f".{path.name}.unfinished"
        with open(unfinished, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != path:
                    other.unlink()


def capture_rng() -> Dict[str, Any]:
    """The state of every random generator that training draws from, in types that torch loads without pickle."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: Dict[str, Any]) -> None:
    """Sets the generators to a state from :func:`capture_rng`; CUDA's only where the number of devices is the same."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
