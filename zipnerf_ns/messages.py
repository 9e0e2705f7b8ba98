"""What the trainer tells a person when it cannot go on, and what it keeps quiet about."""

from __future__ import annotations

import warnings
from typing import Any

from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.checks import InputError


def quiet_dependencies() -> None:
    """Drops warnings that Nerfstudio's own ways cause in newer versions of torch: nothing a user could mend."""
    of_code = ("Using a non-tuple sequence", "Converting a tensor with requires_grad", "`torch.cuda.amp")
    # Schedules go on at every step, also at those that only accumulate gradients.
    of_accumulation = "Detected call of `lr_scheduler.step"
    for message in (*of_code, of_accumulation):
        warnings.filterwarnings("ignore", message=message)


def raise_for_user(error: InputError) -> None:
    """Prints an input error without a stack trace and ends the program."""
    CONSOLE.print("Error:", style="bold red", end=" ")
    # Without markup: a path may contain brackets.
    CONSOLE.print(str(error), markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(1) from None


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
    return InputError(
        f"the GPU's memory does not suffice. Lower {' or '.join(mends)}{''.join(f', or {other}' for other in others)}."
    )
