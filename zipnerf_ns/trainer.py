"""Nerfstudio's trainer with atomic checkpoints, exact resume, and a progress line."""

from __future__ import annotations

import dataclasses
import functools
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Literal, Optional, Type

import torch

from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer, TrainerConfig
from nerfstudio.utils import profiler, writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.misc import step_check
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.utils.writer import EventName, TimeWriter

from zipnerf_ns.checkpoints import capture_rng, restore_rng, write_whole
from zipnerf_ns.checks import InputError, latest_checkpoint, load_checkpoint_file
from zipnerf_ns.graph import GraphedStep
from zipnerf_ns.messages import out_of_memory, quiet_dependencies, raise_for_user
from zipnerf_ns.optimizers import WarmupLogDecayConfig
from zipnerf_ns.progress import ProgressLine, StepTimer, TrainingClock

EAGER_STEPS = 3
"""Steps before one is captured: they compile kernels, and let libraries set themselves up."""


@dataclass
class ZipNerfTrainerConfig(TrainerConfig):
    """Nerfstudio's trainer settings; only their handling differs."""

    _target: Type = field(default_factory=lambda: ZipNerfTrainer)
    """Trainer class."""
    use_cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Replay the training step as one CUDA graph; auto: where everything in it is a kernel of ours, on one GPU."""

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


def gradient_norms(model: torch.nn.Module) -> Dict[str, torch.Tensor]:
    """The norm of every parameter's gradient, and their sum as the total, as Nerfstudio names them."""
    norms = {
        f"Gradients/{name}": parameter.grad.norm()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {**norms, "Gradients/Total": sum(norms.values(), torch.zeros(()))}


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
        except torch.cuda.OutOfMemoryError:
            raise_for_user(out_of_memory(self.config))
        self._set_up_graph()

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
        if self._start_step >= total:
            CONSOLE.print(
                f"The checkpoint has all {total} steps already: nothing to train. "
                "Give a larger --max-num-iterations to go on."
            )
            return
        if self._resumed_rng is not None:
            restore_rng(self._resumed_rng)
        self.pipeline.datamanager.train_dataparser_outputs.save_dataparser_transform(
            self.base_dir / "dataparser_transforms.json"
        )
        self._init_viewer_state()
        self.clock = TrainingClock(self._synchronize)
        self.progress = ProgressLine(
            self._start_step, total, self.clock, lambda line: CONSOLE.log(line, highlight=False)
        )
        self._log_timer = StepTimer(self.clock)
        self.step = max(self._start_step - 1, 0)
        self.stop_training = False
        with TimeWriter(writer, EventName.TOTAL_TRAIN_TIME):
            try:
                self._train_steps(self._start_step, total)
            except torch.cuda.OutOfMemoryError:
                self.shutdown()
                raise_for_user(out_of_memory(self.config))
        self._after_train()

    def _train_steps(self, first: int, total: int) -> None:
        """The loop. Between two logged steps nothing in it waits for the device, and no event is written."""
        datamanager = self.pipeline.datamanager
        for step in range(first, total):
            self._wait_while_paused()
            if self.stop_training:
                return
            self.step = step
            with self.train_lock:
                # Switching the mode visits every module: only after something has switched it off.
                if not (self.pipeline.training and self.pipeline.model.training):
                    self.pipeline.train()
                self._run_callbacks(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
                result = self.train_iteration(step)
                self._run_callbacks(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
            rays = datamanager.get_train_rays_per_batch() * self.world_size
            self._update_viewer_state(step)
            if self._is_logged(step):
                self._log(step, rays, result)
            if self.local_rank == 0:
                self.progress.update(step, rays, result[2])
            if self._is_evaluated(step) and datamanager.eval_dataset:
                with self.clock.pause(), self.train_lock:
                    self.eval_iteration(step)
            if step_check(step, self.config.steps_per_save):
                with self.clock.pause():
                    self.save_checkpoint(step)
            # The viewer's thread writes events, too.
            if writer.EVENT_STORAGE:
                writer.write_out_storage()

    @property
    def _device_type(self) -> str:
        return "cuda" if self.device.startswith("cuda") else "cpu"

    def _synchronize(self) -> None:
        """Waits for the device."""
        if self._device_type == "cuda":
            torch.cuda.synchronize(self.device)

    def _wait_while_paused(self) -> None:
        """Until the viewer's pause is over, or the training is to stop."""
        if self.training_state != "paused":
            return
        with self.clock.pause(recurs=False):
            while self.training_state == "paused" and not self.stop_training:
                time.sleep(0.01)

    def _run_callbacks(self, step: int, location: TrainingCallbackLocation) -> None:
        for callback in self.callbacks:
            callback.run_callback_at_location(step, location)

    def _is_logged(self, step: int) -> bool:
        return step_check(step, self.config.logging.steps_per_log, run_at_zero=True)

    def _is_evaluated(self, step: int) -> bool:
        config = self.config
        intervals = (config.steps_per_eval_batch, config.steps_per_eval_image, config.steps_per_eval_all_images)
        return any(step_check(step, interval) for interval in intervals)

    @profiler.time_function
    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step: loss, backward pass, and an update of the groups whose gradients are complete.

        Nerfstudio's also writes the learning rates and reads the scale of a scaler that is switched off.
        """
        every = {name: self.gradient_accumulation_steps[name] for name in self.optimizers.parameters}
        model = self.pipeline.model
        # What was true of the model at set-up need not be any more: its configuration can be changed between steps.
        is_eager = self._graph is None or not model.uses_kernels or model.monitor.is_due()
        if is_eager or self._eager_steps < EAGER_STEPS:
            self._eager_steps += 1
            self.optimizers.zero_grad_some([name for name, steps in every.items() if step % steps == 0])
            loss, loss_dict, metrics_dict = self._losses_and_gradients(step)
        else:
            key = self.pipeline.datamanager.get_train_rays_per_batch(), model.num_active_levels()
            loss, loss_dict, metrics_dict = self._graph(key, lambda: self._losses_and_gradients(step))
        complete = [name for name, steps in every.items() if step % steps == steps - 1]
        self.optimizers.optimizer_scaler_step_some(self.grad_scaler, complete)
        if self.config.log_gradients and self._is_logged(step):
            metrics_dict.update(gradient_norms(self.pipeline.model))
        if not complete or self._update_scaler():
            for scheduler in self.optimizers.schedulers.values():
                scheduler.step()
        return loss, loss_dict, metrics_dict

    def _losses_and_gradients(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """The loss, its parts and the metrics, detached; the gradients are left in the parameters."""
        with torch.autocast(self._device_type) if self.mixed_precision else nullcontext():
            _, loss_dict, metrics_dict = self.pipeline.get_train_loss_dict(step=step)
            loss = functools.reduce(torch.add, loss_dict.values())
        self.grad_scaler.scale(loss).backward()
        return loss.detach(), {name: value.detach() for name, value in loss_dict.items()}, metrics_dict

    def _set_up_graph(self) -> None:
        """Decides whether steps are replayed from a CUDA graph, and says so.

        Raises:
            SystemExit: if graphs are asked for and cannot be; the message says what keeps them.
        """
        self._graph: Optional[GraphedStep] = None
        self._eager_steps = 0
        wanted = self.config.use_cuda_graphs
        reason = self._why_no_graph()
        if wanted == "on" and reason is not None:
            raise_for_user(InputError(f"--use-cuda-graphs on cannot be: {reason} Choose auto or off."))
        if wanted == "off" or reason is not None:
            return
        CONSOLE.log("Training steps are replayed as one CUDA graph.")
        groups = self.optimizers.parameters.values()
        self._graph = GraphedStep([parameter for group in groups for parameter in group])

    def _why_no_graph(self) -> Optional[str]:
        """What in this training cannot be captured, as a sentence; None if nothing."""
        if self._device_type != "cuda":
            return f"the device is {self.device}."
        if self.world_size > 1:
            return "several GPUs exchange gradients during the backward pass."
        if any(steps != 1 for steps in self.gradient_accumulation_steps.values()):
            return "gradients are accumulated over steps."
        if self.grad_scaler.is_enabled():
            return "the gradients' scale changes during training."
        if self.pipeline.model.config.implementation == "tcnn" or not self.pipeline.model.uses_kernels:
            return "the implementation is not triton."
        if self.pipeline.model.config.camera_optimizer.mode == "SE3":
            return "camera optimiser mode SE3 copies from the CPU at every step, which mode SO3xR3 does not."
        if not getattr(self.pipeline.datamanager, "is_capturable", False):
            return "pixels or rays are not made by our kernels on the GPU."
        return None

    def _update_scaler(self) -> bool:
        """Adapts the gradients' scale; False if it fell, for then there was no update and schedules must wait."""
        if not self.grad_scaler.is_enabled():
            return True
        scale = self.grad_scaler.get_scale()
        self.grad_scaler.update()
        return scale <= self.grad_scaler.get_scale()

    @check_main_thread
    def _log(self, step: int, rays: int, result: TRAIN_INTERATION_OUTPUT) -> None:
        """Writes what Nerfstudio writes of a step, with times that include the device's."""
        # Nerfstudio's local writer, which is off by default, looks there for the step.
        writer.GLOBAL_BUFFER["step"] = step
        seconds = self._log_timer.lap(step + 1)
        if seconds is not None:
            writer.put_time(EventName.ITER_TRAIN_TIME, seconds, step=step, update_eta=True)
            writer.put_time(EventName.TRAIN_RAYS_PER_SEC, rays / seconds, step=step)
        for name, scheduler in self.optimizers.schedulers.items():
            writer.put_scalar(name=f"learning_rate/{name}", scalar=scheduler.get_last_lr()[0], step=step)
        loss, loss_dict, metrics_dict = result
        writer.put_scalar(name="Train Loss", scalar=loss, step=step)
        writer.put_dict(name="Train Loss Dict", scalar_dict=loss_dict, step=step)
        writer.put_dict(name="Train Metrics Dict", scalar_dict=metrics_dict, step=step)
        memory = torch.cuda.max_memory_allocated() / 2**20
        writer.put_scalar(name="GPU Memory (MB)", scalar=memory, step=step)

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
        # Unfinished, it lies beside the folder, not in it: ns-eval takes any file in there for a checkpoint.
        write_whole(state, path, self.checkpoint_dir.parent / f".{path.name}.unfinished")
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != path:
                    other.unlink()
