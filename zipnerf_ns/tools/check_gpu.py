"""Whether the kernels run on GPUs that are not here: `python -m zipnerf_ns.tools.check_gpu --capability 8.6`.

Every kernel that the methods launch in training, evaluation and the viewer is compiled for those GPUs, on a CPU: a
rehearsal of the methods without data says what they would launch, and Triton's compiler what that takes. Compiling is
all that can be known so: neither that the results are right nor how fast they come.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from fnmatch import fnmatchcase
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.command import command, command_parser, table
from zipnerf_ns.tools.rehearsal import AS_CONFIGURED, METHODS, variations

if TYPE_CHECKING:
    from zipnerf_ns.kernels.check.compiler import Compiled
    from zipnerf_ns.kernels.check.launches import Launch

GPUS = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
"""RTX 20 and T4, A100, RTX 30, RTX 40, H100, B200, RTX 50."""


class Row(NamedTuple):
    """What one kernel takes on one GPU: the most that any of its variants takes."""

    gpu: str
    kernel: str
    variants: int
    shared: int
    limit: int
    registers: int
    spilled: int
    seconds: float
    """Time that all variants took together."""
    errors: tuple[str, ...]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_parser(
        "check_gpu", "Compiles the kernels for GPUs that are not here, and says what they take there."
    )
    parser.add_argument("--capability", nargs="+", default=GPUS, metavar="GPU",
                        help="compute capabilities, or AMD's gfx942, gfx1100")  # fmt: skip
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS), help="as in ns-train")
    parser.add_argument("--kernel", nargs="+", metavar="NAME", default=["*"], help="only these, such as 'radiance_*'")
    parser.add_argument("--all", action="store_true", help="every option that changes a kernel, not the defaults alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    return parser.parse_args(arguments)


@command()
def main(arguments: list[str] | None = None) -> int:
    """Prints a table and a verdict; 1 if a kernel would not run."""
    options = parse(arguments)
    check_names(options.capability)
    with tempfile.TemporaryDirectory(prefix="zipnerf-check-gpu-") as folder:
        with workers(options.jobs, folder) as pool:
            launches = rehearsed(pool, options.capability, options.method, options.all, options.kernel)
            rows = compiled(pool, launches, folder)
    print(f"{format_table(rows)}\n\n{format_verdict(rows)}")
    return 1 if any(row.errors for row in rows) else 0


def workers(jobs: int, folder: str) -> Executor:
    """Processes that keep what they compile in a folder."""
    return ProcessPoolExecutor(jobs, get_context("spawn"), _prepare, (folder,))


def _prepare(folder: str) -> None:
    # What others have compiled would take no time, and print no registers. Interpreted kernels cannot be compiled.
    os.environ["TRITON_CACHE_DIR"] = folder
    os.environ.pop("TRITON_INTERPRET", None)


def check_names(gpus: Sequence[str]) -> None:
    """Does nothing where the compiler is here and knows the GPUs.

    Raises:
        InputError: elsewhere.
    """
    try:
        from zipnerf_ns.kernels.check.compiler import stand_in
    except ImportError as error:
        raise InputError(f"the kernels are compiled by Triton, which torch brings on Linux: {error}.") from error
    try:
        for gpu in gpus:
            stand_in(gpu)
    except ValueError as error:
        raise InputError(f"--capability: {error}") from error


def rehearsed(
    pool: Executor, gpus: Sequence[str], methods: Sequence[str], every_option: bool, kernels: Sequence[str]
) -> dict[tuple[str, Launch], None]:
    """What is launched on each GPU, each once."""
    found: dict[tuple[str, Launch], None] = {}
    plans = [(gpu, *plan) for gpu in gpus for plan in rehearsals(methods, every_option)]
    for (gpu, method, variation), launches in zip(plans, pool.map(rehearse_on, *zip(*plans, strict=True)), strict=True):
        for launch in launches:
            if any(fnmatchcase(launch.kernel, name) for name in kernels):
                found.setdefault((gpu, launch))
        tell(f"{gpu}: {method}, {variation}: {len(launches)} launches")
    return found


def rehearsals(methods: Sequence[str], every_option: bool) -> list[tuple[str, str]]:
    """Methods and variations that differ in what is rehearsed: some methods have the same model, on other data."""
    found: dict[str, tuple[str, str]] = {}
    for method in methods:
        model = METHODS[method].pipeline.model
        for variation, changes in variations(model).items():
            if every_option or variation == AS_CONFIGURED:
                # Optimizers differ in their rates.
                found.setdefault(repr(dataclasses.replace(model, **changes)), (method, variation))
    return list(found.values())


def rehearse_on(gpu: str, method: str, variation: str) -> list[Launch]:
    """What a method launches on a GPU; in a process of its own, for what seems to lie on a GPU stays in caches."""
    from zipnerf_ns.kernels.check.launches import recorded
    from zipnerf_ns.tools.rehearsal import rehearse

    # What the methods say on the way would stand before the table.
    with redirect_stdout(sys.stderr), recorded(gpu) as launches:
        rehearse(method, variation)
    return list(launches)


def compile_for(gpu: str, launch: Launch) -> Compiled:
    """One kernel, compiled; in a process of its own, whose driver Triton takes for the GPU's."""
    from zipnerf_ns.kernels.check.compiler import compile_launch

    return compile_launch(gpu, launch)


