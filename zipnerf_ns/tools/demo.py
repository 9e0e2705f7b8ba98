"""The whole way once: scene, training, evaluation on held-out views, and a video.

``python -m zipnerf_ns.tools.demo`` runs the same ``ns-train``, ``ns-eval`` and ``ns-render`` that a person would,
on the built-in scene or, with ``--data FOLDER``, on one with camera poses. What each command printed is kept
beside its results.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from zipnerf_ns.tools.demo_scene import write_scene
from zipnerf_ns.tools.system_check import (
    check_all,
    check_ffmpeg,
    format_table,
    link_ffmpeg,
    script_environment,
)

EXPECTED_PSNR = 24.0
"""What the built-in scene gives at least with the steps below, dB on held-out views."""
EXPERIMENT = "demo"
VIDEO_SECONDS = 3.0
FRAME_RATE = 24


@dataclass(frozen=True)
class Machine:
    """How much the demo asks of a machine."""

    device: str
    method: str
    steps: int
    """Training steps."""
    longest_side: int
    """Pictures are trained and held out at the first of their sizes on disk that does not exceed this, pixels."""
    video_height: int
    """The video is not higher than this, pixels."""


CPU = Machine("cpu", "zipnerf-lite", steps=1500, longest_side=400, video_height=120)
CUDA = Machine("cuda", "zipnerf", steps=5000, longest_side=1600, video_height=540)


class DemoError(Exception):
    """A step could not be done; the message is all that the person needs."""


@dataclass(frozen=True)
class Run:
    """Where a run's files are; the first four names are nerfstudio's own layout of an output folder."""

    output_dir: Path
    method: str
    timestamp: str

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return self.output_dir / EXPERIMENT / self.method / self.timestamp

    @property
    def config(self) -> Path:
        """What the other commands load the run by."""
        return self.folder / "config.yml"

    @property
    def metrics(self) -> Path:
        """``ns-eval``'s result."""
        return self.folder / "eval.json"

    @property
    def pictures(self) -> Path:
        """Held-out views: truth and rendering side by side."""
        return self.folder / "eval"

    @property
    def video(self) -> Path:
        """The rendered camera path."""
        return self.folder / "video.mp4"


def available_machine() -> Machine:
    """What to run here."""
    return CUDA if torch.cuda.is_available() else CPU


def data_arguments(data: Path, longest_side: int) -> list[str]:
    """The dataparser of ``ns-train`` for a data set, with its options; nothing for nerfstudio's own format.

    Args:
        data: a folder, or a transforms file.
        longest_side: pictures of this size are enough, pixels.

    Raises:
        DemoError: no known data set is there; says what to do with plain photographs.
    """
    if not data.exists():
        raise DemoError(f"{data} does not exist.")
    if data.suffix == ".json":
        return []
    factor = downscale_factor(data, longest_side)
    if (data / "transforms.json").is_file():
        return ["nerfstudio-data", "--downscale-factor", str(factor)] if factor > 1 else []
    if (data / "transforms_train.json").is_file():
        return ["blender-data"]
    for model in (Path("colmap/sparse/0"), Path("sparse/0")):
        if (data / model).is_dir():
            # Without the factor, nerfstudio would ask on the terminal whether to write smaller pictures.
            return ["colmap", "--colmap-path", str(model), "--downscale-factor", str(factor)]
    raise DemoError(
        f"{data} has no camera poses (transforms.json, transforms_train.json or sparse/0). For a folder of "
        f"photographs, find them with COLMAP first:\n  ns-process-data images --data {data} --output-dir data/mine\n"
        "then give data/mine here."
    )


def downscale_factor(data: Path, longest_side: int) -> int:
    """The least reduction among the folders images, images_2, images_4, ... that brings pictures to a size.

    Args:
        longest_side: pixels; where no folder is small enough, the smallest is taken.
    """
    pictures = sorted(path for path in (data / "images").glob("*") if path.suffix.lower() in Image.registered_extensions())
    if not pictures:
        return 1
    with Image.open(pictures[0]) as picture:
        side = max(picture.size)
    factor = 1
    while side > longest_side * factor and (data / f"images_{2 * factor}").is_dir():
        factor *= 2
    return factor


