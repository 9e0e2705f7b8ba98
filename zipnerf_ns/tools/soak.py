"""Whether long trainings stay as they are: `python -m zipnerf_ns.tools.soak --data SCENE --minutes 60`.

A training with evaluations and a client of its viewer, which moves its camera all the time, is stopped by SIGTERM and
resumed by a new process, several times. Memory, open files, threads and the time of a step are noted meanwhile: what
grows within a process, or from one to the next, is said. What a process itself told TensorBoard is read when it has
ended: steps, torch's memory and evaluations.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from zipnerf_ns.engine.checkpoints import checkpoints_in
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.benchmark.events import read_events
from zipnerf_ns.tools.command import command, command_parser, table
from zipnerf_ns.tools.programs import data_arguments, quiet_environment

FOREVER = 100_000_000
"""Steps that no soak reaches."""
LONGEST_SIDE = 1600
"""Pixels of the data's photos."""
WARM_UP = 1 / 3
"""Share of a process's samples that do not count: pools of memory and threads fill, and kernels are compiled."""
GROWTH = {"process MiB": (0.02, 32.0), "GPU MiB": (0.01, 64.0), "files": (0.0, 2.0), "threads": (0.0, 34.0),
          "ms a step": (0.1, 0.2)}  # fmt: skip
"""What may come on top between two times: a share, and so much in any case. The viewer's own pool of threads
fills up to 32, as clients happen to ask."""


class Sample(NamedTuple):
    """A look at a training's process."""

    memory: float
    """MiB of main memory, all of its processes together."""
    gpu: float
    """MiB of the GPU that are its own: where the driver does not say whose they are, as in containers, what torch held
    for it at that time, known when it has ended; NaN without a GPU."""
    files: float
    threads: float
    step: float
    """The latest line's milliseconds a step; NaN before there is one."""


class Viewer(threading.Thread):
    """A client of a viewer, which comes and goes, moves its camera and counts the pictures that it is sent.

    Args:
        url: of the viewer's websocket.
        pause: seconds between two movements, and between two connections.
        stay: seconds of a connection.
    """

    def __init__(self, url: str, pause: float = 0.5, stay: float = 10.0) -> None:
        super().__init__(daemon=True)
        self.url, self.pause, self.stay = url, pause, stay
        self.connections = self.pictures = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Connects, and again when the connection has ended."""
        while not self._ended.wait(self.pause):
            with suppress(OSError, EOFError), connected(self.url) as connection:
                self.connections += 1
                self._look(connection)

    def _look(self, connection: Any) -> None:
        moved, end = 0.0, time.monotonic() + self.stay
        while not self._ended.is_set() and time.monotonic() < end:
            if time.monotonic() - moved >= self.pause:
                moved = time.monotonic()
                connection.send(camera_message(moved))
            with suppress(TimeoutError):
                self.pictures += b"BackgroundImageMessage" in connection.recv(timeout=self.pause)

    def end(self) -> None:
        """Closes it."""
        self._ended.set()
        self.join()


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """A connection to a viewer, by the library that Nerfstudio's viewer brings; its end raises an EOFError."""
    from websockets.exceptions import ConnectionClosed, InvalidHandshake
    from websockets.sync.client import connect

    try:
        with connect(url, max_size=None) as connection:
            yield connection
    except (ConnectionClosed, InvalidHandshake) as error:
        raise EOFError from error


def camera_message(angle: float) -> bytes:
    """What the viewer's page sends when its camera has moved: here about the origin."""
    import msgspec

    return msgspec.msgpack.encode({
        "type": "ViewerCameraMessage", "wxyz": (math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)),
        "position": (4.0 * math.cos(angle), 4.0 * math.sin(angle), 2.0), "fov": 1.0, "aspect": 1.5,
        "look_at": (0.0, 0.0, 0.0), "up_direction": (0.0, 0.0, 1.0),
    })  # fmt: skip


