"""How much memory trainings take, estimated and measured: `python -m zipnerf_ns.tools.memory --data SCENE`.

Before a training begins, what it needs is estimated from its configuration (``engine.safety.room``), and what would not
fit is refused. Here six configurations are trained for some steps, and the most that torch has taken from the device is
compared; what the driver takes for itself comes on top.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig

from zipnerf_ns.data.memory import GIB
from zipnerf_ns.engine.safety.room import TrainingMemory, training_memory
from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.benchmark.setup import training_config
from zipnerf_ns.tools.command import command, command_parser, table
from zipnerf_ns.tools.rehearsal import METHODS
from zipnerf_ns.tools.trials.training import release, set_up, train

TOLERANCE = 0.15
"""Share by which an estimate may be wrong."""


class Setting(NamedTuple):
    """A configuration that is measured."""

    method: str
    rays: int
    model: dict[str, Any] = {}
    """Fields of the model that differ from the method's."""
    words: str = ""
    """What these are, for the table."""

    @property
    def name(self) -> str:
        """As the table has it."""
        return f"{self.method}, {self.rays:,} rays{self.words}"


SETTINGS = (
    Setting("zipnerf", 16_384),
    Setting("zipnerf-big", 65_536),
    Setting("zipnerf", 8192, {"camera_optimizer": CameraOptimizerConfig(mode="SO3xR3")}, ", cameras optimized"),
    Setting("zipnerf-lite", 1024),
    Setting("zipnerf", 4096, {"implementation": "torch"}, ", in torch"),
    Setting("zipnerf", 8192, {"precision": "float32"}, ", float32"),
)


class Measured(NamedTuple):
    """One configuration's memory."""

    name: str
    estimate: TrainingMemory
    allocated: int
    """Bytes of tensors at most."""
    reserved: int
    """Bytes that torch has taken from the device at most, for them and for later ones: a card has to have them."""

    @property
    def error(self) -> float:
        """How much more was estimated than was taken, as a share of the latter."""
        return sum(self.estimate) / self.reserved - 1.0


def config_of(setting: Setting, data: Path, output: Path, steps: int) -> ZipNerfTrainerConfig:
    """The setting's training."""
    config = training_config(METHODS[setting.method], data, output, steps, setting.rays)
    config.steps_per_eval_image = 0
    config.pipeline.model = dataclasses.replace(config.pipeline.model, **setting.model)
    return config


def measure(setting: Setting, data: Path, steps: int) -> Measured:
    """Trains for some steps.

    Raises:
        SystemExit: if the data cannot be read, or it does not fit; what to do has then been said.
    """
    with tempfile.TemporaryDirectory(prefix="zipnerf-memory-") as folder:
        trainer, _ = set_up(config_of(setting, data, Path(folder), steps))
        pixels = trainer.pipeline.datamanager.pixels
        held = 0 if pixels is None or pixels.colors.device.type == "cpu" else pixels.num_bytes
        estimate = training_memory(trainer.pipeline.model.config, setting.rays, held, torch.device(trainer.device))
        allocated = train(trainer).peak_gpu_bytes
        reserved = torch.cuda.max_memory_reserved()
        release(trainer)
    return Measured(setting.name, estimate, allocated, reserved)


def table_of(found: Sequence[Measured]) -> list[str]:
    """A table's lines."""
    rows = [
        [each.name, f"{sum(each.estimate) / GIB:.2f}", f"{each.reserved / GIB:.2f}", f"{each.error:+.0%}",
         f"{each.allocated / GIB:.2f}"]
        for each in found
    ]  # fmt: skip
    return table(("training", "estimated GiB", "taken GiB", "error", "of which in use"), rows)


@command()
def main(arguments: list[str] | None = None) -> int:
    """Prints the table and a verdict; 1 if an estimate is wrong."""
    parser = command_parser(
        "memory", "Compares what trainings take of the GPU's memory with what is estimated before they begin."
    )
    parser.add_argument("--data", type=Path, required=True, help="a scene's folder")
    parser.add_argument("--steps", type=int, default=20, help="of each training")
    parser.add_argument("--only", type=int, nargs="+", choices=range(1, len(SETTINGS) + 1), metavar="NUMBER",
                        default=range(1, len(SETTINGS) + 1), help="trainings, by their place in the table")  # fmt: skip
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise InputError("there is no CUDA device, whose memory this measures.")
    found = []
    for number in options.only:
        found.append(measure(SETTINGS[number - 1], options.data, options.steps))
        # Among what trainings say, and whatever becomes of the others.
        print(table_of(found)[-1], flush=True)
    wrong = [each.name for each in found if abs(each.error) > TOLERANCE]
    verdict = f"FAILED: more than {TOLERANCE:.0%} off: {'; '.join(wrong)}." if wrong else f"All within {TOLERANCE:.0%}."
    print(*table_of(found), "", verdict, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
