"""Several processes take the steps of one that has all of their rays, and any number goes on from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import checkpoint, load, start, tiny_config, train
from _together import results, start_one, together

from zipnerf_ns.data.disk.window import PixelsConfig
from zipnerf_ns.engine.trainer import ZipNerfTrainer, ZipNerfTrainerConfig
from zipnerf_ns.sampler import IntervalSampler

pytestmark = pytest.mark.usefixtures("fresh_writers")

STEPS = 5
RAYS = 48


def config_of(scene: Path, output: Path, rays: int, **changes: Any) -> ZipNerfTrainerConfig:
    """Everything on that a step can train: appearance, cameras."""
    config = tiny_config(scene, output, **{"steps": STEPS, **changes})
    config.pipeline.datamanager.train_num_rays_per_batch = rays
    # Both would be of each process's own rays: a root of a mean, and which ray has what width.
    config.pipeline.model.rgb_loss = "charbonnier"
    config.pipeline.model.use_appearance, config.pipeline.model.random_background = True, False
    config.pipeline.model.camera_optimizer.mode = "SO3xR3"
    return config


def noted_losses(trainer: ZipNerfTrainer) -> list[float]:
    """A list that gets the loss of every step from now on."""
    losses: list[float] = []
    iterate = trainer.train_iteration

    def iteration(step: int) -> Any:
        result = iterate(step)
        losses.append(float(result[0]))
        return result

    trainer.train_iteration = iteration
    return losses


def give_rays(trainer: ZipNerfTrainer, rank: int, count: int) -> list[float]:
    """Lets a process draw its share of rays that are numbered, with jitter that depends on the number alone."""
    manager = trainer.pipeline.datamanager
    mine = slice(RAYS // count * rank, RAYS // count * (rank + 1))
    drawn = {"step": 0}

    def next_train(step: int) -> tuple[Any, dict[str, Any]]:
        drawn["step"] = step
        torch.manual_seed(step)
        manager.pixels.draw = lambda count: torch.randint(len(manager.pixels), (count,))
        bundle, batch = manager.train_ray_generator.sample(manager.pixels, RAYS)
        return bundle[mine], {name: value[mine] for name, value in batch.items()}

    def jitters(sampler: IntervalSampler, rays: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(drawn["step"])
        return torch.rand(len(sampler.num_samples), RAYS, 1, generator=generator)[:, mine]

    manager.next_train = next_train
    trainer.pipeline.model.zipnerf.sampler._jitters = jitters.__get__(trainer.pipeline.model.zipnerf.sampler)
    return noted_losses(trainer)


def state_of(trainer: ZipNerfTrainer) -> dict[str, torch.Tensor]:
    """Parameters and what the optimizers remember of them, by name."""
    adams = trainer.optimizers.optimizers.values()
    moments = {parameter: entry for adam in adams for parameter, entry in adam.state.items()}
    state = {}
    for name, parameter in trainer.pipeline.model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq") if parameter in moments else ():
            state[f"{name}.{moment}"] = moments[parameter][moment].clone()
        state[name] = parameter.detach().clone()
    return state


def train_share(rank: int, config: ZipNerfTrainerConfig, count: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    trainer = start_one(rank, config)
    losses = give_rays(trainer, rank, count)
    trainer.train()
    return losses, state_of(trainer)


def test_two_processes_take_the_steps_of_one_with_all_their_rays(scene, tmp_path):
    """Tables, networks, appearance and cameras: values and moments, from the same seed."""
    one = start(config_of(scene, tmp_path / "one", RAYS), seed=0)
    losses = give_rays(one, 0, 1)
    one.train()
    config = config_of(scene, tmp_path / "two", RAYS // 2)
    (first, state), (second, other) = results(together(tmp_path / "logs", train_share, config, 2))
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    assert first != second
    assert [0.5 * sum(pair) for pair in zip(first, second, strict=True)] == pytest.approx(losses, rel=1e-5)
    expected = state_of(one)
    assert {"pose_adjustment", "log_gains"} <= {name.split(".")[-1] for name in expected}
    for name, value in expected.items():
        # Where a gradient is nearly nothing, Adam takes its sign from rounding.
        error = (state[name] - value).norm() / value.norm().clamp_min(1e-20)
        assert error < 2e-3, name
    assert all(float(value.abs().max()) > 0.0 for name, value in expected.items() if name.endswith("exp_avg"))


def train_on(rank: int, config: ZipNerfTrainerConfig) -> dict[str, Any]:
    trainer = start_one(rank, config)
    begun, losses = state_of(trainer), noted_losses(trainer)
    trainer.train()
    rates = {name: adam.param_groups[0]["lr"] for name, adam in trainer.optimizers.optimizers.items()}
    return {"begun": begun, "ended": state_of(trainer), "losses": losses, "rates": rates}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_checkpoints_go_from_two_processes_to_one_and_back(scene, tmp_path):
    """Nothing in them tells the number; two processes draw different rays again; learning rates are those of one."""
    options = dict(steps=12, steps_per_save=4, save_only_latest_checkpoint=False)
    config = config_of(scene, tmp_path, 16, **{**options, "steps": 4})
    first = results(together(tmp_path / "first", train_on, config))
    assert_same(first[0]["ended"], first[1]["ended"])
    alone = config_of(scene, tmp_path, 16, **options, timestamp="alone", load_checkpoint=checkpoint(config, 3))
    trainer = start(alone)
    assert_same(state_of(trainer), first[0]["ended"])
    assert load(checkpoint(config, 3))["pipeline"].keys() == trainer.pipeline.state_dict().keys()
    alone.max_num_iterations, alone.timestamp = 8, "alone, 8 steps"
    trainer, losses = train(alone)
    assert sorted(losses) == [4, 5, 6, 7]
    again = config_of(scene, tmp_path, 16, **options, timestamp="again", load_checkpoint=checkpoint(alone, 7))
    third = results(together(tmp_path / "third", train_on, again))
    for process in third:
        assert_same(process["begun"], state_of(trainer))
        assert_same(process["ended"], third[0]["ended"])
    assert len(third[0]["losses"]) == 4 and not set(third[0]["losses"]) & set(third[1]["losses"])
    state = load(checkpoint(again, 11))
    assert {float(entry["step"]) for group in state["optimizers"].values() for entry in group["state"].values()} == {12}
    # Lenses are not corrected by default.
    last = {name: group["scheduler"].lr_final for name, group in again.optimizers.items() if name != "lens"}
    # So short a training ends at a thousandth of its first rates, which is a tenth of the last ones of a long one. The
    # cameras' rate is of 4,000 steps, and eight times that at most where there are fewer.
    factors = {"hash_tables": 0.1, "networks": 0.1, "appearance": 0.1, "camera_opt": 8.0}
    expected = {name: rate * factors.get(name, 1.0) for name, rate in last.items()}
    assert third[0]["rates"] == pytest.approx(expected)


def train_from_disk(rank: int, config: ZipNerfTrainerConfig) -> tuple[dict[str, torch.Tensor], list[int]]:
    trainer = start_one(rank, config)
    trainer.train()
    return state_of(trainer), trainer.pipeline.datamanager.pixels.allowed.tolist()


def test_processes_share_a_store_on_disk_and_read_what_is_theirs(scene, tmp_path):
    """It is written once, read from other places, and deleted at the end."""
    config = config_of(scene, tmp_path, 16)
    config.pipeline.datamanager.pixels = PixelsConfig("disk", folder=tmp_path / "stores", buffer=1e-9, keep=False)
    ended = together(tmp_path / "logs", train_from_disk, config)
    (first, its_pixels), (second, others) = results(ended)
    assert_same(first, second)
    assert len(its_pixels) == len(others) and not set(its_pixels) & set(others)
    assert sum("Writing the pixels" in each.said for each in ended) == 1 and not list(tmp_path.glob("stores/*"))
