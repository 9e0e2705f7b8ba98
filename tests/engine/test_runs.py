"""A run that was moved is found, with or without its data; and keeps its frame, whatever becomes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from _scenes import (
    assert_clear,
    checkpoint,
    load,
    named_pixels,
    pose,
    read_meta,
    start,
    tiny_config,
    train,
    write_meta,
    write_scene,
)
from PIL import Image

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.pipelines.base_pipeline import Pipeline
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.programs import into_model_frame, load_run

COUNT = 12
"""Images of the scene; each fourth is held out."""


class Moved(NamedTuple):
    """A run, copied to where it was not trained, and a copy of its data."""

    config: Path
    data: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Moved:
    """A run and its data where it was trained, which then are no longer there."""
    here = tmp_path_factory.mktemp("server")
    scene = write_scene(here / "scene", COUNT, sizes=[(36, 32)] * COUNT)
    config = tiny_config(scene, here / "outputs", steps=4)
    config.pipeline.model.use_appearance = True
    train(config)
    return Moved(config.get_base_dir() / "config.yml", scene)


@pytest.fixture
def moved(trained, tmp_path, monkeypatch) -> Moved:
    """Copies; the program runs in a third folder, and nothing is where config.yml says."""
    run, data = tmp_path / "copied", tmp_path / "photos"
    shutil.copytree(trained.config.parent, run)
    shutil.copytree(trained.data, data)
    config = yaml.load(trained.config.read_text(), Loader=yaml.Loader)
    config.pipeline.datamanager.data, config.output_dir = Path("/nowhere/scene"), Path("/nowhere/outputs")
    (run / "config.yml").write_text(yaml.dump(config))
    saved = next((run / "nerfstudio_models").iterdir())
    state = torch.load(saved, weights_only=True)
    state["data"]["data"] = "/nowhere/scene"
    torch.save(state, saved)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return Moved(run / "config.yml", data)


def looked_at(config: Path, mode: str = "test") -> Pipeline:
    return eval_setup(config, test_mode=mode)[1]


def refusal(action: Callable[[], Any], *expected: str) -> str:
    """What is said when an action ends the program."""
    with CONSOLE.capture() as said, pytest.raises((SystemExit, InputError)) as caught:
        action()
    # Programs without a trainer tell what is raised.
    text = f"Error: {caught.value}" if isinstance(caught.value, InputError) else said.get()
    (line,) = [line for line in text.splitlines() if line.startswith("Error:")]
    assert_clear(line, expected)
    return line


def poses_of(pipeline: Pipeline) -> torch.Tensor:
    return pipeline.datamanager.train_dataset.cameras.camera_to_worlds


def psnr(pipeline: Pipeline) -> float:
    return pipeline.get_average_eval_image_metrics()["psnr"]


def test_a_moved_run_is_measured_with_data_given_anew(trained, moved, monkeypatch):
    truth = psnr(looked_at(trained.config))
    monkeypatch.setenv("ZIPNERF_DATA", str(moved.data))
    _, pipeline, path, _ = eval_setup(moved.config)
    assert path.parent == moved.config.parent / "nerfstudio_models"
    assert psnr(pipeline) == pytest.approx(truth, abs=1e-5)
    assert all(moved.data in file.parents for file in pipeline.datamanager.eval_dataset.image_filenames)


def test_pictures_and_rays_need_no_data(trained, moved):
    first, second = looked_at(trained.config, "inference"), looked_at(moved.config, "inference")
    camera = first.datamanager.train_dataset.cameras[:1]
    pictures = [each.model.get_outputs_for_camera(camera.to(each.device))["rgb"] for each in (first, second)]
    assert torch.equal(*pictures) and pictures[0].std() > 0.0
    pipeline = looked_at(moved.config)
    assert torch.equal(poses_of(pipeline), poses_of(looked_at(trained.config)))
    bundle, batch = pipeline.datamanager.next_train(0)
    # As exports draw them: pixels of all photos, which have nothing to say.
    assert bundle.origins.shape == (64, 3) and torch.isfinite(pipeline.model(bundle)["rgb"]).all()
    assert len(set(batch["indices"][:, 0].tolist())) > 5 and int(batch["indices"][:, 1].max()) < 32
    # As the viewer shows them, and a spiral asks for its first camera.
    image = pipeline.datamanager.train_dataset[0]["image"]
    assert image.shape == (32, 36, 3) and image.std() == 0.0
    assert pipeline.datamanager.eval_dataloader.get_camera(0)[0].shape == (1,)


def to_render(config: Path, monkeypatch, mode: str) -> Any:
    """The datamanager of ``ns-render dataset``."""
    manager = eval_setup(config, test_mode="inference")[0].pipeline.datamanager
    with monkeypatch.context() as patch:
        for name in ("setup_train", "setup_eval"):
            patch.setattr(manager._target, name, lambda *_: None)
        return manager.setup(test_mode=mode, device="cpu")


def test_what_needs_photos_says_so(moved, monkeypatch):
    expected = ("/nowhere/scene", "not there", "ZIPNERF_DATA=")
    refusal(looked_at(moved.config).get_average_eval_image_metrics, *expected)
    for mode in ("test", "val"):
        refusal(lambda mode=mode: to_render(moved.config, monkeypatch, mode), *expected)
    monkeypatch.setenv("ZIPNERF_DATA", "/nowhere/either")
    refusal(lambda: looked_at(moved.config), "/nowhere/either does not exist", "ZIPNERF_DATA")


def test_data_are_found_around_the_run(moved, monkeypatch):
    """A project's folder was moved as a whole: what config.yml says is relative to it."""
    config = yaml.load(moved.config.read_text(), Loader=yaml.Loader)
    config.pipeline.datamanager.data = Path(moved.data.name)
    moved.config.write_text(yaml.dump(config))
    assert looked_at(moved.config).datamanager.get_datapath() == moved.data


