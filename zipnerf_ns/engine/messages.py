"""What the trainer tells a person when it ends or cannot go on, and what it keeps quiet about."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.multiprocessing import ProcessExitedException

from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.engine.checkpoints import NotWrittenError, checkpoints_in
from zipnerf_ns.engine.safety.stopping import speak_to_nobody
from zipnerf_ns.errors import FULL, InputError, refusal

TOLD = 1
"""Exit code of a program that has said what is wrong."""
OF_GPU = ("CUDA error", "Triton Error [CUDA]")
"""In messages of torch and of Triton about a GPU that has failed."""
SECOND_VOICE = 2.0
"""Seconds after which another than the first process tells of an error."""
VIEWED_HERE = ("--viewer.websocket-host", "127.0.0.1")
"""For a viewer that this machine alone can reach; Nerfstudio's own listens to the whole network."""


def quiet_dependencies() -> None:
    """Drops warnings that Nerfstudio's own ways cause in newer versions of torch: nothing a user could mend."""
    of_code = ("Using a non-tuple sequence", "Converting a tensor with requires_grad", "`torch.cuda.amp")
    # Schedules go on at every step, also at those that only accumulate gradients.
    of_accumulation = "Detected call of `lr_scheduler.step"
    # The held-out images are read by four processes, on however few cores.
    of_loading = "This DataLoader will create"
    for message in (*of_code, of_accumulation, of_loading):
        warnings.filterwarnings("ignore", message=message)


def escape_what_cannot_be_printed() -> None:
    """A name, or a picture in Nerfstudio's lines, that the terminal's or log's encoding lacks ends no training."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def mute() -> None:
    """Leaves it to the first of several processes to speak; errors are still told, if the first one has none."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")


def raise_for_user(error: InputError) -> None:
    """Prints an input error without a stack trace and ends the program."""
    if getattr(sys.stdout, "name", None) == os.devnull:
        # The first process mostly fails for the same reason, and this one is ended with it.
        time.sleep(SECOND_VOICE)
        sys.stdout = sys.__stdout__
    CONSOLE.print("Error:", style="bold red", end=" ")
    # Without markup: a path may contain brackets.
    CONSOLE.print(str(error), markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(TOLD) from None


def tell_in_any_program() -> None:
    """Programs of Nerfstudio's that evaluate, render and export print a stack trace of whatever ends them; of what a
    person can mend it becomes one line."""
    others = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        known = refusal(error) or error
        if isinstance(known, InputError):
            with suppress(SystemExit):
                raise_for_user(known)
        else:
            others(kind, error, trace)

    if not getattr(others, "tells_users", False):
        hook.tells_users = True
        sys.excepthook = hook


def tell_of_lost_processes(checkpoints: Path) -> None:
    """Nerfstudio's launcher prints a stack trace when a process that it has started is lost: it becomes one line.

    Args:
        checkpoints: the run's folder of checkpoints.
    """
    others = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ProcessExitedException):
            others(kind, error, trace)
        elif error.exit_code - 128 in signal.valid_signals():
            # They were stopped, and have saved.
            raise SystemExit(error.exit_code)
        elif error.exit_code != TOLD:
            with suppress(SystemExit):
                raise_for_user(process_lost(error.signal_name, checkpoints))

    sys.excepthook = hook


@contextmanager
def tell(config: Any) -> Iterator[None]:
    """Ends the program with one line where what is done inside fails for a reason that a person can mend.

    Args:
        config: the trainer's.
    """
    try:
        yield
    except InputError as error:
        raise_for_user(error)
    except KeyboardInterrupt:
        # Nerfstudio's launcher would print where it came, and end as if all were done.
        print_unbroken(f"Stopped. {how_to_go_on(config.get_checkpoint_dir())}.")
        raise SystemExit(128 + signal.SIGINT) from None
    except torch.cuda.OutOfMemoryError:
        raise_for_user(out_of_memory(config))
    except RuntimeError as error:
        if not any(name in str(error) for name in OF_GPU):
            raise
        raise_for_user(gpu_failed(error, config.get_checkpoint_dir()))
    except OSError as error:
        if error.errno not in FULL and not isinstance(error, NotWrittenError):
            raise
        raise_for_user(disk_is_full(error, config.get_checkpoint_dir()))


def out_of_memory(config: Any) -> InputError:
    """What to do when the device's memory does not suffice for training, with the settings as they are.

    Args:
        config: the trainer's.
    """
    data, model = config.pipeline.datamanager, config.pipeline.model
    mends = [
        f"--pipeline.datamanager.train-num-rays-per-batch (now {data.train_num_rays_per_batch})",
        f"--pipeline.model.grid.log2-hashmap-size (now {model.grid.log2_hashmap_size})",
    ]
    others = []
    if data.images_on_gpu:
        others.append("keep the images in main memory with --pipeline.datamanager.images-on-gpu False (now True)")
    if config.method_name != "zipnerf-lite":
        others.append(f"train the smaller method zipnerf-lite (now {config.method_name})")
    checkpoints = config.get_checkpoint_dir()
    # As soon as there is one, memory has sufficed: it may be another program that takes it now.
    rest = f" {how_to_go_on(checkpoints)}." if checkpoints_in(checkpoints) else ""
    mend = f"Lower {' or '.join(mends)}{''.join(f', or {other}' for other in others)}."
    return InputError(f"the GPU's memory does not suffice. {mend}{rest}")


