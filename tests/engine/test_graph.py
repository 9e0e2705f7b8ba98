"""The captured training step: when it is captured anew, and what must not be replayed. CUDA's graphs are played."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import checkpoint, start, tiny_config, write_scene
from torch import Tensor, nn

from nerfstudio.engine.optimizers import AdamOptimizerConfig

from zipnerf_ns.data.datamanager import ZipNerfDataManager
from zipnerf_ns.engine.step import GraphedStep, set_up_graph, why_no_graph
from zipnerf_ns.model import ZipNerfModel


class PlayedGraph:
    """Computes again, on the tensors that it was captured with, what stands for the kernels of a step."""

    captured: list["PlayedGraph"] = []

    def __init__(self) -> None:
        self.replay: Callable[[], Any] = lambda: None
        PlayedGraph.captured.append(self)


@pytest.fixture
def played_graphs(monkeypatch: pytest.MonkeyPatch) -> list[PlayedGraph]:
    @contextmanager
    def capturing(graph: PlayedGraph, capture_error_mode: str) -> Iterator[None]:
        yield

    monkeypatch.setattr(PlayedGraph, "captured", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PlayedGraph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return PlayedGraph.captured


class Squares:
    """The gradient of a parameter's squares, computed into the same memory by every replay."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter

    def __call__(self) -> Tensor:
        memory, loss = self.parameter.data, torch.zeros(())
        gradient = self.parameter.grad = torch.empty_like(memory)

        def kernels() -> None:
            gradient.copy_(2.0 * memory)
            loss.copy_(memory.square().sum())

        PlayedGraph.captured[-1].replay = kernels
        return loss


def test_a_step_is_captured_once_a_key(played_graphs):
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    step, compute = GraphedStep([parameter]), Squares(parameter)
    assert float(step("a", compute)) == 5.0 and torch.equal(parameter.grad, torch.tensor([2.0, 4.0]))
    with torch.no_grad():
        parameter.mul_(3.0)
    parameter.grad = None
    assert float(step("a", compute)) == 45.0 and torch.equal(parameter.grad, torch.tensor([6.0, 12.0]))
    assert len(played_graphs) == 1
    step("b", compute)
    step("b", compute)
    assert len(played_graphs) == 2
    step.forget()
    step("b", compute)
    assert len(played_graphs) == 3


def test_a_parameter_that_has_moved_is_captured_anew(played_graphs):
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    step, compute = GraphedStep([parameter]), Squares(parameter)
    step("a", compute)
    parameter.data = torch.tensor([4.0, 5.0])
    assert float(step("a", compute)) == 41.0 and torch.equal(parameter.grad, torch.tensor([8.0, 10.0]))
    assert len(played_graphs) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_own_graph_is_captured_anew_for_a_parameter_that_has_moved():
    parameter = nn.Parameter(torch.tensor([1.0, 2.0], device="cuda"))
    step = GraphedStep([parameter])

    def compute() -> Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss.detach()

    compute()
    for values in ([1.0, 2.0], [4.0, 5.0]):
        parameter.data = torch.tensor(values, device="cuda")
        for factor in (1.0, 3.0):
            parameter.data.mul_(factor)
            assert float(step("a", compute)) == sum(value**2 for value in values) * factor**2
            assert parameter.grad.tolist() == [2.0 * factor * value for value in values]


class Replays(GraphedStep):
    """Notes which steps were replayed, and computes them as eager ones are."""

    def __init__(self, trainer: Any) -> None:
        parameters = [parameter for group in trainer.optimizers.parameters.values() for parameter in group]
        super().__init__(parameters, trainer.pipeline.model.zipnerf.tables())
        self.trainer, self.steps = trainer, []

    def __call__(self, key: Any, compute: Callable[[], Any]) -> Any:
        self.steps.append(self.trainer.step)
        for parameter in self.parameters:
            parameter.grad = None
        return compute()


def test_an_eager_step_finds_the_memory_of_a_captured_one(played_graphs, monkeypatch):
    """What lay in it is gone, the gradients too, before torch is asked for what it has no use for."""
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    step, freed = GraphedStep([parameter]), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append((step._graph, parameter.grad)))
    step.forget()
    assert freed == []
    step("a", Squares(parameter))
    assert parameter.grad is not None
    step.forget()
    assert freed == [(None, None)] * 2


def test_a_measuring_step_does_not_need_memory_beside_the_graphs(tmp_path: Path, monkeypatch, fresh_writers):
    """Every so many steps one is eager, of a training that fitted until then."""
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path, steps=7)
    config.pipeline.model.collision_check_steps = 5
    trainer = start(config)
    monkeypatch.setattr(ZipNerfModel, "uses_kernels", property(lambda self: True))
    graph, compute, eager = Replays(trainer), trainer.gradients.compute, []
    trainer.gradients.graph = graph
    graph.forget = lambda: graph.steps.append("forgotten")

    def guarded(step: int) -> Any:
        if step not in graph.steps:
            eager.append((step, graph.steps[-1:]))
        return compute(step)

    trainer.gradients.compute = guarded
    trainer.train()
    assert eager == [(0, ["forgotten"]), (1, ["forgotten"]), (2, ["forgotten"]), (5, ["forgotten"])]


