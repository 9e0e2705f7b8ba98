"""Adam with decay against torch's Adam on a loss that contains the decay; the schedule and its checkpoint."""

from __future__ import annotations

import io
import math

import pytest
import torch
from _rays import normal

from zipnerf_ns.optimizers import DecayingAdam, DecayingAdamConfig, WarmupLogDecayConfig

MULT = 0.1
LEVELS = ((0, 5), (5, 8))
"""Offset and rows of two levels in a table of 13 rows of 2 features; rows 11 and 12 are touched by no ray."""
STEPS = 6


def data_loss(table: torch.Tensor, step: int) -> torch.Tensor:
    """A loss that looks at the first eleven rows only."""
    return (table[:11] - normal((11, 2), 100 + step, table.dtype)).square().mean()


def explicit_decay(table: torch.Tensor) -> torch.Tensor:
    """Zip-NeRF's hash decay as a term of the loss: half the sum over levels of the mean square, times its weight."""
    return 0.5 * MULT * sum(table[offset : offset + size].square().mean() for offset, size in LEVELS)


def new_table() -> torch.nn.Parameter:
    return torch.nn.Parameter(0.3 * normal((13, 2), 0, torch.float64))


def decaying_table() -> torch.nn.Parameter:
    table = new_table()
    table.row_decay = [(offset, size, MULT / (size * 2)) for offset, size in LEVELS]
    return table


def reference_trajectory(with_decay: bool) -> list:
    table = new_table()
    optimizer = torch.optim.Adam([table], lr=0.02, betas=(0.9, 0.99), eps=1e-15)
    trajectory = []
    for step in range(STEPS):
        optimizer.zero_grad()
        (data_loss(table, step) + (explicit_decay(table) if with_decay else 0.0)).backward()
        optimizer.step()
        trajectory.append(table.detach().clone())
    return trajectory


def settings(fused: bool) -> dict:
    return {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-15, "fused": fused}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("with_decay", [False, True])
def test_trajectory_is_that_of_adam_with_the_decay_in_the_loss(fused, with_decay):
    table = decaying_table() if with_decay else new_table()
    optimizer = DecayingAdam([table], **settings(fused))
    for step, expected in enumerate(reference_trajectory(with_decay)):
        optimizer.zero_grad()
        data_loss(table, step).backward()
        optimizer.step()
        # The fused kernel orders its products differently; eps is no help, 1e-15 guards nothing here.
        torch.testing.assert_close(table.detach(), expected, rtol=1e-9, atol=1e-10)


def test_decay_moves_rows_that_no_ray_touched():
    trajectory = reference_trajectory(with_decay=True)
    table = decaying_table()
    start = table.detach().clone()
    optimizer = DecayingAdam([table], **settings(False))
    for step in range(STEPS):
        optimizer.zero_grad()
        data_loss(table, step).backward()
        optimizer.step()
    assert (table[11:].abs() < start[11:].abs()).all()
    torch.testing.assert_close(table[11:].detach(), trajectory[-1][11:], rtol=1e-9, atol=1e-10)


