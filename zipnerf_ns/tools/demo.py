"""The whole way once: scene, training, evaluation on held-out views, and a video.

``python -m zipnerf_ns.tools.demo`` runs the same ``ns-train``, ``ns-eval`` and ``ns-render`` that a person
would, on the built-in scene or, with ``--data FOLDER``, on one with camera poses or on photographs, whose poses it has
found first. What each command printed is kept beside its results.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from PIL import Image

from zipnerf_ns.data.dataparsers.formats import find_format
from zipnerf_ns.engine.messages import VIEWED_HERE
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools import programs
from zipnerf_ns.tools.command import command
from zipnerf_ns.tools.demo_scene import write_scene
from zipnerf_ns.tools.programs import CONFIG, METRICS, PICTURES, VIDEO, exit_reason, quiet_environment
from zipnerf_ns.tools.system_check import check_all, format_table

EXPERIMENT = "demo"
NO_FFMPEG = ("ffmpeg", "missing")
"""Finding without which a video cannot be written."""
EXPECTED_PSNR = 24.0
"""What the built-in scene gives at least with the machine's own number of steps, dB on held-out views."""


def hide_config(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Leaves out the hundreds of lines in which ``ns-train`` prints its configuration.

    They stand between a rule with the title Config and the next rule, and are in the log and in config.yml.
    """
    hidden = False
    for line in lines:
        words = line.decode(errors="replace").strip("─- \r\n")
        is_rule = len(line) > 20 and words in ("", "Config")
        if not hidden and not is_rule:
            yield line
        if is_rule:
            hidden = words == "Config"


def show(chunk: bytes) -> None:
    """Bytes to standard output, at once."""
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def run_step(
    name: str, command: list[str], log: Path, hides_config: bool = False, write: Callable[[bytes], Any] = show
) -> float:
    """Runs one program, shows what it prints as it prints it, keeps that in a file, and returns the seconds taken.

    Args:
        name: of the step, for messages.
        command: the program by name, and its arguments.
        log: the file.
        hides_config: leaves out ``ns-train``'s configuration, and shows whole lines.
        write: shows bytes; standard output by default.

    Raises:
        InputError: it could not be started or failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n== {name}\n$ {shlex.join(command)}", flush=True)
    environment = quiet_environment()
    if sys.stdout.isatty():
        # Through the pipe below, rich would not draw its progress bars otherwise.
        environment.setdefault("FORCE_COLOR", "1")
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise InputError(f"{name} did not start: {error}. Is nerfstudio installed for {sys.executable}?") from error
    with process, log.open("wb") as file:

        def kept(chunks: Iterable[bytes]) -> Iterator[bytes]:
            for chunk in chunks:
                file.write(chunk)
                file.flush()
                yield chunk

        # In pieces as they come, for progress bars have no ends of lines.
        pieces = iter(lambda: os.read(process.stdout.fileno(), 1 << 16), b"")
        try:
            for chunk in hide_config(kept(process.stdout)) if hides_config else kept(pieces):
                write(chunk)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise InputError(f"{name} failed ({exit_reason(process.returncode)}). All that it printed: {log}")
    return time.monotonic() - start


def held_out(folder: Path) -> tuple[float, int, tuple[int, int]]:
    """What ``ns-eval`` left in a run's folder: the PSNR in dB, the number of views, and one's width and height.

    Raises:
        InputError: it left nothing to read.
    """
    pictures = sorted((folder / PICTURES).glob("eval_img_*.png"))
    if not pictures or not (folder / METRICS).is_file():
        raise InputError(f"ns-eval left no result in {folder}")
    with Image.open(pictures[0]) as picture:
        # Truth and rendering stand side by side.
        size = (picture.width // 2, picture.height)
    return float(json.loads((folder / METRICS).read_text())["results"]["psnr"]), len(pictures), size


def verdict(psnr: float, steps: int, expected_steps: int | None) -> tuple[str, bool]:
    """The quality in a sentence, and whether it is as it should be.

    Args:
        psnr: of held-out views, dB.
        steps: training steps taken.
        expected_steps: after how many EXPECTED_PSNR is expected; None where nothing is known of the scene.
    """
    said = f"held-out PSNR {psnr:.2f} dB"
    if psnr != psnr:
        return f"{said}: the pictures are not numbers", False
    if expected_steps is None:
        return said, True
    goal = f"the {EXPECTED_PSNR:.0f} dB that the built-in scene should give"
    if psnr >= EXPECTED_PSNR:
        return f"{said}: reaches {goal}", True
    if steps < expected_steps:
        return f"{said} after {steps} steps; {goal} take {expected_steps}", True
    return f"{said}: below {goal}, so something is wrong", False


def check_ready() -> None:
    """Prints what this machine has and lacks.

    Raises:
        InputError: it cannot train, or not write a video.
    """
    findings = check_all()
    print(format_table(findings))
    if unfit := [each.name for each in findings if each.state == "wrong" or (each.name, each.state) == NO_FFMPEG]:
        raise InputError(f"this machine is not ready for training and ns-render: see {', '.join(unfit)} above.")


def built_in_scene(output_dir: Path, is_moving: bool) -> Path:
    """The built-in scene in a folder of its own, or the one that moves.

    Raises:
        InputError: it could not be written.
    """
    folder, motion = (output_dir / "moving_scene", "one-camera") if is_moving else (output_dir / "demo_scene", "none")
    print(f"\n== built-in scene: {folder}", flush=True)
    try:
        return write_scene(folder, motion=motion, workers=os.cpu_count() or 1)
    except (OSError, ValueError) as error:
        raise InputError(f"the built-in scene could not be written: {error}") from error


def demo(
    data: Path | None = None,
    output_dir: Path = Path("outputs"),
    steps: int | None = None,
    scene: Literal["still", "moving"] = "still",
) -> bool:
    """Trains, evaluates and renders a scene once, with the programs that you would use.

    Args:
        data: data set with camera poses, or photographs and videos; by default the built-in scene.
        output_dir: folder for all results.
        steps: training steps; by default as many as suit the machine.
        scene: moving trains a method that knows time; data of your own must then say when photos were taken.

    Returns:
        Whether the result is as good as it should be.
    Raises:
        InputError: a step failed.
    """
    if steps is not None and steps < 1:
        raise InputError("--steps must be at least 1.")
    machine = programs.CUDA if torch.cuda.is_available() else programs.CPU
    if scene == "moving":
        machine = programs.MOVING[machine]
    check_ready()
    folder = output_dir / EXPERIMENT / machine.method / time.strftime("%Y-%m-%d_%H%M%S")
    source = built_in_scene(output_dir, machine.is_moving) if data is None else data
    if source.exists() and find_format(source) is None:
        source = output_dir / f"{source.resolve().name}_scene"
        run_step("camera poses", programs.photos_command(data, source), folder / "photos.log")
    steps_taken = machine.steps if steps is None else steps
    train = programs.train_command(folder, source, machine, steps_taken)
    seconds = run_step(f"training, {steps_taken} steps", train, folder / "train.log", hides_config=True)
    seconds += run_step("evaluation on held-out views", programs.eval_command(folder), folder / "eval.log")
    psnr, num_views, size = held_out(folder)
    render = programs.render_command(folder, num_views, size, machine)
    seconds += run_step("video", render, folder / "render.log")
    sentence, good = verdict(psnr, steps_taken, machine.steps if data is None and scene == "still" else None)
    viewer = Path(sys.executable).parent / "ns-viewer"
    print(
        f"\n== done in {seconds / 60:.1f} minutes of training and rendering\n"
        f"{sentence}\n"
        f"  pictures (truth | rendering)  {folder / PICTURES}\n"
        f"  video                         {folder / VIDEO}\n"
        f"  look around yourself          {viewer} --load-config {folder / CONFIG} {' '.join(VIEWED_HERE)}\n"
        f"                                then open http://localhost:7007",
        flush=True,
    )
    return good


@command()
def main(arguments: list[str] | None = None) -> int:
    """The demo; 0 if all went well and the result is as good as it should be."""
    try:
        return 0 if tyro.cli(demo, prog="python -m zipnerf_ns.tools.demo", args=arguments) else 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