def test_moments_are_made_before_anything_that_a_step_needs(tmp_path: Path, fresh_writers):
    """They stay, and would split large pieces of memory that the step gives back."""
    trainer = start(tiny_config(write_scene(tmp_path / "scene"), tmp_path, steps=1))
    adam, compute = trainer.optimizers.optimizers["hash_tables"], trainer.gradients.compute
    number = len(trainer.pipeline.model.zipnerf.tables())

    def guarded(step: int) -> Any:
        assert [float(state["step"]) for state in adam.state.values()] == [0.0] * number
        assert not any(state["exp_avg"].any() for state in adam.state.values())
        return compute(step)

    # Nothing is there before: a training that is stopped then has nothing to save.
    assert len(adam.state) == 0
    trainer.gradients.compute = guarded
    trainer.train()
    assert [float(state["step"]) for state in adam.state.values()] == [1.0] * number


def test_the_step_after_a_checkpoint_was_loaded_is_not_replayed(tmp_path: Path, monkeypatch, fresh_writers):
    """What is kept of the tables is of the values before: a replay would read it, an eager step renews it."""
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path, steps=9)
    trainer = start(config)
    trainer.save_checkpoint(0)
    monkeypatch.setattr(ZipNerfModel, "uses_kernels", property(lambda self: True))
    graph = trainer.gradients.graph = Replays(trainer)
    iterate = trainer.train_iteration

    def iteration(step: int) -> Any:
        if step == 6:
            addresses = [table.kept.mean_square.data_ptr() for table in graph.tables]
            trainer.pipeline.load_pipeline(torch.load(checkpoint(config, 0), weights_only=True)["pipeline"], 0)
            assert not any(table.is_current() for table in graph.tables)
        result = iterate(step)
        if step == 6:
            # In the same memory, where the graph will read it again.
            assert addresses == [table.kept.mean_square.data_ptr() for table in graph.tables]
        return result

    trainer.train_iteration = iteration
    trainer.train()
    assert len(graph.tables) == 2 and graph.steps == [3, 4, 5, 7, 8]


class Frozen(Replays):
    """Gives back what its first step gave, as a graph does with all that is not written on the device."""

    result: Any = None

    def __call__(self, key: Any, compute: Callable[[], Any]) -> Any:
        fresh = super().__call__(key, compute)
        self.result = self.result or fresh
        return self.result


def test_shares_of_collisions_are_the_latest_ones_after_every_replay(tmp_path: Path, monkeypatch, fresh_writers):
    """They are measured by eager steps, before and after the one that was captured."""
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path, steps=11)
    config.pipeline.model.collision_check_steps = 5
    trainer = start(config)
    monkeypatch.setattr(ZipNerfModel, "uses_kernels", property(lambda self: True))
    graph = trainer.gradients.graph = Frozen(trainer)
    monitor, told = trainer.pipeline.model.monitor, {}
    iterate = trainer.train_iteration

    def iteration(step: int) -> Any:
        if step in (5, 10):
            monitor.shares = {}
        result = iterate(step)
        if step == 6:
            # What the next measurement finds must take its place.
            monitor.shares = {name: share / 2.0 for name, share in monitor.shares.items()}
        shares = {name: float(value) for name, value in result[2].items() if "collision" in name}
        told[step] = shares, dict(monitor.shares)
        return result

    trainer.train_iteration = iteration
    trainer.train()
    assert graph.steps == [3, 4, 6, 7, 8, 9]
    assert all(told[step][0] == {} for step in range(5))
    for step in (5, 7, 8, 9, 10):
        shares, latest = told[step]
        assert len(shares) == 4 and shares == {name: float(share) for name, share in latest.items()}, step
    assert told[7][0] == {name: share / 2.0 for name, share in told[6][0].items()}


def test_tables_that_another_optimizer_writes_are_not_replayed(tmp_path: Path, monkeypatch, capsys, fresh_writers):
    """Torch's Adam leaves what is kept of them stale; the reason is said, and asking for graphs is refused."""
    scene = write_scene(tmp_path / "scene")
    monkeypatch.setattr(ZipNerfModel, "uses_kernels", property(lambda self: True))
    monkeypatch.setattr(ZipNerfDataManager, "is_capturable", True)
    reasons = []
    for group in (None, "networks", "hash_tables"):
        config = tiny_config(scene, tmp_path, timestamp=str(group))
        config.pipeline.model.hash_decay_mult = 0.0
        if group is not None:
            config.optimizers[group]["optimizer"] = AdamOptimizerConfig(lr=0.01, eps=1e-15)
        trainer = start(config)
        trainer.device = "cuda"
        reasons.append(why_no_graph(trainer))
    assert reasons[:2] == [None, None] and "DecayingAdam" in reasons[2]
    assert set_up_graph(trainer) is None
    trainer.config.use_cuda_graphs = "on"
    with pytest.raises(SystemExit):
        set_up_graph(trainer)
    assert "DecayingAdam" in capsys.readouterr().out
