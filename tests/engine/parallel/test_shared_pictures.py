"""Pictures that several processes render together are those of one, for programs that know nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import tiny_config, write_scene
from _together import results, together

from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components import renderers

from zipnerf_ns.engine import pipeline as pipelines
from zipnerf_ns.engine.parallel import processes
from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig

BOX = OrientedBox.from_params((0.1, 0.0, 0.0), (0.0, 0.2, 0.0), (1.0, 1.0, 1.0))


def look(rank: int, config: ZipNerfTrainerConfig, is_shared: bool = True) -> list[dict[str, torch.Tensor]] | None:
    """What a program does that looks at a run: the pipeline, its checkpoint, pictures."""
    pipelines.join_to_look = lambda: is_shared
    torch.manual_seed(0)
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    pipeline.eval()
    state = {name: value.clone() for name, value in pipeline.state_dict().items()}
    if rank == 1:
        # Its own values are of no concern.
        torch.nn.init.zeros_(pipeline.model.field.encoding.hash_table)
    try:
        pipeline.load_pipeline(state, 3)
    except SystemExit as ended:
        assert rank > 0 and ended.code == 0
        return None
    model, cameras = pipeline.model, pipeline.datamanager.eval_dataset.cameras
    # 35 rays. Some outputs are rendered when they are asked for.
    cameras.width[:], cameras.height[:] = 7, 5
    found = [model.get_outputs_for_camera(cameras[:1])]
    with renderers.background_color_override_context(torch.ones(3)):
        found.append(model.get_outputs_for_camera(cameras[1:2], BOX))
    found.append(model.get_outputs_for_camera_ray_bundle(cameras.generate_rays(1, keep_shape=True)))
    pictures = [{name: outputs[name] for name in outputs} for outputs in found]
    if is_shared:
        model.shared.__self__._tell(b"")
    return pictures


@pytest.mark.parametrize("count", [2, 3])
def test_processes_render_the_pictures_of_one(tmp_path: Path, count: int):
    config: Any = tiny_config(write_scene(tmp_path / "scene"), tmp_path)
    together_, *others = results(together(tmp_path / "logs", look, config, count=count))
    assert others == [None] * (count - 1)
    (alone,) = results(together(tmp_path / "alone", look, config, False, count=1))
    assert len(alone) == 3
    for found, expected in zip(together_, alone, strict=True):
        assert found.keys() == expected.keys() and found["rgb"].shape == (5, 7, 3)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_only_what_torchrun_has_started_is_joined(monkeypatch):
    joined = []
    monkeypatch.setattr(processes, "_join", lambda *arguments: joined.append(arguments))
    assert not processes.join_to_look()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for size, is_joined in (("1", False), ("2", True)):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert processes.join_to_look() is is_joined
    assert joined == [(torch.cuda.is_available(), "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")]
