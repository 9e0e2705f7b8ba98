"""Nerfstudio's trainer with exact resume, a captured step, a progress line, and what to do next."""

from __future__ import annotations

import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import tyro

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT
from nerfstudio.utils import profiler, writer
from nerfstudio.utils.comms import get_rank
from nerfstudio.utils.misc import step_check
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.utils.writer import EventName, TimeWriter

from zipnerf_ns.cameras.camera_adam import adopt_cameras
from zipnerf_ns.engine.checkpoints import ResumableTrainer, restore_rng, source_of
from zipnerf_ns.engine.checks import check_run
from zipnerf_ns.engine.messages import (
    how_to_go_on,
    interrupted,
    next_commands,
    print_unbroken,
    quiet_dependencies,
    tell,
)
from zipnerf_ns.engine.optimizers import DecayingAdam, complete_schedules
from zipnerf_ns.engine.parallel.exchange import GradientExchange
from zipnerf_ns.engine.parallel.processes import Watch, place
from zipnerf_ns.engine.progress import EventLog, ProgressLine, StepTimer, TrainingClock, log_step
from zipnerf_ns.engine.runs import RunConfig, read_trained
from zipnerf_ns.engine.safety.determinism import prepare_to_repeat
from zipnerf_ns.engine.safety.gradients import NonFiniteGuard, gradient_norms, update_scaler
from zipnerf_ns.engine.safety.room import check_room_to_train
from zipnerf_ns.engine.safety.stopping import StopRequests
from zipnerf_ns.engine.safety.viewers import pictures_end
from zipnerf_ns.engine.startup import compile_kernels, show_images
from zipnerf_ns.engine.step import StepGradients, set_up_graph
from zipnerf_ns.errors import InputError, say_once


