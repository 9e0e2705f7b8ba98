"""The demo: its commands are nerfstudio's, its paths are where nerfstudio writes, and it says what went wrong."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools import demo, programs
from zipnerf_ns.tools.programs import CPU, CUDA, data_arguments, downscale_factor, train_command
from zipnerf_ns.tools.system_check import Finding


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of a run that has not happened."""
    return tmp_path / "outputs" / demo.EXPERIMENT / CPU.method / "2023-04-13_000000"


def write_pictures(data: Path, width: int, height: int, factors: tuple[int, ...]) -> Path:
    """A folder images and reduced ones beside it, one picture each."""
    for factor in factors:
        folder = data / ("images" if factor == 1 else f"images_{factor}")
        folder.mkdir(parents=True)
        Image.new("RGB", (width // factor, height // factor)).save(folder / "frame_00001.png")
    return data


def test_commands_are_understood_by_nerfstudio(run: Path, tmp_path: Path, parse_problems):
    """Each command line, with each kind of data, passes the argument parser of the program that it calls.

    Two that must not pass show that this can fail: an unknown option, and a program that is not there.
    """
    reduced = write_pictures(tmp_path / "own", 1600, 1200, (1, 2, 4))
    (reduced / "transforms.json").touch()
    blender = tmp_path / "blender"
    blender.mkdir()
    (blender / "transforms_train.json").touch()
    colmap = write_pictures(tmp_path / "colmap", 1600, 1200, (1, 2))
    (colmap / "sparse" / "0").mkdir(parents=True)
    commands = [train_command(run, data, CPU, 10) for data in (reduced, blender, colmap)]
    commands += [train_command(run, reduced, machine, 10) for machine in (CUDA, *programs.MOVING.values())]
    commands += [programs.eval_command(run), programs.render_command(run, 8, (400, 300), programs.MOVING[CPU])]
    commands += [programs.render_command(run, views, (400, 300), CPU) for views in (1, 8)]
    wrong = [["ns-eval", "--load-config", "a.yml", "--loaad", "1"], ["ns-nothing"]]
    *problems, unknown, absent = parse_problems(commands + wrong)
    assert problems == [None] * len(commands)
    assert "--loaad" in unknown and "ns-nothing" in absent


def test_run_folder_is_nerfstudios(run: Path, tmp_path: Path):
    """The folder that the demo reads is the one that nerfstudio derives from the names it is given."""
    from nerfstudio.engine.trainer import TrainerConfig

    (tmp_path / "transforms.json").touch()
    method, *words = train_command(run, tmp_path, CPU, 10)[1:-3]
    given = dict(zip(words[::2], words[1::2], strict=True))
    config = TrainerConfig(
        output_dir=Path(given["--output-dir"]), method_name=method, experiment_name=given["--experiment-name"],
        timestamp=given["--timestamp"],
    )  # fmt: skip
    assert config.get_base_dir() == run


@pytest.mark.parametrize(("longest_side", "factor"), [(2000, 1), (1600, 1), (1599, 2), (800, 2), (400, 4), (100, 4)])
def test_downscale_factor(tmp_path: Path, longest_side: int, factor: int):
    """The least reduction that suffices, or the largest there is."""
    assert downscale_factor(write_pictures(tmp_path, 1200, 1600, (1, 2, 4)), longest_side) == factor


def test_downscale_factor_without_pictures(tmp_path: Path):
    """Data sets that keep their pictures elsewhere are used as they are."""
    assert downscale_factor(tmp_path, 100) == 1


def test_data_kinds(tmp_path: Path):
    """What nerfstudio's format is reduced by; a transforms file is taken as it is."""
    write_pictures(tmp_path, 1600, 1200, (1, 2))
    (tmp_path / "transforms.json").touch()
    assert data_arguments(tmp_path / "transforms.json", 400) == ["nerfstudio-data", "--downscale-factor", "1"]
    assert data_arguments(tmp_path, 800) == ["nerfstudio-data", "--downscale-factor", "2"]


def test_photographs_alone_are_explained(tmp_path: Path):
    """A folder of photographs, and one that is not there, each get an answer that helps."""
    write_pictures(tmp_path, 16, 12, (1,))
    with pytest.raises(InputError, match="python -m zipnerf_ns.tools.photos"):
        data_arguments(tmp_path, 400)
    with pytest.raises(InputError, match="does not exist"):
        data_arguments(tmp_path / "nowhere", 400)


@pytest.mark.parametrize("size", [(256, 192), (400, 400), (270, 480), (333, 251), (1601, 901), (64, 48)])
@pytest.mark.parametrize("video_height", [120, 96, 540])
def test_video_size_is_even(size: tuple[int, int], video_height: int):
    """After nerfstudio's own rounding, the video has even sides, is not too high, and keeps its shape."""
    from nerfstudio.cameras.cameras import Cameras

    width, height = size
    reduction = float(f"{programs.video_reduction(size, video_height):.6f}")
    cameras = Cameras(torch.eye(4)[None, :3], 100.0, 100.0, width / 2, height / 2, width, height)
    cameras.rescale_output_resolution(1.0 / reduction)
    new_width, new_height = int(cameras.width), int(cameras.height)
    assert new_height <= video_height and new_height >= min(height, video_height) - 18
    assert new_width / new_height == pytest.approx(width / height, rel=0.03)
    assert new_height % 2 == 0 and new_width % 2 == 0


def test_interpolation_fills_the_video(run: Path):
    """The frames between the held-out views make about the seconds that are meant."""
    for views in (2, 5, 8, 30):
        command = programs.render_command(run, views, (256, 192), CPU)
        steps = int(command[command.index("--interpolation-steps") + 1])
        seconds = steps * (views - 1) / programs.FRAME_RATE
        assert 0.6 * programs.VIDEO_SECONDS <= seconds <= 1.6 * programs.VIDEO_SECONDS


def collect(command: list[str], log: Path, hides_config: bool = False) -> bytes:
    """What run_step shows of a program."""
    shown: list[bytes] = []
    seconds = demo.run_step("step", command, log, hides_config, shown.append)
    assert seconds >= 0
    return b"".join(shown)


def test_step_is_shown_and_kept(tmp_path: Path):
    """Both streams of the program are shown and written to its log."""
    program = "import sys; print('out'); print('err', file=sys.stderr)"
    log = tmp_path / "logs" / "step.log"
    shown = collect([sys.executable, "-c", program], log)
    assert sorted(shown.split()) == [b"err", b"out"]
    assert log.read_bytes() == shown


def test_failed_step_names_itself_and_its_log(tmp_path: Path):
    """An exit status, a signal and an absent program each become one message."""
    log = tmp_path / "step.log"
    with pytest.raises(InputError, match=f"step failed .exit status 3.*{log}"):
        collect([sys.executable, "-c", "raise SystemExit(3)"], log)
    with pytest.raises(InputError, match="SIGKILL, often for lack of memory"):
        collect([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log)
    with pytest.raises(InputError, match="step did not start"):
        collect(["ns-nothing"], log)


def test_configuration_is_hidden(tmp_path: Path):
    """Nothing that nerfstudio prints is left out but its configuration."""
    program = (
        "from nerfstudio.utils.rich_utils import CONSOLE as c; c.print('before', end='\\n'); c.rule('Config');"
        "c.print({'machine': list(range(100))}); c.rule(''); c.print('step 1'); c.print('no end of line', end='')"
    )
    log = tmp_path / "step.log"
    shown = collect([sys.executable, "-c", program], log, hides_config=True).decode()
    assert shown.split("\n") == ["before", "step 1", "no end of line"]
    assert "machine" in log.read_text()


def test_verdict():
    """The sentence and the judgement agree with each other and with the expectation."""
    reached, good = demo.verdict(25.0, 100, 100)
    assert good and "reaches" in reached and "25.00 dB" in reached
    missed, good = demo.verdict(23.99, 100, 100)
    assert not good and "below" in missed
    early, good = demo.verdict(20.0, 50, 100)
    assert good and "after 50 steps" in early and "reaches" not in early
    assert demo.verdict(12.0, 100, None) == ("held-out PSNR 12.00 dB", True)
    assert not demo.verdict(math.nan, 50, None)[1]


def test_held_out_reads_what_ns_eval_writes(run: Path):
    """PSNR, number of views, and the size of one of the two pictures that stand side by side."""
    (run / programs.PICTURES).mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (128, 48)).save(run / programs.PICTURES / f"eval_img_{index:04d}.png")
        Image.new("RGB", (64, 48)).save(run / programs.PICTURES / f"eval_depth_{index:04d}.png")
    with pytest.raises(InputError, match="no result"):
        demo.held_out(run)
    (run / programs.METRICS).write_text(json.dumps({"results": {"psnr": 24.5}}))
    assert demo.held_out(run) == (24.5, 3, (64, 48))


@pytest.mark.parametrize("name,state", [("ffmpeg", "missing"), ("torch", "wrong")])
def test_machine_that_is_not_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys, name: str, state: str):
    """Without ffmpeg the demo ends before it trains, and says what to install."""
    findings = [Finding(name, state, "what to do"), Finding("colmap", "missing", "")]
    monkeypatch.setattr(demo, "check_all", lambda: findings)
    monkeypatch.setattr(demo, "run_step", lambda *_: pytest.fail("a step was run"))
    assert demo.main(["--output-dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "what to do" in said.out and f"see {name} above" in said.err


def test_photographs_get_their_poses_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    """And what trains is the scene that was made of them."""
    write_pictures(tmp_path / "mine", 16, 12, (1,))
    scene = tmp_path / "out/mine_scene"
    commands = []

    def run_step(name: str, command: list[str], *_: object, **__: object) -> float:
        commands.append(command)
        if len(commands) == 2:
            raise InputError("far enough")
        scene.mkdir(parents=True)
        (scene / "transforms.json").touch()
        return 0.0

    monkeypatch.setattr(demo, "check_all", lambda: [])
    monkeypatch.setattr(demo, "run_step", run_step)
    assert demo.main(["--data", str(tmp_path / "mine"), "--output-dir", str(tmp_path / "out")]) == 1
    assert "far enough" in capsys.readouterr().err
    assert commands[0][1:] == ["-m", "zipnerf_ns.tools.photos", str(tmp_path / "mine"), str(scene)]
    assert commands[1][commands[1].index("--data") + 1] == str(scene)


@pytest.mark.parametrize("scene", ["still", "moving"])
def test_the_built_in_scene_and_the_method_go_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scene: str):
    """In the moving one frames have times, and the method knows them."""
    made = {}

    def run_step(name: str, command: list[str], *_: object, **__: object) -> float:
        made["command"] = command
        raise InputError("far enough")

    def write_scene(folder: Path, motion: str, workers: int) -> Path:
        made["motion"] = motion
        folder.mkdir(parents=True)
        (folder / "transforms.json").touch()
        return folder

    for name, replacement in {"check_all": list, "run_step": run_step, "write_scene": write_scene}.items():
        monkeypatch.setattr(demo, name, replacement)
    assert demo.main(["--scene", scene, "--output-dir", str(tmp_path)]) == 1
    assert made["motion"] == ("one-camera" if scene == "moving" else "none")
    knows_time = "zipnerf-dynamic" in made["command"] or "--pipeline.model.motion.kind" in made["command"]
    assert knows_time == (scene == "moving")


def test_steps_must_be_positive(capsys):
    """A number of steps that trains nothing is refused."""
    assert demo.main(["--steps", "0"]) == 1
    assert "at least 1" in capsys.readouterr().err
