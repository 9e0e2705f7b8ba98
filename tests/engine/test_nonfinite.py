"""Steps whose loss or gradients are not finite change nothing, are counted by name, and end a training in the end."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from _scenes import assert_clear, checkpoint, load, start, tiny_config
from torch import nn

from nerfstudio.engine.optimizers import AdamOptimizerConfig, RAdamOptimizerConfig

from zipnerf_ns.engine.optimizers import DecayingAdam
from zipnerf_ns.engine.safety import gradients
from zipnerf_ns.engine.safety.gradients import NonFiniteGuard
from zipnerf_ns.errors import InputError
from zipnerf_ns.model import ZipNerfModel

pytestmark = pytest.mark.usefixtures("fresh_writers")

BAD = [math.nan, math.inf, -math.inf]


def guarded(device: str = "cpu", make: Any = DecayingAdam) -> tuple[NonFiniteGuard, list[nn.Parameter], Any]:
    parameters = [nn.Parameter(torch.ones(3, device=device)), nn.Parameter(torch.ones(2, 2, device=device))]
    optimizer = make(parameters)
    return NonFiniteGuard({"networks": optimizer}, [], torch.device(device), False), parameters, optimizer


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_mark_is_left_for_one_bad_number_and_it_is_named(bad, where):
    guard, (first, second), _ = guarded()
    first.grad, second.grad = torch.zeros(3), torch.zeros(2, 2)
    guard.look(losses(rgb_loss=1.0, distortion_loss=3e38))
    assert guard.found == 0.0
    said: list[str] = []
    guard.tell(said.append)
    assert said == []
    if where == "gradient":
        second.grad[1, 0] = bad
    guard.look(losses(rgb_loss=1.0, distortion_loss=bad if where == "loss" else 1.0))
    assert guard.found == 1.0
    second.grad.zero_()
    guard.look(losses(rgb_loss=1.0, distortion_loss=1.0))
    assert guard.found == 0.0
    for _ in range(2):
        guard.tell(said.append)
    name = "distortion_loss" if where == "loss" else "the gradient of networks"
    assert said == [f"Warning: 1 steps were skipped (1 in all): {name} not finite."]


def test_losses_and_gradients_that_come_and_go_are_told_apart():
    guard, (first, second), _ = guarded()
    guard.look(losses(a=1.0))
    second.grad = torch.zeros(2, 2)
    guard.look(losses(b=math.nan, a=1.0))
    guard.look(losses(a=2.0))
    said: list[str] = []
    guard.tell(said.append)
    assert len(said) == 1 and ": b not finite." in said[0]


def test_a_training_ends_after_too_many_in_a_row_only(monkeypatch):
    monkeypatch.setattr(gradients, "MOST_IN_A_ROW", 3)
    guard, _, _ = guarded()
    for value in (math.nan, math.nan, 1.0, math.nan, math.nan):
        guard.look(losses(rgb_loss=value))
    guard.tell(lambda line: None)
    guard.look(losses(rgb_loss=math.inf))
    with pytest.raises(InputError, match="3 steps in a row were skipped: rgb_loss not finite"):
        guard.tell(lambda line: None)


@pytest.mark.parametrize(
    "make",
    [
        DecayingAdam,
        lambda parameters: DecayingAdam(parameters, fused=False),
        lambda parameters: torch.optim.Adam(parameters, fused=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    ],
    ids=["ours", "ours not fused", "torch's fused", "one that knows no mark"],
)
def test_a_marked_step_changes_neither_values_nor_moments(make):
    guard, parameters, optimizer = guarded(make=make)

    def step(value: float) -> None:
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, value)
        guard.look(losses(loss=1.0))
        for _ in guard.steppable(["networks"]):
            optimizer.step()

    def everything() -> list[torch.Tensor]:
        states = [value for state in optimizer.state.values() for value in state.values()]
        return [tensor.detach().clone() for tensor in (*parameters, *states)]

    step(1.0)
    before = everything()
    step(math.nan)
    assert all(torch.equal(one, other) for one, other in zip(before, everything(), strict=True))
    step(1.0)
    assert not torch.equal(before[0], parameters[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_captured_graph_leaves_the_mark_and_counts(where):
    guard, (first, second), _ = guarded("cuda")
    first.data = torch.ones(70_001, device="cuda")
    loss, first.grad, second.grad = torch.ones((), device="cuda"), torch.ones_like(first), torch.ones_like(second)
    changed = loss if where == "loss" else first.grad[-2]
    guard.look({"loss": loss})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        guard.look({"loss": loss})
    marks = []
    for value in (1.0, math.nan, math.inf, 2.0):
        changed.fill_(value)
        graph.replay()
        marks.append(float(guard.found))
    assert marks == [0.0, 1.0, 1.0, 0.0]
    said: list[str] = []
    guard.tell(said.append)
    name = "loss" if where == "loss" else "the gradient of networks"
    assert said == [f"Warning: 2 steps were skipped (2 in all): {name} not finite."]


def spoil(trainer: Any, steps: range, factor: float = math.nan) -> dict[int, dict[str, Any]]:
    """Makes the color loss of some steps infinite or NaN; the state before every step is noted."""
    lose, iterate, states = trainer.pipeline.get_train_loss_dict, trainer.train_iteration, {}

    def spoilt(step: int) -> Any:
        outputs, parts, metrics = lose(step)
        if step in steps:
            parts["rgb_loss"] = parts["rgb_loss"] * factor
        return outputs, parts, metrics

    def iteration(step: int) -> Any:
        values = {name: value.clone() for name, value in trainer.pipeline.state_dict().items()}
        moments = {
            (group, index, name): tensor.clone()
            for group, optimizer in trainer.optimizers.optimizers.items()
            for index, state in enumerate(optimizer.state.values())
            # A table's updates are counted by the CPU, which does not know of the mark.
            for name, tensor in state.items() if name != "step"
        }  # fmt: skip
        states[step] = {**values, **moments}
        return iterate(step)

    trainer.pipeline.get_train_loss_dict, trainer.train_iteration = spoilt, iteration
    return states


def changed(states: dict[int, dict[str, Any]], step: int) -> bool:
    before, after = states[step], states[step + 1]
    return not all(torch.equal(value, after[name]) for name, value in before.items() if "progress" not in str(name))


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_with_a_bad_loss_is_skipped_and_the_training_goes_on(
    scene, tmp_path, monkeypatch, capsys, replayed, factor
):
    config = tiny_config(scene, tmp_path, steps=9)
    trainer = start(config)
    if replayed:
        monkeypatch.setattr(ZipNerfModel, "uses_kernels", property(lambda self: True))

        class Graph:
            has_current_tables = staticmethod(lambda: True)
            forget = staticmethod(lambda: None)

            def __call__(self, key: Any, compute: Any) -> Any:
                trainer.optimizers.zero_grad_all()
                return compute()

        trainer.gradients.graph = Graph()
    states = spoil(trainer, range(5, 7), factor)
    trainer.train()
    assert [step for step in range(1, 8) if not changed(states, step)] == [5, 6]
    said = capsys.readouterr().out
    assert "Warning: 2 steps were skipped (2 in all): rgb_loss not finite." in said
    state = load(checkpoint(config, 8))["pipeline"]
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


def test_too_many_in_a_row_end_the_training_with_the_last_good_values(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gradients, "MOST_IN_A_ROW", 4)
    config = tiny_config(scene, tmp_path, steps=40)
    config.logging.steps_per_log = 3
    trainer = start(config)
    states = spoil(trainer, range(5, 40))
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == 1 and max(states) == 9
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Error:")]
    assert_clear(line, ("5 steps in a row", "rgb_loss", "--optimizers.networks.optimizer.lr", "--load-checkpoint"))
    kept = load(checkpoint(config, 9))["pipeline"]
    assert all(torch.equal(value, states[5][name]) for name, value in kept.items() if "progress" not in name)


@pytest.mark.parametrize("optimizer", [AdamOptimizerConfig, RAdamOptimizerConfig])
def test_other_optimizers_skip_too(scene, tmp_path, optimizer):
    config = tiny_config(scene, tmp_path, steps=4)
    config.optimizers["networks"]["optimizer"] = optimizer(lr=0.01)
    trainer = start(config)
    states = spoil(trainer, range(2, 3))
    trainer.train()
    assert [step for step in range(3) if not changed(states, step)] == [2]