def compile_alone(gpu: str, launch: Launch, folder: str) -> Compiled:
    """The same in a process that only this compilation can end, as compilers may where they meet what they rule out."""
    from zipnerf_ns.kernels.check.compiler import failed

    with workers(1, folder) as pool:
        try:
            return pool.submit(compile_for, gpu, launch).result()
        except BrokenProcessPool:
            return failed(gpu, "the compiler ended the process.")


def compiled(pool: Executor, launches: Iterable[tuple[str, Launch]], folder: str) -> list[Row]:
    """All kernels on all GPUs, in the order of their launches; ``folder`` is for the compiler."""
    pending = {pool.submit(compile_for, gpu, launch): (gpu, launch) for gpu, launch in launches}
    results: dict[tuple[str, Launch], Compiled] = dict.fromkeys(pending.values())
    for number, future in enumerate(as_completed(pending), 1):
        gpu, launch = pending[future]
        try:
            found = future.result()
        except BrokenProcessPool:
            found = compile_alone(gpu, launch, folder)
        results[gpu, launch] = found
        took = f"{found.shared:,} bytes shared, {found.registers} registers, {found.spilled} spilled"
        tell(f"{number}/{len(pending)} {launch.kernel} on {gpu}: {found.error or took}, {found.seconds:.1f} s")
    groups: dict[tuple[str, str], dict[Launch, Compiled]] = defaultdict(dict)
    for (gpu, launch), found in results.items():
        groups[gpu, launch.kernel][launch] = found
    return [_row(gpu, kernel, group) for (gpu, kernel), group in groups.items()]


def _row(gpu: str, kernel: str, group: dict[Launch, Compiled]) -> Row:
    found = group.values()
    errors = [f"{launch} on {gpu}: {one.error}" for launch, one in group.items() if one.error is not None]
    return Row(
        gpu, kernel, len(group), max(one.shared for one in found), max(one.limit for one in found),
        max(one.registers for one in found), max(one.spilled for one in found), sum(one.seconds for one in found),
        tuple(errors),
    )  # fmt: skip


def format_table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    headings = ("GPU", "kernel", "variants", "shared bytes", "of", "registers", "spilled", "compiled in")
    cells = [
        (row.gpu, row.kernel, str(row.variants), f"{row.shared:,}{' FAILS' if row.errors else ''}", f"{row.limit:,}",
         str(row.registers), str(row.spilled), f"{row.seconds:.1f} s")
        for row in rows
    ]  # fmt: skip
    return "\n".join(table(headings, cells))


def format_verdict(rows: Sequence[Row]) -> str:
    """What would not run, and last whether everything would."""
    failed, count = [error for row in rows for error in row.errors], sum(row.variants for row in rows)
    wrong = f"FAILED: {len(failed)} of {count} kernels would not run."
    # Variants that differ in their tensors' layout only read alike.
    return "\n".join([*dict.fromkeys(failed), wrong if failed else f"All {count} kernels would run."])


def tell(what: str) -> None:
    """Says how far it is, beside the table."""
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