class Training:
    """A training in a process of its own.

    Args:
        command: of it.
        log: where its lines go.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("w", encoding="utf-8") as stream:
            settings = {"env": quiet_environment(), "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
            self.process = psutil.Popen(list(command), stdout=stream, **settings)

    def look(self) -> Sample:
        """How it is now.

        Raises:
            InputError: if it has ended by itself.
        """
        if self.process.poll() is not None:
            said = self.log.read_text(encoding="utf-8")[-2000:]
            raise InputError(f"the training ended with status {self.process.returncode}:\n{said}")
        memory = files = threads = 0
        processes = [self.process, *self.process.children(recursive=True)]
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                memory, files, threads = (memory + each.memory_info().rss / 2**20, files + each.num_fds(),
                                          threads + each.num_threads())  # fmt: skip
        times = re.findall(r"([\d.]+) ms/step", self.log.read_text(encoding="utf-8"))
        gpu, step = gpu_memory([each.pid for each in processes]), float(times[-1]) if times else math.nan
        return Sample(memory, gpu, files, threads, step)

    def steps(self) -> int:
        """The last step that it told of."""
        return max(map(int, re.findall(r"^step (\d+)/", self.log.read_text(encoding="utf-8"), re.MULTILINE)), default=0)

    def stop(self) -> int:
        """Ends it as a queue would; its status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def gpu_memory(processes: Sequence[int]) -> float:
    """MiB that processes have of GPUs; NaN where the driver does not say."""
    if shutil.which("nvidia-smi") is None:
        return math.nan
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    found = [row[1] for row in rows if row[0] in map(str, processes)]
    return sum(map(float, found)) if found and all(each.isdigit() for each in found) else math.nan


