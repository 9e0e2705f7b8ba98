"""Whether a training repeats itself: `python -m zipnerf_ns.tools.repeat --data SCENE`.

The same training, with cameras and appearance learned, is run again, and once more stopped in its middle by a signal
and resumed: with --deterministic True all must end with the same bits. Then, without it, how far parameters come apart,
what a step takes with it and without, and how much the held-out PSNR of several trainings varies.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.scripts.train import _set_random_seed
from nerfstudio.utils import writer

from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig
from zipnerf_ns.tools.bench import built_in_scene
from zipnerf_ns.tools.benchmark.setup import FULL, TINY, bench_config
from zipnerf_ns.tools.command import command, command_parser, table
from zipnerf_ns.tools.trials.training import release, set_up


class Ended(NamedTuple):
    """What is left of a training."""

    digest: str
    """One number for all its bits: parameters, moments and rates."""
    parameters: list[Tensor]
    """On the CPU."""
    step_ms: float
    """Mean of the later half's."""


def state_of(trainer: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a training goes on from, by a name each."""
    for name, value in trainer.pipeline.state_dict().items():
        yield name, value
    for group, optimizer in trainer.optimizers.optimizers.items():
        for index, state in enumerate(optimizer.state.values()):
            for name, value in state.items():
                yield f"{group} {index} {name}", torch.as_tensor(value)
        yield f"{group} rate", torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64)


def digest_of(trainer: Any) -> str:
    """One number for all bits of a training's state."""
    found = hashlib.sha256()
    for name, value in state_of(trainer):
        found.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def run(config: ZipNerfTrainerConfig, stop_at: int | None = None) -> Ended:
    """Trains as ``ns-train`` does.

    Args:
        config: of the training.
        stop_at: the step in which the process is sent SIGTERM.
    """
    config = copy.deepcopy(config)
    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()
    _set_random_seed(config.machine.seed)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    total, times = config.max_num_iterations, {}

    def note(step: int) -> None:
        if step in (total // 2, total - 1):
            # Without evaluations and checkpoints.
            times[step] = trainer.clock.seconds()
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], note))
    # Whatever else ends it ends everything.
    with nullcontext() if stop_at is None else suppress(SystemExit):
        trainer.train()
    step_ms = (times.get(total - 1, 0.0) - times.get(total // 2, 0.0)) / (total - 1 - total // 2) * 1e3
    parameters = [parameter.detach().cpu() for parameter in trainer.pipeline.model.parameters()]
    ended = Ended(digest_of(trainer), parameters, step_ms)
    release(trainer)
    if stop_at is None:
        # Checkpoints are large, and this one is not resumed.
        shutil.rmtree(config.get_base_dir())
    return ended


def measure(config: ZipNerfTrainerConfig) -> float:
    """PSNR of the held-out views after a training that writes nothing."""
    trainer, _ = set_up(config)
    trainer.train()
    psnr = trainer.pipeline.get_average_eval_image_metrics()["psnr"]
    release(trainer)
    return psnr


def apart(first: Ended, second: Ended) -> str:
    """How two trainings have ended."""
    if first.digest == second.digest:
        return "the same bits"
    squares = [
        ((a - b).double().square().sum(), a.double().square().sum())
        for a, b in zip(first.parameters, second.parameters, strict=True)
    ]
    difference, size = (float(sum(parts)) ** 0.5 for parts in zip(*squares, strict=True))
    return f"parameters differ by {difference / size:.1e} of their norm"


def compare(config: ZipNerfTrainerConfig, folder: Path, deterministic: bool) -> tuple[list[list[str]], bool]:
    """Rows about one training, the same again, and the same resumed; whether all ended with the same bits."""
    config = copy.deepcopy(config)
    config.deterministic, word = deterministic, "deterministic" if deterministic else "as it is"
    total = config.max_num_iterations
    half = total // 2 - 1
    ended = {}
    for name in ("once", "again"):
        config.output_dir = folder / word / name
        ended[name] = run(config)
    config.output_dir = folder / word / "stopped"
    run(config, stop_at=half)
    config.load_dir = config.get_checkpoint_dir()
    ended["resumed"] = run(config)
    once = ended.pop("once")
    rows = [
        [f"{word}, {what}", apart(once, ended[name]), ended[name].digest]
        for name, what in (("again", "again"), ("resumed", f"stopped after {half + 1} steps and resumed"))
    ]
    first = [f"{word}, {total} steps", f"{once.step_ms:.2f} ms a step", once.digest]
    return [first, *rows], all(other.digest == once.digest for other in ended.values())


def compare_all(config: ZipNerfTrainerConfig, steps: int, folder: Path) -> tuple[list[list[str]], bool]:
    """Rows about trainings that should end alike, and about what that costs; whether the deterministic ones did.

    Args:
        config: of a training that learns nothing beside the scene.
        steps: of each training.
        folder: for what they write.
    """
    learned, plain = copy.deepcopy(config), copy.deepcopy(config)
    learned.max_num_iterations, learned.steps_per_eval_image = steps, max(steps // 3, 1)
    learned.pipeline.model.use_appearance = True
    learned.pipeline.model.camera_optimizer.mode = "SO3xR3"
    rows, is_same = compare(learned, folder, deterministic=True)
    rows += compare(learned, folder, deterministic=False)[0]
    plain.max_num_iterations, plain.output_dir = steps, folder / "plain"
    for plain.deterministic in (True, False):
        name = f"nothing learned beside the scene, {'deterministic' if plain.deterministic else 'as it is'}"
        ended = run(plain)
        rows.append([name, f"{ended.step_ms:.2f} ms a step", ended.digest])
    return rows, is_same


def measure_all(config: ZipNerfTrainerConfig, runs: int, steps: int, folder: Path) -> list[float]:
    """The PSNR of each of several trainings; each is told when it is there.

    Args:
        config: of the trainings.
        runs: their number.
        steps: of each.
        folder: for what they write.
    """
    config = copy.deepcopy(config)
    config.max_num_iterations, config.steps_per_eval_image = steps, 0
    measured = []
    for number in range(runs):
        config.output_dir = folder / f"run {number}"
        measured.append(measure(config))
        # Among what trainings say, and whatever becomes of the others.
        print(f"Training {number + 1} of {runs}: {measured[-1]:.3f} dB", flush=True)
    return measured


@command()
def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 1 if the deterministic trainings differ."""
    parser = command_parser(
        "repeat", "Whether the same training ends with the same bits, and how much it varies where it does not."
    )
    parser.add_argument("--data", type=Path, help="a scene's folder; without it the built-in scene")
    parser.add_argument("--steps", type=int, default=300, help="of each training that is compared; 0 compares none")
    parser.add_argument("--runs", type=int, default=10, help="trainings whose PSNR is measured; 0 for none")
    parser.add_argument("--run-steps", type=int, default=1000, help="of each of them")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few rays: for a CPU")
    options = parser.parse_args(arguments)
    rows, is_same = [], True
    with tempfile.TemporaryDirectory(prefix="zipnerf-repeat-") as name:
        folder = Path(name)
        data = options.data or built_in_scene(folder / "scene", options.tiny)
        config = bench_config(data, folder, TINY if options.tiny else FULL)
        if options.tiny:
            config.machine.device_type = "cpu"
        if options.steps:
            rows, is_same = compare_all(config, options.steps, folder)
        measured = measure_all(config, options.runs, options.run_steps, folder)
    print("\n".join(table(("training", "ended", "digest"), rows)))
    if len(measured) > 1:
        mean, spread = statistics.mean(measured), statistics.stdev(measured)
        print(
            f"PSNR of {len(measured)} trainings of {options.run_steps} steps, seed {config.machine.seed}: "
            f"{mean:.3f} dB, standard deviation {spread:.3f}: {', '.join(f'{psnr:.3f}' for psnr in measured)}."
        )
    if rows:
        print("Deterministic trainings ended with the same bits." if is_same else "FAILED: deterministic ones differ.")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