def test_the_models_coefficient_is_the_gradient_of_the_decay():
    table = decaying_table()
    (expected,) = torch.autograd.grad(explicit_decay(table), table)
    found = torch.zeros_like(table)
    for offset, size, coefficient in table.row_decay:
        found[offset : offset + size] = coefficient * table.detach()[offset : offset + size]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_does_not_scale_the_decay(fused):
    table = torch.nn.Parameter(decaying_table().detach().float())
    table.row_decay = decaying_table().row_decay
    optimizer = DecayingAdam([table], **settings(fused))
    assert not optimizer._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for step, expected in enumerate(reference_trajectory(with_decay=True)):
        optimizer.zero_grad()
        scaler.scale(data_loss(table, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        # float32 beside the float64 reference; Adam divides gradients by themselves, so their rounding stays.
        torch.testing.assert_close(table.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_a_step_that_overflowed_changes_nothing():
    table = torch.nn.Parameter(decaying_table().detach().float())
    table.row_decay = decaying_table().row_decay
    before = table.detach().clone()
    optimizer = DecayingAdamConfig().setup(params=[table])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaler.scale(data_loss(table, 0) * math.inf).backward()
    scaler.step(optimizer)
    assert torch.equal(table.detach(), before)


@pytest.mark.parametrize("fused", [False, True])
def test_a_closure_gives_the_same_trajectory(fused):
    table = decaying_table()
    optimizer = DecayingAdam([table], **settings(fused))
    for step, expected in enumerate(reference_trajectory(with_decay=True)):

        def closure(step=step):
            optimizer.zero_grad()
            loss = data_loss(table, step)
            loss.backward()
            return loss

        before = data_loss(table.detach(), step)
        assert float(optimizer.step(closure).detach()) == pytest.approx(float(before))
        torch.testing.assert_close(table.detach(), expected, rtol=1e-9, atol=1e-10)


def test_parameters_without_a_gradient_stay():
    idle, busy = decaying_table(), decaying_table()
    before = idle.detach().clone()
    optimizer = DecayingAdam([idle, busy], **settings(True))
    data_loss(busy, 0).backward()
    optimizer.step()
    assert torch.equal(idle.detach(), before) and not torch.equal(busy.detach(), before)


def test_the_configuration_reaches_the_optimizer():
    optimizer = DecayingAdamConfig(lr=0.03, eps=1e-9, betas=(0.8, 0.95), fused=False).setup(params=[new_table()])
    assert isinstance(optimizer, DecayingAdam)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["eps"], group["betas"], group["fused"]) == (0.03, 1e-9, (0.8, 0.95), False)


# --- schedule ---


def schedule(max_steps=1000, lr=0.01, **changes):
    config = WarmupLogDecayConfig(lr_final=0.001, max_steps=max_steps, **changes)
    optimizer = DecayingAdamConfig(lr=lr).setup(params=[new_table()])
    return optimizer, config.setup().get_scheduler(optimizer, lr_init=lr)


def rates(steps: list) -> list:
    optimizer, scheduler = schedule()
    found = {}
    for step in range(max(steps) + 1):
        found[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    return [found[step] for step in steps]


def test_rates_at_the_start_in_the_warm_up_after_it_and_beyond_the_end():
    start, middle_of_warmup, end_of_warmup, half, end, beyond = rates([0, 50, 100, 500, 1000, 1300])
    assert start == pytest.approx(0.01 * 0.01, rel=1e-12)
    ramp = 0.01 + 0.99 * math.sin(math.pi / 4.0)
    assert middle_of_warmup == pytest.approx(ramp * 10.0 ** (-2.0 - 0.05), rel=1e-12)
    assert end_of_warmup == pytest.approx(10.0**-2.1, rel=1e-12)
    assert half == pytest.approx(math.sqrt(0.01 * 0.001), rel=1e-12)
    assert end == pytest.approx(0.001, rel=1e-12) and beyond == end


def test_every_rate_and_every_number_of_the_state_is_a_python_number():
    optimizer, scheduler = schedule()
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        assert type(optimizer.param_groups[0]["lr"]) is float
    assert all(type(rate) is float for rate in scheduler.state_dict()["_last_lr"])


def test_without_a_warm_up_the_first_rate_is_the_peak():
    optimizer, _ = schedule(warmup_fraction=0.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01, rel=1e-12)


def test_checkpoint_loads_without_pickle_and_goes_on_where_it_stopped():
    optimizer, scheduler = schedule(max_steps=40)
    for _ in range(17):
        optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save({"scheduler": scheduler.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed_optimizer, resumed = schedule(max_steps=40)
    resumed.load_state_dict(state["scheduler"])
    resumed_optimizer.load_state_dict(state["optimizer"])
    for _ in range(5):
        for one in (optimizer, resumed_optimizer):
            one.step()
        for one in (scheduler, resumed):
            one.step()
        assert resumed_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_an_unknown_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="max_steps"):
        schedule(max_steps=None)
