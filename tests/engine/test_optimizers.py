"""Adam with decay against torch's Adam on a loss that contains the decay; the schedule and its checkpoint."""

from __future__ import annotations

import io
import math
import pickle

import pytest
import torch
from _rays import normal
from _tables import two_levels

from zipnerf_ns.engine import optimizers
from zipnerf_ns.engine.optimizers import DecayingAdam, DecayingAdamConfig, WarmupLogDecayConfig, resolve_implementation
from zipnerf_ns.functional.adam import decay_coefficients, decayed_adam_
from zipnerf_ns.hash_table import HashTable

MULT = 0.1
GRID = two_levels()
"""Rows 11 and 12, of the second level, are touched by no ray."""
STEPS = 6
SETTINGS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-15}


def data_loss(table: torch.Tensor, step: int) -> torch.Tensor:
    """A loss that looks at the first eleven rows only."""
    return (table[:11] - normal((11, 2), 100 + step, table.dtype)).square().mean()


def explicit_decay(table: torch.Tensor) -> torch.Tensor:
    """Zip-NeRF's hash decay as a term of the loss: half the sum over levels of the mean square, times its weight."""
    return 0.5 * MULT * sum(table[lv.offset : lv.offset + lv.size].square().mean() for lv in GRID.levels)


def plain_parameter(dtype=torch.float64) -> torch.nn.Parameter:
    return torch.nn.Parameter(0.3 * normal((13, 2), 0, dtype))


def decaying_table(dtype=torch.float64) -> HashTable:
    return HashTable(GRID, plain_parameter(dtype), decay_coefficients(GRID, MULT))


def parameters_of(parts: list) -> list:
    """The parameters of tables, among parameters."""
    return [part.hash_table if isinstance(part, HashTable) else part for part in parts]


def decaying_adam(parts: list, **settings) -> DecayingAdam:
    """An optimizer of parameters and of tables, which it has been given."""
    optimizer = DecayingAdam(parameters_of(parts), **{**SETTINGS, **settings})
    optimizer.adopt([part for part in parts if isinstance(part, HashTable)])
    return optimizer


def reference_trajectory(with_decay: bool) -> list:
    table = plain_parameter()
    optimizer = torch.optim.Adam([table], **SETTINGS)
    trajectory = []
    for step in range(STEPS):
        optimizer.zero_grad()
        (data_loss(table, step) + (explicit_decay(table) if with_decay else 0.0)).backward()
        optimizer.step()
        trajectory.append(table.detach().clone())
    return trajectory


def train(optimizer: torch.optim.Optimizer, parts: list, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        sum(data_loss(parameter, step) for parameter in parameters_of(parts)).backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("with_decay", [False, True])
def test_trajectory_is_that_of_adam_with_the_decay_in_the_loss(fused, with_decay):
    table = decaying_table() if with_decay else plain_parameter()
    (parameter,) = parameters_of([table])
    optimizer = decaying_adam([table], fused=fused)
    for step, expected in enumerate(reference_trajectory(with_decay)):
        train(optimizer, [table], range(step, step + 1))
        # The fused kernel orders its products differently; eps is no help, 1e-15 guards nothing here.
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-10)


def test_a_table_that_it_was_not_given_is_a_parameter_like_any_other():
    table = decaying_table()
    optimizer = DecayingAdam([table.hash_table], **SETTINGS)
    train(optimizer, [table], range(STEPS))
    torch.testing.assert_close(table.hash_table.detach(), reference_trajectory(False)[-1], rtol=1e-9, atol=1e-10)
    assert not table.is_decayed
    optimizer.adopt([table])
    assert table.is_decayed


def test_a_table_whose_parameter_it_does_not_update_is_refused():
    table, other = decaying_table(), decaying_table()
    optimizer = DecayingAdam([table.hash_table], **SETTINGS)
    with pytest.raises(ValueError, match="parameter is not among those that the optimizer updates"):
        optimizer.adopt([table, other])
    assert not table.is_decayed and not other.is_decayed


