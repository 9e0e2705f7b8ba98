"""Every kernel under NVIDIA's compute-sanitizer: `python -m zipnerf_ns.tools.sanitize`.

What the methods launch in training, evaluation and the viewer, on few rays and small tables, is taken down with all
that it is given. Then nothing but these launches is made, while the sanitizer watches each access to memory: for places
outside of every tensor (memcheck), for threads of a program that do not wait for each other (racecheck), and for values
that nobody wrote (initcheck). Every tensor has an allocation of its own: torch otherwise cuts them from large blocks,
in which an overrun ends in another tensor and is no error. Before, a kernel with faults is launched that each of them
has to find; a tool that does not is no witness. A run that is cut off tells what has been seen until then.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.command import command, command_parser, table

OPTIONS: dict[str, tuple[str, ...]] = {
    "memcheck": ("--destroy-on-device-error", "kernel", "--report-api-errors", "no"),
    "racecheck": (),
    "initcheck": (),
}
"""The sanitizer's tools, and what they are told: of calls that torch makes to try whether they work nothing is said."""
COMMON = ("--show-backtrace", "no", "--print-limit", "10000", "--launch-timeout", "0")
"""Of all tools; they wait however long torch takes to be imported."""
DEFAULT_METHODS = ("zipnerf", "zipnerf-lite", "zipnerf-dynamic")
"""Six look-ups an interval and one, four features a level and two, no time and time: between them every kernel."""
LOG2_HASHMAP_SIZE = 12
"""Of all tables: levels with hashing and without."""
TAKE, LAUNCH, PLANT = "--take", "--launch", "--plant"
"""What the processes do that the command starts: take launches down; make them; make the one with faults."""
ALLOCATED_ALONE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Has torch ask the driver for the memory of each tensor."""
SEEN = "launched:"
"""Begins the line of a launch that has been made: a number, of how many, the kernel."""
MOST_SAID = 20
"""Different errors that are printed."""
PLANTED = "planted_fault"
SOURCE = f"""extern "C" __global__ void {PLANTED}(const float* values, float* sums, int count) {{
    __shared__ float shared[64];
    shared[threadIdx.x] = values[threadIdx.x + (threadIdx.x == 63 ? count : 0)];
    sums[threadIdx.x] = shared[63 - threadIdx.x];
}}"""
"""Reads beyond the values, which nobody has written, and what another warp has just stored, without waiting for it."""


class Report(NamedTuple):
    """What a tool found."""

    tool: str
    errors: dict[str, int]
    """How often each was found: its headline, kernel and place in a line."""
    launched: Counter[str]
    """Launches that were made, by kernels."""
    ended: bool
    """Whether the tool came to its end, and counted."""
    last: str
    """Its last words."""

    def of(self, kernel: str) -> int:
        """Errors in a kernel."""
        return sum(count for error, count in self.errors.items() if kernel_of(error) == kernel)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_parser(
        "sanitize", "Launches every kernel on few rays under NVIDIA's compute-sanitizer, and counts what it finds."
    )
    parser.add_argument("--tool", nargs="+", choices=list(OPTIONS), default=list(OPTIONS), help="of compute-sanitizer")
    parser.add_argument("--method", nargs="+", default=list(DEFAULT_METHODS), help="as in ns-train")
    parser.add_argument("--seconds", type=float, default=0.0, help="after which it is cut off; 0 is never")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keeps what the tools print")
    for option in (TAKE, LAUNCH):
        parser.add_argument(option, type=Path, help=argparse.SUPPRESS)
    parser.add_argument(PLANT, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


@command()
def main(arguments: list[str] | None = None) -> int | None:
    """Prints tables, the errors and a verdict; 1 unless each tool ran to its end and found the planted fault alone."""
    options = parse(arguments)
    if options.take:
        return take(options.method, options.take)
    if options.launch:
        return launch(options.launch)
    if options.plant:
        return plant()
    return check(find_sanitizer(), options)


def find_sanitizer() -> str:
    """The program's path.

    Raises:
        InputError: if it is not here, or no GPU is that it knows.
    """
    if not torch.cuda.is_available() or torch.version.hip:
        raise InputError("compute-sanitizer watches NVIDIA's GPUs, and torch sees none here.")
    if not hasattr(torch.cuda, "_compile_kernel"):
        raise InputError("the fault that shows whether a tool sees anything is compiled by torch 2.9 or later.")
    folders = [os.environ["PATH"], os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    found = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if found is None:
        raise InputError(
            f"compute-sanitizer is neither in the PATH nor in {folders[1]}: it comes with NVIDIA's CUDA toolkit, whose "
            "folder CUDA_HOME names, and alone as its package cuda-sanitizer."
        )
    return found


def check(sanitizer: str, options: argparse.Namespace) -> int:
    """Runs the tools, beside each other, and prints what they found; the exit status."""
    program = [sys.executable, "-W", "ignore", "-m", __spec__.name]
    with (
        tempfile.TemporaryDirectory(prefix="zipnerf-sanitize-") as folder,
        Running(options.seconds) as running,
        ThreadPoolExecutor(len(options.tool)) as pool,
    ):
        launches = Path(folder) / "launches"

        def watch(tool: str, *what: str) -> str:
            watched = [sanitizer, "--tool", tool, *OPTIONS[tool], *COMMON, *program, *what]
            return running.run(tool, watched, ALLOCATED_ALONE)

        planted = [pool.submit(watch, tool, PLANT) for tool in options.tool]
        # Without a tool: it compiles what the tools then find, and what fails here has nothing to do with them.
        taken = running.run("without a tool", [*program, "--method", *options.method, TAKE, str(launches)])
        made = [pool.submit(watch, tool, LAUNCH, str(launches)) for tool in options.tool if launches.exists()]
        with suppress(KeyboardInterrupt):
            wait([*planted, *made])
        running.end()
        if not made:
            raise InputError(f"the kernels could not be launched, or not in time:\n{taken[-2000:]}")
        said = [(first.result(), second.result()) for first, second in zip(planted, made, strict=True)]
    if options.logs is not None:
        options.logs.mkdir(parents=True, exist_ok=True)
        for tool, texts in zip(options.tool, said, strict=True):
            (options.logs / f"{tool}.txt").write_text("".join(texts), encoding="utf-8")
    reports = [read(tool, *texts) for tool, texts in zip(options.tool, said, strict=True)]
    lines, is_clean = format_reports(reports, seen_in(taken))
    print("\n".join(lines))
    return 0 if is_clean else 1


class Running:
    """Processes that end with the context, by SIGTERM, or when their time is over.

    Args:
        seconds: for all of them; 0 sets no end.
    """

    def __init__(self, seconds: float) -> None:
        self._start = time.monotonic()
        self._processes: list[subprocess.Popen] = []
        self._has_ended = False
        self._limit = threading.Timer(seconds, self.end)
        if seconds:
            self._limit.start()

    def __enter__(self) -> Running:
        self._before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        self._limit.cancel()
        self.end()

    def run(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
        """All that a program prints; its launches are told at once, with the number of errors until then."""
        if self._has_ended:
            return ""
        process = subprocess.Popen(
            arguments, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        self._processes.append(process)
        said, errors = [], 0
        for line in process.stdout:
            said.append(line)
            # A race has a second place, in a line that begins with "and".
            errors += line.startswith("=====") and "+0x" in line and not line.lstrip("= ").startswith("and")
            if line.startswith(SEEN):
                what = f"{name}, {line.removeprefix(SEEN).strip()}: {errors} errors until then"
                print(f"{time.monotonic() - self._start:.0f} s, {what}", file=sys.stderr, flush=True)
        process.wait()
        return "".join(said)

    def end(self) -> None:
        """Ends them, and those that would come."""
        self._has_ended = True
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                # The tool's child does not end with it.
                for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                    each.kill()


def take(methods: Sequence[str], path: Path) -> None:
    """Launches all kernels of some methods on this machine's GPU, and writes down with what.

    Raises:
        InputError: if there is no such method.
    """
    from zipnerf_ns.kernels.check.replay import taken_down, write
    from zipnerf_ns.ops import compile_ahead
    from zipnerf_ns.tools import rehearsal

    if unknown := [method for method in methods if method not in rehearsal.METHODS]:
        raise InputError(f"--method {unknown[0]}: choose of {', '.join(rehearsal.METHODS)}.")

    def rehearse() -> None:
        for method in methods:
            rehearsal.rehearse(method, rehearsal.AS_CONFIGURED, LOG2_HASHMAP_SIZE)

    pending = compile_ahead(rehearse, torch.device(rehearsal.DEVICE, torch.cuda.current_device()))
    print(f"{len(pending)} kernels are compiled.", flush=True)
    for each in pending:
        each.result()
    print("Their launches are taken down.", flush=True)
    with taken_down() as found:
        rehearse()
    for number, taken in enumerate(found.values(), 1):
        _tell(number, len(found), taken.kernel)
    print("They are written.", flush=True)
    write(found.values(), path)


def launch(path: Path) -> None:
    """Makes the launches that were written down, and says so of each."""
    from zipnerf_ns.kernels.check.replay import launch_again, read

    launches, device = read(path), torch.device("cuda", torch.cuda.current_device())
    for number, taken in enumerate(launches, 1):
        try:
            launch_again(taken, device)
            torch.cuda.synchronize()
        except RuntimeError as error:
            # A tool ends a kernel that reads where nothing is, of which torch hears.
            print(f"{taken.kernel} was ended: {error}", flush=True)
            continue
        _tell(number, len(launches), taken.kernel)


def _tell(number: int, total: int, kernel: str) -> None:
    print(SEEN, f"{number} of {total}", kernel, flush=True)


def plant() -> None:
    """Launches a kernel with faults."""
    # In CUDA's own language: in Triton's nobody can forget to wait.
    planted = torch.cuda._compile_kernel(SOURCE, PLANTED)
    values, sums = (torch.empty(64, device="cuda") for _ in range(2))
    with suppress(RuntimeError):
        planted(grid=(1, 1, 1), block=(64, 1, 1), args=(values, sums, 4096))
        torch.cuda.synchronize()


def seen_in(output: str) -> Counter[str]:
    """Launches that a process has told of, by kernels."""
    return Counter(line.split()[-1] for line in output.splitlines() if line.startswith(SEEN))


def read(tool: str, of_planted: str, of_kernels: str) -> Report:
    """What a tool says: blocks of lines, each an error's headline, then the kernel and its place in the source.

    Args:
        tool: its name.
        of_planted: all that was printed about the kernel with faults.
        of_kernels: about the others.
    """
    said = [line.removeprefix("=========").rstrip() for line in f"{of_planted}\n{of_kernels}".splitlines()
            if line.startswith("=========")]  # fmt: skip
    errors: Counter[str] = Counter()
    headline = ""
    for line in said:
        if not line.startswith("    "):
            headline = line.strip()
        place = re.search(r"\bat (\w+)\+0x\w+(?: in (?:\S*/)?([\w.]+:\d+))?", line)
        # A race's headline names both places, or the first of them; an error counts once.
        if place and headline:
            what = headline.split(" at ")[0]
            errors[f"{place[1]}: {what}{f', {place[2]}' if place[2] else ''}"] += 1
            headline = ""
    last = next((line for line in reversed((of_kernels or of_planted).splitlines()) if line.strip("= ")), "nothing")
    return Report(tool, dict(errors), seen_in(of_kernels), " SUMMARY: " in of_kernels, last.strip("= "))


def kernel_of(error: str) -> str:
    """The kernel that an error of :class:`Report` names."""
    return error.split(":")[0]


def format_reports(reports: Sequence[Report], total: Mapping[str, int]) -> tuple[list[str], bool]:
    """A Markdown table, what was found below it and a verdict; and whether nothing was but what had been planted.

    Args:
        reports: of each tool.
        total: launches that there are, by kernels.
    """
    rows = [[PLANTED, *("found" if report.of(PLANTED) else "NOT FOUND" for report in reports)]]
    rows += [[kernel, *(f"{report.launched[kernel]} of {count}, {report.of(kernel)}" for report in reports)]
             for kernel, count in sorted(total.items())]  # fmt: skip
    said, is_clean = [], True
    for report in reports:
        found = Counter({error: count for error, count in report.errors.items() if kernel_of(error) != PLANTED})
        said += [f"{report.tool}: {error} ({count} times)" for error, count in found.most_common(MOST_SAID)]
        if not report.of(PLANTED):
            said.append(f"{report.tool} is no witness: {report.last}")
        if not report.ended or report.launched != Counter(total):
            said.append(f"{report.tool} did not end; its last words: {report.last}")
        is_clean &= report.ended and report.launched == Counter(total) and not found and bool(report.of(PLANTED))
    headings = ("launches, errors", *(report.tool for report in reports))
    verdict = "No error in any kernel." if is_clean else "FAILED: see above."
    return [*table(headings, rows), "", *said, verdict], is_clean


if __name__ == "__main__":
    sys.exit(main())