def test_a_run_in_one_folder_with_its_checkpoint_is_found(moved):
    saved = next(moved.config.with_name("nerfstudio_models").iterdir())
    saved = saved.rename(moved.config.with_name(saved.name))
    assert eval_setup(moved.config, test_mode="inference")[2] == saved
    saved.unlink()
    refusal(lambda: looked_at(moved.config), "holds no checkpoint", str(moved.config))


def test_other_files_among_checkpoints_are_ignored(moved):
    folder = moved.config.with_name("nerfstudio_models")
    for name in (".DS_Store", "._step-000000003.ckpt", "step-000000009.ckpt.part"):
        (folder / name).write_bytes(b"?")
    assert eval_setup(moved.config, test_mode="inference")[3] == 3


def test_a_config_from_windows_is_read(moved, monkeypatch):
    text = moved.config.read_text()
    assert "pathlib.PosixPath" in text and "- /\n" in text
    drive = yaml.dump(["D:\\"])
    moved.config.write_text(text.replace("- /\n", drive).replace("pathlib.PosixPath", "pathlib.WindowsPath"))
    assert load_run(moved.config).datamanager.config.dataparser.data == Path("D:/nowhere/scene")
    monkeypatch.setenv("ZIPNERF_DATA", str(moved.data))
    assert np.isfinite(psnr(looked_at(moved.config)))


def test_our_tools_take_data(moved):
    manager = load_run(moved.config).datamanager
    assert manager.config.dataparser.data == Path("/nowhere/scene")
    # Where the viewer writes camera paths.
    assert manager.get_datapath() == Path.cwd()
    assert load_run(moved.config, moved.data).datamanager.get_datapath() == moved.data


def add_photos(data: Path, count: int = 3) -> None:
    """Photos far away, which change what Nerfstudio centers and scales by; without lists, also what it holds out."""
    meta = read_meta(data)
    for index in range(count):
        name = f"images/{index}_new.png"
        Image.fromarray(named_pixels(90 + index, 36, 32)).save(data / name)
        frame = {**meta["frames"][0], "file_path": name, "transform_matrix": pose(index, COUNT, radius=7.0)}
        meta["frames"].insert(0, frame)
        meta["train_filenames"].insert(0, name)
    write_meta(data, meta)


