"""The methods that ``ns-train`` offers: one builder, and each method's differences from the default."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch

from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.plugins.types import MethodSpecification

from zipnerf_ns.cameras.camera_adam import CameraAdamConfig
from zipnerf_ns.data.datamanager import ZipNerfDataManagerConfig
from zipnerf_ns.data.dataparsers.exact import CenteringNerfstudioConfig
from zipnerf_ns.data.dataparsers.mipnerf360 import MipNerf360DataParserConfig
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.encoding.moving import MotionConfig
from zipnerf_ns.engine.optimizers import DecayingAdamConfig, WarmupLogDecayConfig
from zipnerf_ns.engine.pipeline import ZipNerfPipelineConfig
from zipnerf_ns.engine.runs import read_paths_of_other_systems
from zipnerf_ns.engine.safety.viewers import mend_viewers
from zipnerf_ns.engine.startup import spare_nerfstudio_its_look_at_the_stack, spare_viser_its_search_for_icons
from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig
from zipnerf_ns.model_config import ZipNerfModelConfig
from zipnerf_ns.settings import ProposalConfig
from zipnerf_ns.splats.trainer import SplatTrainer, SplatTrainerConfig

spare_nerfstudio_its_look_at_the_stack()
spare_viser_its_search_for_icons()
mend_viewers()
read_paths_of_other_systems()


FULL_STEPS = 10_000
"""Length of training that a last learning rate of a hundredth suits: docs/measurements.md, "Long and short"."""


def _method(
    name: str,
    description: str,
    model: ZipNerfModelConfig,
    num_rays: int,
    num_steps: int,
    network_lr: float = 0.005,
) -> MethodSpecification:
    """A method from its model and schedule, and the peak of its networks' learning rate."""
    config = ZipNerfTrainerConfig(
        method_name=name,
        # Nerfstudio's default would fail on a machine without CUDA.
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        steps_per_eval_image=max(num_steps // 10, 100),
        steps_per_save=max(num_steps // 10, 200),
        max_num_iterations=num_steps,
        pipeline=ZipNerfPipelineConfig(
            datamanager=ZipNerfDataManagerConfig(
                dataparser=CenteringNerfstudioConfig(),
                train_num_rays_per_batch=num_rays,
                eval_num_rays_per_batch=min(num_rays, 4096),
            ),
            model=model,
        ),
        optimizers={
            "hash_tables": _adam(0.01),
            "networks": _adam(network_lr),
            # Of use only with --pipeline.model.use-appearance True.
            "appearance": _adam(0.003),
            # Of use only with --pipeline.model.camera-optimizer.mode SO3xR3.
            "camera_opt": {
                "optimizer": CameraAdamConfig(),
                # Before there is a scene, its gradients would lead cameras astray, and it would then be learned there.
                "scheduler": WarmupLogDecayConfig(lr_final=1e-5, hold_fraction=0.1, warmup_start=0.0, for_steps=4000),
            },
            "lens": {
                "optimizer": CameraAdamConfig(lr=2e-4, pull=0.0),
                "scheduler": WarmupLogDecayConfig(lr_final=1e-5, hold_fraction=0.05, warmup_start=0.0, for_steps=4000),
            },
        },
        # Nerfstudio's profile of its own functions would be the last thing that is read; "basic" prints it.
        logging=LoggingConfig(steps_per_log=50, local_writer=LocalWriterConfig(enable=False), profiler="none"),
        # Nerfstudio's listens to the whole network.
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host="127.0.0.1"),
        vis="viewer+tensorboard",
    )
    return MethodSpecification(config=config, description=description)


def _adam(peak: float) -> dict[str, Any]:
    """An optimizer whose learning rate falls to a hundredth of its peak, in shorter trainings as suits them."""
    scheduler = WarmupLogDecayConfig(lr_final=peak / 100, full_steps=FULL_STEPS)
    return {"optimizer": DecayingAdamConfig(lr=peak), "scheduler": scheduler}


def _lite_proposal(num_samples: int, max_res: int, blur_halfwidth: float) -> ProposalConfig:
    return ProposalConfig(num_samples, HashGridConfig(8, 1, 16, max_res, 17), 32, blur_halfwidth)


zipnerf = _method(
    "zipnerf",
    "Zip-NeRF for one GPU: the paper's model on a quarter of its rays a step.",
    ZipNerfModelConfig(),
    num_rays=16_384,
    num_steps=15_000,
)

zipnerf_big = _method(
    "zipnerf-big",
    "Zip-NeRF on the paper's schedule: 65,536 rays x 25,000 steps.",
    ZipNerfModelConfig(),
    num_rays=65_536,
    num_steps=25_000,
    network_lr=0.01,
)

zipnerf_lite = _method(
    "zipnerf-lite",
    "Zip-NeRF with small tables and one look-up an interval: previews, small GPUs, CPUs.",
    ZipNerfModelConfig(
        grid=HashGridConfig(16, 2, 16, 2048, 19),
        proposals=(_lite_proposal(32, 256, 0.03), _lite_proposal(32, 1024, 0.003)),
        num_samples=24,
        prefilter="ipe",
        bottleneck_dim=15,
        color_layers=2,
        color_dim=64,
        eval_num_rays_per_chunk=4096,
    ),
    num_rays=1024,
    num_steps=5_000,
)


zipnerf_dynamic = _method(
    "zipnerf-dynamic",
    "Zip-NeRF with time, for scenes that move: photos need times.",
    ZipNerfModelConfig(motion=MotionConfig("auto")),
    num_rays=8192,
    # Longer ones learn each photo's moment by heart: docs/measurements.md, "Scenes that move".
    num_steps=4_000,
)


def _protocol(
    base: MethodSpecification, name: str, description: str, dataparser: DataParserConfig, **model: Any
) -> MethodSpecification:
    """A method on the data of a benchmark; ``model`` are fields that its protocol fixes."""
    config = copy.deepcopy(base.config)
    config.method_name = name
    config.pipeline.datamanager.dataparser = dataparser
    config.pipeline.model = dataclasses.replace(config.pipeline.model, use_appearance=False, **model)
    return MethodSpecification(config=config, description=description)


zipnerf_360 = _protocol(
    zipnerf_big,
    "zipnerf-360",
    "The mip-NeRF 360 benchmark: its images, split and axes from its published folder; zipnerf-big's training.",
    MipNerf360DataParserConfig(),
    near_plane=0.2,
    far_plane=1e6,
)

zipnerf_blender = _protocol(
    zipnerf,
    "zipnerf-blender",
    "NeRF-synthetic: white background, the scene box, distances 2 to 6, from its published folder; zipnerf's training.",
    BlenderDataParserConfig(),
    near_plane=2.0,
    far_plane=6.0,
    scene_bounds="box",
    background_color="white",
)

_of_zipnerf = {field.name: getattr(zipnerf.config, field.name) for field in dataclasses.fields(zipnerf.config)}
zipnerf_splat = MethodSpecification(
    config=SplatTrainerConfig(
        **copy.deepcopy({**_of_zipnerf, "_target": SplatTrainer, "method_name": "zipnerf-splat"})
    ),
    description="zipnerf, then splats of it: a run of splatfacto that is drawn hundreds of times a second.",
)