def train_command(run: Run, data: Path, machine: Machine, steps: int) -> list[str]:
    """``ns-train``, leaving when it is done."""
    return [
        "ns-train",
        machine.method,
        *("--data", str(data)),
        *("--output-dir", str(run.output_dir)),
        *("--experiment-name", EXPERIMENT),
        *("--timestamp", run.timestamp),
        *("--machine.device-type", machine.device),
        *("--max-num-iterations", str(steps)),
        *("--steps-per-eval-image", str(max(steps // 4, 1))),
        # Nerfstudio does not evaluate while its viewer is on.
        *("--vis", "tensorboard"),
        *("--viewer.quit-on-train-completion", "True"),
        *data_arguments(data, machine.longest_side),
    ]


def eval_command(run: Run) -> list[str]:
    """``ns-eval`` with pictures of every held-out view."""
    return [
        "ns-eval",
        *("--load-config", str(run.config)),
        *("--output-path", str(run.metrics)),
        *("--render-output-path", str(run.pictures)),
    ]


def render_command(run: Run, num_views: int, size: tuple[int, int], video_height: int) -> list[str]:
    """``ns-render`` along the held-out cameras.

    Args:
        num_views: how many views were held out.
        size: width and height of the pictures, pixels.
    """
    # A path needs two cameras.
    source = "eval" if num_views > 1 else "train"
    frames = round(VIDEO_SECONDS * FRAME_RATE / max(num_views - 1, 1)) if source == "eval" else 1
    return [
        "ns-render",
        "interpolate",
        *("--load-config", str(run.config)),
        *("--output-path", str(run.video)),
        *("--pose-source", source),
        *("--interpolation-steps", str(max(frames, 1))),
        *("--order-poses", "True"),
        *("--frame-rate", str(FRAME_RATE)),
        *("--downscale-factor", f"{video_reduction(size, video_height):.6f}"),
    ]


def video_reduction(size: tuple[int, int], video_height: int) -> float:
    """The reduction to at most a height, with even width and height where there is one within 16 pixels of it.

    A video of odd size is stored in a pixel format that browsers do not play.

    Args:
        size: width and height before, pixels.
    """
    width, height = size
    top = min(height, video_height)
    for target in range(top - top % 2, max(top - 16, 2), -2):
        # Sizes are rounded down after a float32 product: a quarter pixel keeps clear of the edge.
        reduction = height / (target + 0.25) if target < height else 1.0
        scaled = width / reduction
        if int(scaled) % 2 == 0 and (reduction == 1.0 or 0.01 < scaled % 1 < 0.99):
            return reduction
    return height / top


def hide_config(write: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    """A writer that leaves out the hundreds of lines in which ``ns-train`` prints its configuration.

    They stand between a rule with the title Config and the next rule, and are in the log and in config.yml.

    Args:
        write: takes what is left, whole lines at a time.
    """
    rest, hidden = b"", False

    def filtered(chunk: bytes) -> None:
        nonlocal rest, hidden
        *lines, rest = (rest + chunk).split(b"\n")
        # A last line without an end comes with the empty chunk that closes the stream.
        lines += [rest] if not chunk and rest else []
        for line in lines:
            words = line.decode(errors="replace").strip("─- \r")
            is_rule = len(line) > 20 and words in ("", "Config")
            if not hidden and not is_rule:
                write(line + b"\n")
            if is_rule:
                hidden = words == "Config"

    return filtered


def run_step(name: str, command: list[str], log: Path, write: Callable[[bytes], Any]) -> float:
    """Run one program, show what it prints as it prints it, and keep that in a file.

    Args:
        name: of the step, for messages.
        command: the program by name, and its arguments.
        log: the file.
        write: shows bytes; called with none at the end.

    Returns:
        Seconds taken.

    Raises:
        DemoError: it could not be started or failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n== {name}\n$ {shlex.join(command)}", flush=True)
    environment = {**script_environment(), "PYTHONUNBUFFERED": "1"}
    if sys.stdout.isatty():
        # Through the pipe below, rich would not draw its progress bars otherwise.
        environment.setdefault("FORCE_COLOR", "1")
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise DemoError(f"{name} did not start: {error}. Is nerfstudio installed for {sys.executable}?") from error
    with process, log.open("wb") as file:
        descriptor = process.stdout.fileno()
        try:
            for chunk in iter(lambda: os.read(descriptor, 1 << 16), b""):
                file.write(chunk)
                file.flush()
                write(chunk)
            write(b"")
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise DemoError(f"{name} failed ({exit_reason(process.returncode)}). All that it printed: {log}")
    return time.monotonic() - start


def exit_reason(returncode: int) -> str:
    """An exit status in words."""
    if returncode >= 0:
        return f"exit status {returncode}"
    number = signal.Signals(-returncode)
    hint = ", often for lack of memory" if number == signal.SIGKILL else ""
    return f"ended by {number.name}{hint}"


def show(chunk: bytes) -> None:
    """Bytes to standard output, at once."""
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def check_machine() -> None:
    """What must be there before time is spent on training.

    Raises:
        DemoError: something is wrong or ffmpeg is missing.
    """
    if check_ffmpeg().state != "ok":
        try:
            print(f"ffmpeg: linked {link_ffmpeg()}")
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            raise DemoError(f"ns-render needs ffmpeg: {error}") from error
    findings = check_all()
    print(format_table(findings))
    if any(finding.state == "wrong" for finding in findings):
        raise DemoError("this machine is not ready: see the lines that say wrong.")


def built_in_scene(folder: Path) -> Path:
    """The built-in scene, drawn at the first call.

    Raises:
        DemoError: the folder cannot be used.
    """
    print(f"\n== built-in scene: {folder}", flush=True)
    try:
        return write_scene(folder, workers=os.cpu_count() or 1)
    except (OSError, ValueError) as error:
        raise DemoError(f"the built-in scene could not be written: {error}") from error


def held_out(run: Run) -> tuple[float, int, tuple[int, int]]:
    """From what ``ns-eval`` left: the PSNR in dB, the number of views, and the width and height of one.

    Raises:
        DemoError: it left nothing to read.
    """
    pictures = sorted(run.pictures.glob("eval_img_*.png"))
    if not pictures or not run.metrics.is_file():
        raise DemoError(f"ns-eval left no result in {run.folder}")
    with Image.open(pictures[0]) as picture:
        # Truth and rendering stand side by side.
        size = (picture.width // 2, picture.height)
    return float(json.loads(run.metrics.read_text())["results"]["psnr"]), len(pictures), size


def verdict(psnr: float, built_in: bool, enough_steps: bool) -> tuple[str, bool]:
    """The quality in a sentence, and whether it is as it should be.

    Args:
        psnr: of held-out views, dB.
        built_in: whether the expectation applies.
        enough_steps: whether training was as long as the expectation assumes.
    """
    said = f"held-out PSNR {psnr:.2f} dB"
    if psnr != psnr:
        return f"{said}: the pictures are not numbers", False
    if not built_in:
        return said, True
    if psnr >= EXPECTED_PSNR:
        return f"{said}: reaches the {EXPECTED_PSNR:.0f} dB that the built-in scene should give", True
    below = f"{said}: below the {EXPECTED_PSNR:.0f} dB that the built-in scene should give"
    return (f"{below}; something is wrong", False) if enough_steps else (f"{below} with more steps", True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m zipnerf_ns.tools.demo",
        description="Trains, evaluates and renders a scene once, with the programs that you would use.",
    )
    parser.add_argument("--data", type=Path, help="data set with camera poses (default: the built-in scene)")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="folder for everything written")
    parser.add_argument("--steps", type=int, help="training steps (default: by machine)")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error("--steps must be at least 1")
    return options


def demo(data: Path | None, output_dir: Path, steps: int | None) -> bool:
    """All steps; True if the result is as good as it should be.

    Raises:
        DemoError: a step failed.
    """
    machine = available_machine()
    check_machine()
    run = Run(output_dir, machine.method, time.strftime("%Y-%m-%d_%H%M%S"))
    scene = built_in_scene(output_dir / "demo_scene") if data is None else data
    steps_taken = machine.steps if steps is None else steps
    train = train_command(run, scene, machine, steps_taken)
    seconds = run_step(f"training, {steps_taken} steps", train, run.folder / "train.log", hide_config(show))
    seconds += run_step("evaluation on held-out views", eval_command(run), run.folder / "eval.log", show)
    psnr, num_views, size = held_out(run)
    render = render_command(run, num_views, size, machine.video_height)
    seconds += run_step("video", render, run.folder / "render.log", show)
    sentence, good = verdict(psnr, data is None, steps_taken >= machine.steps)
    viewer = Path(sys.executable).parent / "ns-viewer"
    print(
        f"\n== done in {seconds / 60:.1f} minutes of training and rendering\n"
        f"{sentence}\n"
        f"  pictures (truth | rendering)  {run.pictures}\n"
        f"  video                         {run.video}\n"
        f"  look around yourself          {viewer} --load-config {run.config}\n"
        f"                                then open http://localhost:7007",
        flush=True,
    )
    return good


def main(arguments: list[str] | None = None) -> int:
    """The demo; 0 if all went well and the result is as good as it should be."""
    options = parse(arguments)
    try:
        return 0 if demo(options.data, options.output_dir, options.steps) else 1
    except DemoError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