def without_lists(data: Path) -> None:
    meta = read_meta(data)
    for split in ("train", "val", "test"):
        del meta[f"{split}_filenames"]
    write_meta(data, meta)


def test_added_photos_leave_the_runs_frame_and_its_held_out_photos(trained, moved, monkeypatch):
    truth, before = psnr(looked_at(trained.config)), looked_at(trained.config)
    add_photos(moved.data)
    monkeypatch.setenv("ZIPNERF_DATA", str(moved.data))
    for change in (lambda data: None, without_lists):
        change(moved.data)
        with CONSOLE.capture() as said:
            pipeline = looked_at(moved.config)
        (line,) = [line for line in said.get().splitlines() if "does not know" in line]
        assert_clear(line, ("3 photos", "_new.png", "left out", "own frame"))
        assert torch.equal(poses_of(pipeline), poses_of(before))
        names = [[file.name for file in each.datamanager.eval_dataset.image_filenames] for each in (before, pipeline)]
        assert names[0] == names[1]
        assert psnr(pipeline) == pytest.approx(truth, abs=2e-3)
        assert into_model_frame(pipeline).scale == into_model_frame(before).scale
        # The scene is another one in size where the run is not asked.
        fresh = NerfstudioDataParserConfig(data=moved.data).setup().get_dataparser_outputs("train")
        assert fresh.dataparser_scale < 0.6 * into_model_frame(before).scale


def resumed(moved: Moved, output: Path, **changes: Any) -> Any:
    config = tiny_config(moved.data, output, steps=7, load_dir=moved.config.with_name("nerfstudio_models"), **changes)
    config.pipeline.model.use_appearance = True
    return config


def test_a_moved_run_resumes_as_where_it_was(trained, moved, tmp_path, fresh_writers):
    there = Moved(trained.config, trained.data)
    _, truth = train(resumed(there, tmp_path / "first"))
    add_photos(moved.data)
    config = resumed(moved, tmp_path / "second")
    _, losses = train(config)
    assert losses == pytest.approx(truth, rel=1e-6) and sorted(losses) == [4, 5, 6]
    # What it says of its data is what the run began with, but for the place.
    first, last = (load(checkpoint(each, 6))["data"] for each in (resumed(there, tmp_path / "first"), config))
    assert last["data"] == str(moved.data) and last["train"]["names"] == first["train"]["names"]
    assert torch.equal(last["train"]["camera_to_worlds"], first["train"]["camera_to_worlds"])


def remove_photos(data: Path, names: tuple[str, ...]) -> None:
    meta = read_meta(data)
    meta["frames"] = [frame for frame in meta["frames"] if frame["file_path"] not in names]
    for split in ("train", "val", "test"):
        meta[f"{split}_filenames"] = [name for name in meta[f"{split}_filenames"] if name not in names]
    for name in names:
        (data / name).unlink()
    write_meta(data, meta)


def test_photos_that_are_gone_are_named(trained, moved, tmp_path, monkeypatch, fresh_writers):
    truth = looked_at(trained.config)
    remove_photos(moved.data, ("images/000.png", "images/005.png"))
    refusal(lambda: start(resumed(moved, tmp_path)), "2 of the 9", "images/000.png, images/005.png", "Restore")
    monkeypatch.setenv("ZIPNERF_DATA", str(moved.data))
    with CONSOLE.capture() as said:
        pipeline = looked_at(moved.config)
    assert "lacks 2 photos" in said.get() and "images/000.png" in said.get()
    with CONSOLE.capture() as said:
        dataset = to_render(moved.config, monkeypatch, "test").train_dataset
    assert "2 of 9 photos are not there, and left out" in said.get()
    numbers = [int(dataset[index]["image"][0, 0, 0] * 255) for index in range(len(dataset))]
    assert numbers == [1, 2, 4, 6, 8, 9, 10]
    assert torch.equal(dataset.cameras.camera_to_worlds[2], poses_of(truth)[3])
    # Those held out are all there.
    assert psnr(pipeline) == pytest.approx(psnr(truth), abs=2e-3)
    assert torch.equal(poses_of(pipeline), poses_of(truth))


