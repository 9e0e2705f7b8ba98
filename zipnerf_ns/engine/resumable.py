"""Nerfstudio's trainer with checkpoints that are whole, written beside the training, and resumed from exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional

from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.engine.background import BackgroundWriter
from zipnerf_ns.engine.checkpoints import Snapshot, capture_rng, latest_checkpoint, load_checkpoint_file
from zipnerf_ns.errors import InputError


class ResumableTrainer(Trainer):
    """Saves and loads everything that training depends on.

    Whoever trains calls ``checkpoints.check`` in between and ``checkpoints.wait`` at the end, which raise what went
    wrong with writing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.checkpoints = BackgroundWriter()
        self._resumed_rng: Optional[Dict[str, Any]] = None

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

    def save_checkpoint(self, step: int) -> None:
        """Writes a checkpoint so that a kill at any moment leaves either the old one or the new one, whole."""
        self.begin_checkpoint(step)
        self.checkpoints.wait()

    @check_main_thread
    def begin_checkpoint(self, step: int) -> None:
        """What :meth:`save_checkpoint` does, but the state is written while the training goes on."""
        # Before the copy is made, for there is memory for one.
        self.checkpoints.wait()
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        pipeline = getattr(self.pipeline, "module", self.pipeline)
        snapshot = Snapshot(
            {
                "step": step,
                "pipeline": pipeline.state_dict(),
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
                "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
                "scalers": self.grad_scaler.state_dict(),
                "rng": capture_rng(),
            }
        )
        only_this = self.config.save_only_latest_checkpoint
        self.checkpoints.submit(lambda: self._write_checkpoint(snapshot, step, only_this))

    def _write_checkpoint(self, snapshot: Snapshot, step: int, only_this: bool) -> None:
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        # Unfinished, it lies beside the folder, not in it: ns-eval takes any file in there for a checkpoint.
        snapshot.write(path, self.checkpoint_dir.parent / f".{path.name}.unfinished")
        if only_this:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != path:
                    other.unlink()