def disk_is_full(error: OSError, checkpoints: Path) -> InputError:
    """What to do when the disk takes no more, or its folder is gone.

    Args:
        error: what the disk says.
        checkpoints: the run's folder of checkpoints.
    """
    then = "there is room" if error.errno in FULL else "it can be written"
    return InputError(f"{error.strerror} in {checkpoints.parent}. {how_to_go_on(checkpoints)}, once {then}.")


def process_lost(signal_name: str | None, checkpoints: Path) -> InputError:
    """What is left of a training by several processes when one of them is gone.

    Args:
        signal_name: what ended it, if that is known.
        checkpoints: the run's folder of checkpoints.
    """
    by = "" if signal_name is None else f" ({signal_name})"
    return InputError(
        f"a process of this training has ended early{by}, and with it the training. {how_to_go_on(checkpoints)}."
    )


def gpu_failed(error: RuntimeError, checkpoints: Path) -> InputError:
    """What is left of a training whose GPU stopped answering, or whose process it has given up.

    Args:
        error: what CUDA says.
        checkpoints: the run's folder of checkpoints.
    """
    said = str(error).splitlines()[0]
    return InputError(f"the GPU failed ({said}). {how_to_go_on(checkpoints)}. If it fails again, see nvidia-smi.")


def how_to_go_on(checkpoints: Path) -> str:
    """Which checkpoint is left, and how to resume from it; without a full stop.

    Args:
        checkpoints: the run's folder of checkpoints.
    """
    found = checkpoints_in(checkpoints)
    if not found:
        return "No checkpoint had been written yet"
    return (
        f"The last whole checkpoint is {found[max(found)]}: the same command with "
        f"--load-dir {command_line(checkpoints)} goes on from there"
    )


def print_unbroken(text: str) -> None:
    """Prints a line of any length: broken, its commands could not be copied."""
    try:
        CONSOLE.print(text, markup=False, highlight=False, soft_wrap=True)
    # Where a pipe has no reader any more, rich ends the program.
    except (OSError, SystemExit):
        speak_to_nobody()


def command_line(*parts: Any) -> str:
    """A command as the shell of this machine takes it."""
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return join([str(part) for part in parts])


def next_commands(
    run: Path, checkpoints: Path, num_held_out: int, has_events: bool, has_time: bool = False
) -> str:
    """What can be done with a trained run: one command a line, ready to be pasted.

    Args:
        run: the run's folder, as seen from where the commands will be typed.
        checkpoints: its folder of checkpoints.
        num_held_out: views that were held out; a path through them takes two.
        has_events: whether TensorBoard can read the run.
        has_time: whether its scene moves, of which a mesh is one moment.
    """
    moment = ["--time", "0.5"] if has_time else []
    config = ["--load-config", run / "config.yml"]
    source = [] if num_held_out > 1 else ["--pose-source", "train"]
    commands: dict[str, list[Any]] = {
        "look at it": ["ns-viewer", *config, *VIEWED_HERE],
        "measure it": ["ns-eval", *config, "--output-path", run / "eval.json", "--render-output-path", run / "eval"],
        "make a video": ["ns-render", "interpolate", *config, *source, "--output-path", run / "video.mp4"],
        "make a mesh": ["python", "-m", "zipnerf_ns.tools.export_mesh", *config, "--output-dir", run / "mesh", *moment],
    }
    if has_events:
        commands["see its curves"] = ["tensorboard", "--logdir", run]
    if num_held_out == 0:
        del commands["measure it"]
    lines = {what: command_line(*command) for what, command in commands.items()}
    if shutil.which("ffmpeg") is None:
        # Its program says no more than that there is none.
        lines["make a video"] += "  (needs ffmpeg: apt-get install ffmpeg)"
    return "\n".join(
        [
            *(f"To {what}:".ljust(19) + line for what, line in lines.items()),
            "To train longer:   the same command with --load-dir "
            f"{command_line(checkpoints)} and a larger --max-num-iterations",
        ]
    )


def interrupted(step: int, total: int, checkpoints: Path) -> str:
    """What is left of a training that was stopped by hand.

    Args:
        step: the last that was begun.
        total: steps of the whole training.
        checkpoints: the run's folder of checkpoints.
    """
    how_often = "" if checkpoints_in(checkpoints) else " (--steps-per-save says how often)"
    return f"Stopped at step {step + 1} of {total}. {how_to_go_on(checkpoints)}{how_often}."