def with_torch_memory(samples: Sequence[Sample], reserved: Sequence[float]) -> list[Sample]:
    """Samples whose memory of the GPU, where the driver did not say it, is what torch held by then."""
    count = len(reserved)
    return [
        sample._replace(gpu=reserved[number * count // len(samples)]) if math.isnan(sample.gpu) and count else sample
        for number, sample in enumerate(samples)
    ]


def halves(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """Medians of the earlier and the later half of what is known after the warm-up."""
    kept = samples[int(len(samples) * WARM_UP) :]
    middle = len(kept) // 2

    def medians(part: Sequence[Sample]) -> Sample:
        columns = [[value for value in column if not math.isnan(value)] for column in zip(*part, strict=True)]
        return Sample(*(statistics.median(column) if column else math.nan for column in columns))

    return medians(kept[:middle]), medians(kept[middle:])


def grown(before: Sample, after: Sample) -> list[str]:
    """Names of what has grown by more than it may."""
    return [
        name
        for (name, (share, least)), old, new in zip(GROWTH.items(), before, after, strict=True)
        if new > old * (1.0 + share) + least
    ]


def report(processes: Sequence[Sequence[Sample]], in_use: Sequence[float]) -> tuple[str, list[str]]:
    """A table of what was noted, and what has grown, by names.

    From one process to another what torch holds of a GPU differs with the order in which the viewer's pictures come, by
    hundreds of MiB; what of it is in use does not.

    Args:
        processes: the samples of each, six at least.
        in_use: MiB of the GPU that each process's tensors took at the most; NaN where that is not known.
    """
    parts = [halves(samples) for samples in processes]
    rows, growing = [], []
    for number, (early, late) in enumerate(parts, 1):
        found = grown(early, late)
        cells = [f"{a:.1f} - {b:.1f}" if not math.isnan(a) else "not known" for a, b in zip(early, late, strict=True)]
        rows.append([f"process {number}", *cells, ", ".join(found) or "nothing"])
        growing += [f"{name} in process {number}" for name in found]
    first, last = (parts[number][1]._replace(gpu=in_use[number]) for number in (0, -1))
    growing += [f"{name} from the first process to the last" for name in grown(first, last)]
    return "\n".join(table(("earlier - later half", *GROWTH, "growing"), rows)), growing


def run_folder(options: argparse.Namespace, folder: Path) -> Path:
    """Where all processes' trainings are."""
    return folder / "soak" / options.method / "run"


def train_command(options: argparse.Namespace, folder: Path, port: int) -> list[str]:
    """``ns-train`` with viewer and evaluations, going on from the folder's checkpoint where there is one."""
    run = run_folder(options, folder)
    resumed = ["--load-dir", str(run / "nerfstudio_models")] if checkpoints_in(run / "nerfstudio_models") else []
    return [
        "ns-train", options.method, "--data", str(options.data), "--output-dir", str(folder),
        *("--experiment-name", "soak", "--timestamp", "run", "--max-num-iterations", str(FOREVER)),
        *("--steps-per-eval-image", str(options.eval_steps), "--steps-per-save", str(options.eval_steps)),
        *("--vis", "viewer+tensorboard", "--viewer.websocket-port", str(port)), *resumed, *options.options,
        *data_arguments(options.data, LONGEST_SIDE),
    ]  # fmt: skip


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_parser(
        "soak", "Trains for long, with a viewer and in several processes, and says what grows meanwhile."
    )
    parser.add_argument("--data", type=Path, required=True, help="a scene's folder")
    parser.add_argument("--minutes", type=float, default=60.0, help="of all processes together")
    parser.add_argument("--processes", type=int, default=4, help="each goes on where the one before was stopped")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--method", default="zipnerf", help="as in ns-train")
    parser.add_argument("--eval-steps", type=int, default=500, help="steps between two evaluations and checkpoints")
    parser.add_argument("options", nargs="*", help="of ns-train, after --")
    return parser.parse_args(arguments)


def soak(options: argparse.Namespace, folder: Path) -> tuple[list[list[Sample]], list[float]]:
    """The samples of every process, and what its tensors took of the GPU; says how each ended.

    Raises:
        InputError: if a training ends by itself, or otherwise than by the signal, or the viewer has sent no picture.
    """
    each, found, in_use = 60.0 * options.minutes / options.processes, [], []
    for number in range(1, options.processes + 1):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        training = Training(train_command(options, folder, port), folder / f"{number}.log")
        viewer = Viewer(f"ws://127.0.0.1:{port}")
        viewer.start()
        samples, deadline = [], time.monotonic() + each
        try:
            while time.monotonic() < deadline:
                time.sleep(options.every)
                samples.append(training.look())
            last = samples[-1]
        finally:
            viewer.end()
            status = training.stop()
        events = read_events(run_folder(options, folder))
        # Before it steps, a training compiles and reads.
        stepping = [sample for sample in samples if not math.isnan(sample.step)]
        found.append(with_torch_memory(stepping, events.reserved))
        in_use.append(max(events.in_use, default=math.nan))
        print(
            f"process {number}: step {training.steps():,}, {last.memory:.0f} MiB, {last.files:.0f} files, "
            f"{last.threads:.0f} threads, {viewer.pictures} pictures of the viewer in {viewer.connections} visits, "
            f"status {status}; {events}", flush=True,
        )  # fmt: skip
        if status != 128 + signal.SIGTERM:
            said = training.log.read_text(encoding="utf-8")[-2000:]
            raise InputError(f"it should have ended with status 143:\n{said}")
        if not viewer.pictures:
            raise InputError(f"the viewer at port {port} has sent no picture.")
        if len(found[-1]) < 6:
            raise InputError("there were fewer than six looks at a process that steps: give more --minutes.")
    return found, in_use


@command()
def main(arguments: list[str] | None = None) -> int:
    """Prints the table and the verdict; 1 if something grows."""
    options = parse(arguments)
    print("The viewer is looked at by a client of its websocket, not by a browser.")
    with tempfile.TemporaryDirectory(prefix="zipnerf-soak-") as folder:
        text, growing = report(*soak(options, Path(folder)))
    print(f"{text}\n\n{'GROWING: ' + '; '.join(growing) + '.' if growing else 'Flat.'}")
    return 1 if growing else 0


if __name__ == "__main__":
    sys.exit(main())