def other_poses(data: Path) -> None:
    meta = read_meta(data)
    for index, frame in enumerate(meta["frames"]):
        frame["transform_matrix"] = pose(index, COUNT, radius=2.5 + 0.5 * (index % 2))
    write_meta(data, meta)


def other_photos(data: Path) -> None:
    text = (data / "transforms.json").read_text()
    for file in sorted((data / "images").iterdir()):
        file.rename(file.with_stem(f"z{file.stem}"))
    (data / "transforms.json").write_text(text.replace("images/", "images/z"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [(other_poses, ("other camera poses", "pixels")), (other_photos, ("none of the photos", "another scene"))],
)
def test_other_data_are_refused(moved, monkeypatch, tmp_path, change, expected, fresh_writers):
    change(moved.data)
    monkeypatch.setenv("ZIPNERF_DATA", str(moved.data))
    refusal(lambda: looked_at(moved.config), str(moved.data), *expected)
    refusal(lambda: start(resumed(moved, tmp_path)), str(moved.data), *expected)


def turned(data: Path) -> None:
    """The same scene, turned, three times as large, and somewhere else."""
    meta, (cosine, sine) = read_meta(data), (np.cos(1.0), np.sin(1.0))
    motion = np.array([[cosine, -sine, 0, 5], [sine, cosine, 0, -2], [0, 0, 1, 3.0], [0, 0, 0, 1]])
    for frame in meta["frames"]:
        matrix = np.array(frame["transform_matrix"])
        matrix[:3, 3] *= 3.0
        frame["transform_matrix"] = (motion @ matrix).tolist()
    write_meta(data, meta)


def test_the_same_poses_in_another_frame_are_brought_back(trained, moved, monkeypatch):
    turned(moved.data)
    monkeypatch.setenv("ZIPNERF_DATA", str(moved.data))
    before, pipeline = looked_at(trained.config), looked_at(moved.config)
    assert torch.equal(poses_of(pipeline), poses_of(before))
    assert psnr(pipeline) == pytest.approx(psnr(before), abs=2e-3)


def smaller(data: Path) -> None:
    """Every photo at half its size."""
    meta = read_meta(data)
    for frame in meta["frames"]:
        with Image.open(data / frame["file_path"]) as image:
            image.reduce(2).save(data / frame["file_path"])
        frame.update({name: frame[name] / 2 for name in ("fl_x", "fl_y", "cx", "cy")})
        frame.update({name: frame[name] // 2 for name in ("w", "h")})
    write_meta(data, meta)


def test_photos_of_another_size_are_said(moved, monkeypatch):
    smaller(moved.data)
    monkeypatch.setenv("ZIPNERF_DATA", str(moved.data))
    with CONSOLE.capture() as said:
        pipeline = looked_at(moved.config)
    assert "18x16 pixels" in said.get() and "36x32" in said.get()
    assert int(pipeline.datamanager.eval_dataset.cameras.width[0]) == 18
    # What the model derives from the size is as in the training.
    assert pipeline.datamanager.train_dataset.metadata["zipnerf_scene_hints"].longest_side == 36


def test_a_checkpoint_that_knows_nothing_of_its_data_is_read_as_before(trained, moved, tmp_path, monkeypatch):
    saved = next(moved.config.with_name("nerfstudio_models").iterdir())
    state = load(saved)
    del state["data"]
    torch.save(state, saved)
    for mode in ("test", "inference"):
        refusal(lambda mode=mode: looked_at(moved.config, mode), "/nowhere/scene does not exist", "ZIPNERF_DATA")
    monkeypatch.setenv("ZIPNERF_DATA", str(moved.data))
    assert psnr(looked_at(moved.config)) == pytest.approx(psnr(looked_at(trained.config)), abs=1e-5)
    assert sorted(train(resumed(moved, tmp_path))[1]) == [4, 5, 6]