@dataclass
class ZipNerfTrainerConfig(RunConfig):
    """Nerfstudio's trainer settings; only their handling differs."""

    _target: type = field(default_factory=lambda: ZipNerfTrainer)
    """Trainer class."""
    prompt: tyro.conf.Suppress[str | None] = None
    """Nerfstudio's, for models that read text."""
    max_num_iterations: int = 1_000_000
    """Steps of the whole training, those before a resume among them."""
    steps_per_save: int = 1000
    """Steps between checkpoints; one is written at the end in any case."""
    save_only_latest_checkpoint: bool = True
    """Keep the last checkpoint and the one before it; False keeps all."""
    steps_per_eval_batch: int = 0
    """Steps between the losses of a batch of held-out rays; 0 is never."""
    steps_per_eval_image: int = 500
    """Steps between the pictures and metrics of one held-out view; 0 is never. Needs more than the viewer in --vis."""
    steps_per_eval_all_images: int = 0
    """Steps between the mean metrics of all held-out views; 0 is never."""
    use_cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Replay the training step as one CUDA graph; auto: where everything in it is a kernel of ours."""
    deterministic: bool = False
    """The same bits whenever the same training is run on the same GPU; a step then takes longer."""


class ZipNerfTrainer(ResumableTrainer):
    """Trainer whose interrupted and resumed run equals the uninterrupted one."""

    config: ZipNerfTrainerConfig

    def __init__(self, config: ZipNerfTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        # Before Nerfstudio's own first lines, which warn.
        quiet_dependencies()
        super().__init__(config, *place(local_rank, world_size, config.machine))
        self.gradients = StepGradients(self)
        self._watch: Watch | None = None
        self.stops = StopRequests(self.world_size == 1)

    def setup(self, test_mode: Any = "val") -> None:
        """Nerfstudio's set-up; what is wrong with settings or input is told in one line."""
        with tell(self.config):
            manager = self.config.pipeline.datamanager
            manager.beside_pixels = check_run(self.config)
            prepare_to_repeat(self.config)
            manager.trained = (checkpoint := source_of(self.config)) and read_trained(checkpoint, resumes=True)
            super().setup(test_mode)
            self.pipeline.datamanager.hold_pixels()
            check_room_to_train(self)
            if self._device_type == "cuda" and self.pipeline.model.uses_kernels:
                compile_kernels(self)
        tables, has_scaler = self.pipeline.model.zipnerf.tables(), self.grad_scaler.is_enabled()
        if self.world_size > 1:
            self.gradients.exchange = GradientExchange(self.pipeline.model, tables, self.optimizers.parameters)
            self._watch = Watch(self.checkpoint_dir)
        self.guard = NonFiniteGuard(self.optimizers.optimizers, tables, torch.device(self.device), has_scaler)
        self.gradients.graph = set_up_graph(self)

    def setup_optimizers(self) -> Optimizers:
        """Optimizers whose schedules end with the training, if the configuration does not say otherwise."""
        config = self.config
        groups = complete_schedules(config.optimizers, config.max_num_iterations)
        optimizers = Optimizers(groups, self.pipeline.get_param_groups())
        # With any other there is no decay: check_run has refused it.
        if isinstance(adam := optimizers.optimizers["hash_tables"], DecayingAdam):
            adam.adopt(self.pipeline.model.zipnerf.tables())
        adopt_cameras(optimizers, self.pipeline.datamanager.train_dataset.cameras, self.pipeline.model.lens)
        return optimizers

    def train(self) -> None:
        """Trains up to max_num_iterations steps *in total*: Nerfstudio itself adds that many to a resumed run."""
        with tell(self.config), nullcontext() if self._watch is None else self._watch, self.stops, pictures_end(self):
            self._train()
            # Before the means of communication that a graph holds on to.
            self.gradients.forget()

    def _train(self) -> None:
        total = self.config.max_num_iterations
        if self._start_step >= total:
            CONSOLE.print(
                f"The checkpoint has all {total} steps already: nothing to train. "
                "Give a larger --max-num-iterations to go on."
            )
            return
        if self._resumed_rng is not None:
            restore_rng(self._resumed_rng, get_rank())
        self.pipeline.datamanager.train_dataparser_outputs.save_dataparser_transform(
            self.base_dir / "dataparser_transforms.json"
        )
        self._init_viewer_state()
        self.clock = TrainingClock(self._synchronize)
        self.progress = ProgressLine(self._start_step, total, self.clock, self._say)
        self._log_timer = StepTimer(self.clock)
        self.events = EventLog(self._say)
        self.step = max(self._start_step - 1, 0)
        self.stop_training = False
        rays = self.pipeline.datamanager.get_train_rays_per_batch() * self.world_size
        device = self.device if self.world_size == 1 else f"{self.world_size} x {self._device_type}"
        self._say(f"Training {self.config.method_name} on {device}: {total} steps of {rays:,} rays.")
        with TimeWriter(writer, EventName.TOTAL_TRAIN_TIME):
            try:
                self._train_steps(self._start_step, total)
                if self.stops.received is not None:
                    self._leave(total, saves=True)
            except Exception:
                self.shutdown()
                raise
            except KeyboardInterrupt:
                if self._watch is not None:
                    self._watch.leave()
                self._leave(total, saves=False)
            finally:
                # Also when the training is interrupted: what was begun is worth having.
                self._finish_writing()
        self._after_train()

    def _leave(self, total: int, saves: bool) -> None:
        """Ends an interrupted training with the signal's status, after a line that says where to go on."""
        if saves and self._has_stepped:
            self.begin_checkpoint(self.step)
        self._finish_writing()
        self._say(interrupted(self.step, total, self.checkpoint_dir))
        if saves and self._watch is not None:
            self.gradients.forget()
            self._watch.finish()
        raise SystemExit(self.stops.status) from None

    def _init_viewer_state(self) -> None:
        """Nerfstudio's, in a fraction of the time."""
        if self.viewer_state is not None:
            show_images(self)

    def _update_viewer_state(self, step: int) -> None:
        """Nerfstudio's, which stumbles over clients that come or go: that costs a picture, not the training."""
        try:
            super()._update_viewer_state(step)
        except Exception as error:
            say_once(f"Warning: the viewer failed ({type(error).__name__}: {error}). The training goes on.")

    def _finish_writing(self) -> None:
        """Waits until checkpoints and pictures are on disk; their errors are raised here."""
        self.checkpoints.wait()
        self.events.finish()

    def _say(self, text: str) -> None:
        """A line for the person."""
        if self.local_rank == 0:
            print_unbroken(text)

    def _after_train(self) -> None:
        """Nerfstudio's end of a training; before it waits with the viewer, it says what can be done next."""
        held_out, has_events = len(self.pipeline.datamanager.eval_dataset or ()), self.config.is_tensorboard_enabled()
        text = next_commands(self.base_dir, self.checkpoint_dir, held_out, has_events, self.pipeline.model.has_time)
        end = TrainingCallbackLocation.AFTER_TRAIN
        self.callbacks = [*self.callbacks, TrainingCallback([end], lambda step: self._say(text))]
        self.events.write()
        super()._after_train()

    def _train_complete_viewer(self) -> None:
        """Nerfstudio's wait with the viewer, whose end by Ctrl-C is no error."""
        self.stops.release()
        if self.stops.received is None:
            with suppress(KeyboardInterrupt):
                super()._train_complete_viewer()

    def _train_steps(self, first: int, total: int) -> None:
        """The loop. Between two logged steps nothing in it waits for the device, and no event is written."""
        datamanager = self.pipeline.datamanager
        for step in range(first, total):
            self._wait_while_paused()
            if self.stop_training or self.stops.received is not None:
                return
            self.step = step
            with self.train_lock:
                # Switching the mode visits every module: only after something has switched it off.
                if not (self.pipeline.training and self.pipeline.model.training):
                    self.pipeline.train()
                self._prepare(step)
                result = self.train_iteration(step)
                self._run_callbacks(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
            rays = datamanager.get_train_rays_per_batch() * self.world_size
            self._update_viewer_state(step)
            if self._is_logged(step):
                log_step(self, step, rays, result)
                if self._watch is not None:
                    self.stops.received = self._watch.agree(self.stops.heard)
            if self.local_rank == 0:
                self.progress.update(step, rays, result[2])
            if self._is_evaluated(step) and datamanager.eval_dataset and get_rank() == 0:
                with self.clock.pause(), self.train_lock:
                    self.eval_iteration(step)
            is_saved = step_check(step, self.config.steps_per_save)
            if self._is_logged(step) or is_saved or step + 1 == total:
                self._tell_of_skipped(step)
            if is_saved:
                with self.clock.pause():
                    self.begin_checkpoint(step)
            self.checkpoints.check()
            self.events.write()

    def _prepare(self, step: int) -> None:
        """What goes before a step; where a disk has no more pixels for it, what was learned until then is saved."""
        try:
            self._run_callbacks(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        except InputError as error:
            if self._has_stepped:
                self.begin_checkpoint(step - 1)
                self.checkpoints.wait()
            raise InputError(f"{error} {how_to_go_on(self.checkpoint_dir)}.") from error

    @property
    def _has_stepped(self) -> bool:
        """Whether there is anything to keep."""
        return any(optimizer.state for optimizer in self.optimizers.optimizers.values())

    def _tell_of_skipped(self, step: int) -> None:
        try:
            self.guard.tell(self._say)
        except InputError:
            # The values are those of the last step that was not skipped.
            self.begin_checkpoint(step)
            raise

    @property
    def _device_type(self) -> str:
        return torch.device(self.device).type

    def _synchronize(self) -> None:
        """Waits for the device."""
        if self._device_type == "cuda":
            torch.cuda.synchronize(self.device)

    def _wait_while_paused(self) -> None:
        """Waits until the viewer's pause is over, or the training is to stop."""
        if self.training_state != "paused":
            return
        with self.clock.pause(recurs=False):
            while self.training_state == "paused" and not self.stop_training and self.stops.heard is None:
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
        begun = [name for name, steps in every.items() if step % steps == 0]
        loss, loss_dict, metrics_dict = self.gradients(step, begun)
        complete = [name for name, steps in every.items() if step % steps == steps - 1]
        self.optimizers.optimizer_scaler_step_some(self.grad_scaler, self.guard.steppable(complete))
        if self.config.log_gradients and self._is_logged(step):
            metrics_dict.update(gradient_norms(self.pipeline.model))
        if not complete or update_scaler(self.grad_scaler):
            for scheduler in self.optimizers.schedulers.values():
                scheduler.step()
        return loss, loss_dict, metrics_dict

    def eval_iteration(self, step: int) -> None:
        """Nerfstudio's evaluation; its last test PSNR also goes into the progress line."""
        try:
            super().eval_iteration(step)
        except torch.cuda.OutOfMemoryError:
            # Pictures shrink their chunks before: what did not fit is something else.
            say_once("Warning: evaluations that do not fit into what the training leaves of the GPU are left out.")
        except InputError as error:
            # A held-out photo that could be read at the start.
            say_once(f"Warning: {error} The training goes on without this evaluation.")
        for event in reversed(writer.EVENT_STORAGE):
            if event["name"] == "Eval Images Metrics" and "psnr" in event["event"]:
                self.progress.test_psnr = float(event["event"]["psnr"])
                writer.put_scalar(name=EventName.CURR_TEST_PSNR, scalar=self.progress.test_psnr, step=step)
                return
