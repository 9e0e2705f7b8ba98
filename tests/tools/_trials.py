"""What tests of trials share: settings that make one short, and a result as one leaves it."""

from __future__ import annotations

from typing import Any

SMALL = {
    "datamanager.train_num_rays_per_batch": 64, "model.num_samples": 6, "model.hidden_dim": 16, "model.color_dim": 16,
    "model.grid.num_levels": 4, "model.grid.log2_hashmap_size": 12, "model.proposals.0.num_samples": 8,
    "model.proposals.1.num_samples": 8, "model.proposals.0.grid.log2_hashmap_size": 10,
    "model.proposals.1.grid.log2_hashmap_size": 10,
}  # fmt: skip
"""What makes zipnerf-lite a matter of seconds."""


def result(method: str, scene: str = "/data/fox", **changes: Any) -> dict[str, Any]:
    """A result as a trial leaves it."""
    trial = {"scene": scene, "method": method, "seconds": 120.0, "steps": None, "scales": [], "seed": 42, "changes": {}}
    made = {
        "trial": trial, "status": "done", "metrics": {"psnr": 26.123, "ssim": 0.81234}, "by_scale": {}, "steps": 9000,
        "planned_steps": 10_000, "rays": 73_728_000, "seconds": 120.04, "setup_seconds": 3.21, "notes": ["a note"],
        "first_step_seconds": 0.5, "first_use_seconds": 61.2, "evaluation_seconds": 8.0,
        "rendered_rays_per_second": 1.5e6, "peak_gpu_bytes": 3 * 2**30, "machine": {"device": "One GPU"},
        "schedule": "its own", "lpips": "not measured", "kept_views": [0, 2],
        "curve": [{"step": 9, "seconds": 15.0, "psnr": 20.0}, {"step": 9000, "seconds": 120.0, "psnr": 26.1}],
        "per_image": [{"image": f"{index}.png", "psnr": 20.0 + index} for index in range(3)],
    }  # fmt: skip
    return {**made, **changes}