def test_decay_moves_rows_that_no_ray_touched():
    trajectory = reference_trajectory(with_decay=True)
    table = decaying_table()
    values = table.hash_table.detach()
    start = values.clone()
    train(decaying_adam([table]), [table], range(STEPS))
    assert (values[11:].abs() < start[11:].abs()).all()
    torch.testing.assert_close(values[11:], trajectory[-1][11:], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("fused", [False, True])
def test_tables_and_networks_in_one_group_each_get_their_own(fused):
    table, networks = decaying_table(), [plain_parameter(), plain_parameter()]
    train(decaying_adam([networks[0], table, networks[1]], fused=fused), [table, *networks], range(STEPS))
    torch.testing.assert_close(table.hash_table.detach(), reference_trajectory(True)[-1], rtol=1e-9, atol=1e-10)
    for network in networks:
        torch.testing.assert_close(network.detach(), reference_trajectory(False)[-1], rtol=1e-9, atol=1e-10)


def test_networks_are_updated_in_one_call(monkeypatch):
    calls, original = [], optimizers.adam
    monkeypatch.setattr(optimizers, "adam", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    networks = [plain_parameter() for _ in range(5)]
    train(DecayingAdam(networks, **SETTINGS), networks, range(1))
    assert len(calls) == 1


def test_what_a_table_keeps_is_current_after_every_step():
    table = decaying_table()
    optimizer = decaying_adam([table])
    for step in range(2):
        train(optimizer, [table], range(step, step + 1))
        assert table.is_current()
        means = [table.hash_table.detach()[lv.offset : lv.offset + lv.size].square().mean() for lv in GRID.levels]
        torch.testing.assert_close(table.kept.mean_square, torch.stack(means))


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_does_not_scale_the_decay(fused):
    table = decaying_table(torch.float32)
    optimizer = decaying_adam([table], fused=fused)
    assert not optimizer._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for step, expected in enumerate(reference_trajectory(with_decay=True)):
        optimizer.zero_grad()
        scaler.scale(data_loss(table.hash_table, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        # float32 beside the float64 reference; Adam divides gradients by themselves, so their rounding stays.
        torch.testing.assert_close(table.hash_table.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_a_step_that_overflowed_changes_nothing():
    table = decaying_table(torch.float32)
    before = table.hash_table.detach().clone()
    optimizer = decaying_adam([table])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaler.scale(data_loss(table.hash_table, 0) * math.inf).backward()
    scaler.step(optimizer)
    assert torch.equal(table.hash_table.detach(), before)


@pytest.mark.parametrize("fused", [False, True])
def test_a_closure_gives_the_same_trajectory(fused):
    table = decaying_table()
    parameter = table.hash_table
    optimizer = decaying_adam([table], fused=fused)
    for step, expected in enumerate(reference_trajectory(with_decay=True)):

        def closure(step=step):
            optimizer.zero_grad()
            loss = data_loss(parameter, step)
            loss.backward()
            return loss

        before = data_loss(parameter.detach(), step)
        assert float(optimizer.step(closure).detach()) == pytest.approx(float(before))
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-10)


def test_parameters_without_a_gradient_stay_and_do_not_count_the_step():
    parts = [decaying_table(), decaying_table(), plain_parameter(), plain_parameter()]
    parameters = parameters_of(parts)
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = decaying_adam(parts)
    train(optimizer, parameters[1::2], range(1))
    moved = [not torch.equal(parameter.detach(), old) for parameter, old in zip(parameters, before, strict=True)]
    assert moved == [False, True, False, True]
    assert [len(optimizer.state[parameter]) for parameter in parameters] == [0, 3, 0, 3]


def test_the_configuration_reaches_the_optimizer():
    config = DecayingAdamConfig(lr=0.03, eps=1e-9, betas=(0.8, 0.95), fused=False, implementation="torch")
    optimizer = config.setup(params=[plain_parameter()])
    assert isinstance(optimizer, DecayingAdam)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["eps"], group["betas"], group["fused"]) == (0.03, 1e-9, (0.8, 0.95), False)
    assert optimizer.implementation == "torch"


# --- implementations ---


def test_triton_where_it_cannot_run_is_told_when_the_tables_are_given(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="'triton' of the optimizer cannot run: .*need a CUDA device"):
        decaying_adam([decaying_table(torch.float32)], implementation="triton")
    with pytest.raises(RuntimeError, match="float32 tables; the hash table is torch.float64"):
        decaying_adam([decaying_table()], implementation="triton")
    # Networks are torch's in any case.
    DecayingAdam([plain_parameter()], implementation="triton")


def test_an_unknown_implementation_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'cuda' is unknown: choose 'auto', 'torch' or 'triton'"):
        resolve_implementation("cuda", plain_parameter())


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_on_a_cpu_the_torch_twin_updates(name):
    assert resolve_implementation(name, plain_parameter(torch.float32)) is decayed_adam_


@pytest.mark.parametrize("option", ["weight_decay", "amsgrad", "maximize"])
def test_what_tables_do_not_have_is_refused(option):
    with pytest.raises(ValueError, match=f"has no {option}"):
        DecayingAdam([{"params": [plain_parameter()], option: 1}], **SETTINGS)
    foreign = torch.optim.Adam([plain_parameter()], **{option: 1})
    with pytest.raises(ValueError, match=f"has no {option}"):
        decaying_adam([decaying_table()]).load_state_dict(foreign.state_dict())


# --- checkpoints ---


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("fused", [False, True])
def test_a_resumed_training_equals_an_uninterrupted_one(fused):
    whole, first, second = ([decaying_table(), plain_parameter()] for _ in range(3))
    train(decaying_adam(whole, fused=fused), whole, range(STEPS))
    stopped = decaying_adam(first, fused=fused)
    train(stopped, first, range(3))
    resumed = decaying_adam(second, fused=fused)
    loaded = through_a_file({"values": [parameter.detach() for parameter in parameters_of(first)]})["values"]
    with torch.no_grad():
        for parameter, value in zip(parameters_of(second), loaded, strict=True):
            parameter.copy_(value)
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    train(resumed, second, range(3, STEPS))
    for parameter, expected in zip(parameters_of(second), parameters_of(whole), strict=True):
        assert torch.equal(parameter, expected)
    assert torch.equal(second[0].kept.mean_square, whole[0].kept.mean_square)


@pytest.mark.parametrize("make", [decaying_table, plain_parameter])
@pytest.mark.parametrize("fused", [False, True])
def test_torchs_adam_and_ours_go_on_with_each_others_checkpoints(fused, make):
    def torchs(parts, fused):
        return torch.optim.Adam(parameters_of(parts), fused=fused, **SETTINGS)

    def change_over(first, second):
        part = make(torch.float32)
        if isinstance(part, HashTable):
            part.decay = (0.0, 0.0)
        optimizer = first([part], fused=fused)
        train(optimizer, [part], range(3))
        state = through_a_file(optimizer.state_dict())
        optimizer = second([part], fused=fused)
        optimizer.load_state_dict(state)
        train(optimizer, [part], range(3, STEPS))
        return parameters_of([part])[0].detach(), optimizer.state_dict()

    expected, truth = change_over(torchs, torchs)
    for order in ((decaying_adam, torchs), (torchs, decaying_adam)):
        found, state = change_over(*order)
        # Six roundings of values below one; fused and unfused Adam differ by as much.
        torch.testing.assert_close(found, expected, rtol=0.0, atol=5e-7)
        assert state["state"][0].keys() == truth["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
        step = state["state"][0]["step"]
        assert float(step) == STEPS and step.dtype == torch.float32 and step.device.type == "cpu"
        assert state["param_groups"][0].keys() == truth["param_groups"][0].keys()


def test_a_pickled_optimizer_still_steps():
    # With its tables in one file, for a copy of the optimizer alone has copies of them.
    table = decaying_table()
    optimizer = decaying_adam([table], implementation="torch")
    train(optimizer, [table], range(3))
    table, optimizer = pickle.loads(pickle.dumps((table, optimizer)))
    train(optimizer, [table], range(3, STEPS))
    torch.testing.assert_close(table.hash_table.detach(), reference_trajectory(True)[-1], rtol=1e-9, atol=1e-10)
    assert not optimizer._step_supports_amp_scaling and table.is_current() and table.is_decayed
    assert optimizer.implementation == "torch"


# --- schedule ---


def schedule(max_steps=1000, lr=0.01, **changes):
    config = WarmupLogDecayConfig(lr_final=0.001, max_steps=max_steps, **changes)
    optimizer = DecayingAdamConfig(lr=lr).setup(params=[plain_parameter()])
    return optimizer, config.setup().get_scheduler(optimizer, lr_init=lr)


def rates(steps: list, **changes) -> list:
    optimizer, scheduler = schedule(**changes)
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


def test_a_rate_that_waits_is_zero_before_its_warm_up():
    waiting, first, middle, end = rates([0, 199, 250, 1000], hold_fraction=0.2, warmup_start=0.0)[:4]
    assert waiting == first == 0.0 and end == pytest.approx(0.001, rel=1e-12)
    assert middle == pytest.approx(math.sin(math.pi / 4.0) * 10.0**-2.25, rel=1e-12)


@pytest.mark.parametrize(("length", "scale"), [(4000, 1.0), (1000, 4.0), (10, 8.0), (16_000, 0.25), (10**6, 0.125)])
def test_rates_of_longer_trainings_are_smaller(length, scale):
    rates = [schedule(max_steps=length, warmup_fraction=0.0, for_steps=steps)[0].param_groups[0]["lr"]
             for steps in (None, 4000)]  # fmt: skip
    assert rates[1] == pytest.approx(scale * rates[0], rel=1e-12)


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


@pytest.mark.parametrize(("length", "last"), [(3000, 0.001), (1500, 0.001), (1000, 0.003375), (400, 0.01)])
def test_short_trainings_end_at_higher_rates(length, last):
    assert rates([length], max_steps=length, lr=0.1, full_steps=1500) == [pytest.approx(last, rel=1e-12)]


def test_very_short_trainings_keep_the_peak_and_fall_linearly():
    found = rates([40, 200, 300, 396, 400, 410], max_steps=400, full_steps=1601, warmup_fraction=0.1)
    assert found == pytest.approx([0.01, 0.01, 0.005, 0.0002, 0.00001, 0.00001], rel=1e-9)
