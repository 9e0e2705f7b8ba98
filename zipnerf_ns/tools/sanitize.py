"""Every kernel under NVIDIA's compute-sanitizer: `python -m zipnerf_ns.tools.sanitize`.

What the methods launch in training, evaluation and the viewer is launched once, on few rays, while the sanitizer
watches each access to memory: for places outside of every tensor (memcheck), for threads of a program that do not wait
for each other (racecheck), and for values that nobody wrote (initcheck). Every tensor then has an allocation of its
own: torch otherwise cuts them from large blocks, in which an overrun ends in another tensor and is no error. At last a
kernel with faults is launched that each of them has to find; a tool that does not is no witness.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from zipnerf_ns.errors import InputError
from zipnerf_ns.ops import compile_ahead
from zipnerf_ns.tools import rehearsal
from zipnerf_ns.tools.command import command, command_parser
from zipnerf_ns.tools.trials.report import table

OPTIONS: dict[str, tuple[str, ...]] = {
    "memcheck": ("--destroy-on-device-error", "kernel", "--report-api-errors", "no"),
    "racecheck": (),
    "initcheck": (),
}
"""The sanitizer's tools, and what they are told: of calls that torch makes to try whether they work nothing is said."""
COMMON = ("--show-backtrace", "no", "--print-limit", "10000", "--launch-timeout", "0")
"""Of all tools; they wait however long Nerfstudio takes to be imported."""
DEFAULT_METHODS = ("zipnerf", "zipnerf-lite")
"""Six look-ups an interval and one, four features a level and two: between them every kernel."""
LAUNCH, ANEW, COMPILED = "--launch", "anew", "compiled"
"""Asks for the launches themselves, of kernels to be compiled first or not: the process that is watched."""
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
    total: int | None
    """Errors by the tool's own count; None if it did not come to its end."""
    last: str
    """Its last words."""

    def of(self, kernels: Sequence[str]) -> int:
        """Errors in some kernels."""
        return sum(count for error, count in self.errors.items() if kernel_of(error) in kernels)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_parser(
        "sanitize", "Launches every kernel on few rays under NVIDIA's compute-sanitizer, and counts what it finds."
    )
    methods = list(rehearsal.METHODS)
    parser.add_argument("--tool", nargs="+", choices=list(OPTIONS), default=list(OPTIONS), help="of compute-sanitizer")
    parser.add_argument("--method", nargs="+", choices=methods, default=list(DEFAULT_METHODS), help="as in ns-train")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keeps what the tools print")
    parser.add_argument(LAUNCH, choices=(ANEW, COMPILED), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


@command()
def main(arguments: list[str] | None = None) -> int | None:
    """Prints a table, the errors and a verdict; 1 unless each tool ran to its end and found the planted fault alone."""
    options = parse(arguments)
    if options.launch:
        return launch_all(options.method, options.launch == ANEW)
    return check(find_sanitizer(), options.tool, options.method, options.logs)


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


def check(sanitizer: str, tools: Sequence[str], methods: Sequence[str], logs: Path | None) -> int:
    """Runs the tools, beside each other, and prints what they found; the exit status."""
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--method", *methods, LAUNCH]
    with tempfile.TemporaryDirectory(prefix="zipnerf-sanitize-") as cache:
        environment = {**os.environ, "TRITON_CACHE_DIR": cache, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        # Without a tool first: it compiles what the others then find, and what fails here has nothing to do with them.
        status, said = _run([*command, ANEW], environment)
        if status:
            raise InputError(f"the kernels could not be launched:\n{said[-2000:]}")
        codes = Counter(path.stem for path in Path(cache).rglob("*.cubin"))

        def run(tool: str) -> Report:
            _, said = _run([sanitizer, "--tool", tool, *OPTIONS[tool], *COMMON, *command, COMPILED], environment)
            if logs is not None:
                logs.mkdir(parents=True, exist_ok=True)
                (logs / f"{tool}.txt").write_text(said, encoding="utf-8")
            return read(tool, said)

        with ThreadPoolExecutor(len(tools)) as pool:
            reports = list(pool.map(run, tools))
    lines, is_clean = format_reports(reports, codes)
    print("\n".join(lines))
    return 0 if is_clean else 1


def _run(command: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Status of a program, and all that it printed."""
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return result.returncode, result.stdout


def launch_all(methods: Sequence[str], compiles: bool) -> None:
    """All kernels of some methods on this machine's GPU, and where they need not be compiled, last the one with faults.

    Args:
        methods: as in ns-train.
        compiles: the kernels first, several at a time.
    """

    def launch() -> None:
        for method in methods:
            rehearsal.rehearse(method, rehearsal.AS_CONFIGURED)

    if compiles:
        for pending in compile_ahead(launch, torch.device(rehearsal.DEVICE, torch.cuda.current_device())):
            pending.result()
    launch()
    torch.cuda.synchronize()
    if not compiles:
        _launch_fault()


def _launch_fault() -> None:
    # In CUDA's own language: in Triton's nobody can forget to wait.
    planted = torch.cuda._compile_kernel(SOURCE, PLANTED)
    values, sums = (torch.empty(64, device=rehearsal.DEVICE) for _ in range(2))
    # A tool ends a kernel that reads where nothing is, of which torch hears.
    with suppress(RuntimeError):
        planted(grid=(1, 1, 1), block=(64, 1, 1), args=(values, sums, 4096))
        torch.cuda.synchronize()


def read(tool: str, output: str) -> Report:
    """What a tool says: blocks of lines, each an error's headline, then the kernel and its place in the source."""
    said = [line.removeprefix("=========").rstrip() for line in output.splitlines() if line.startswith("=========")]
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
    count = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (?:\d+ hazards? displayed \()?(\d+) error", "\n".join(said))
    last = next((line for line in reversed(output.splitlines()) if line.strip("= ")), "nothing")
    return Report(tool, dict(errors), int(count[1]) if count else None, last.strip("= "))


def kernel_of(error: str) -> str:
    """The kernel that an error of :class:`Report` names."""
    return error.split(":")[0]


def format_reports(reports: Sequence[Report], codes: Counter[str]) -> tuple[list[str], bool]:
    """A Markdown table, what was found below it and a verdict; and whether nothing was but what had been planted."""
    kernels, rows, said = list(codes), [], []
    for report in reports:
        ours, planted = report.of(kernels), report.of([PLANTED])
        others = "did not end" if report.total is None else str(max(report.total - ours - planted, 0))
        rows.append([report.tool, str(len(codes)), str(codes.total()), str(ours), others, "yes" if planted else "NO"])
        found = Counter({error: count for error, count in report.errors.items() if kernel_of(error) != PLANTED})
        said += [f"{report.tool}: {error} ({count} times)" for error, count in found.most_common(MOST_SAID)]
        if report.total is None or not planted:
            said.append(f"{report.tool} is no witness: {report.last}")
    headings = ("tool", "kernels", "codes", "errors in them", "errors elsewhere", "found the planted fault")
    is_clean = not any(report.of(kernels) or report.total is None or not report.of([PLANTED]) for report in reports)
    verdict = "No error in any kernel." if is_clean else "FAILED: see above."
    return [*table(headings, rows), "", f"Kernels: {', '.join(sorted(kernels))}.", *said, verdict], is_clean


if __name__ == "__main__":
    sys.exit(main())
