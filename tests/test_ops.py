"""Which functions a name stands for, where it can run, and what is said about it."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace

import pytest
import torch

from zipnerf_ns import ops as implementation
from zipnerf_ns.functional import cones, mlp, ray_march, table_state
from zipnerf_ns.ops import TORCH_OPS, TRITON_OPS, Ops, resolve_ops

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OPERATIONS = [name for name in Ops._fields if name != "name"]


@pytest.fixture
def triton(monkeypatch) -> SimpleNamespace:
    """Whether Triton is there, whatever this machine has; what is said about the choice, as if for the first time."""
    state = SimpleNamespace(lacks=None, said=[])
    monkeypatch.setattr(implementation.hash_kernels, "why_unavailable", lambda device: state.lacks)
    monkeypatch.setattr(implementation.CONSOLE, "log", lambda text, **_: state.said.append(text))
    implementation._announce_choice.cache_clear()
    yield state
    implementation._announce_choice.cache_clear()


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "reads_half"])
def test_every_operation_has_a_kernel_of_the_same_name_and_parameters(name):
    twin, kernel = getattr(TORCH_OPS, name), getattr(TRITON_OPS, name)
    assert twin.__name__ == kernel.__name__ == name
    assert twin.__module__.startswith("zipnerf_ns.functional.") and kernel.__module__.startswith("zipnerf_ns.kernels.")
    assert list(inspect.signature(twin).parameters) == list(inspect.signature(kernel).parameters)
    assert any(getattr(module, name, None) is twin for module in (cones, mlp, ray_march, table_state))


def test_the_implementations_know_their_names():
    assert (TORCH_OPS.name, TRITON_OPS.name) == ("torch", "triton")


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_torch_runs_anywhere(triton, device):
    triton.lacks = "No Triton."
    assert resolve_ops("torch", device) is TORCH_OPS and triton.said == []


def test_triton_is_given_where_it_can_run_and_refused_with_the_reason_where_it_cannot(triton):
    assert resolve_ops("triton", CUDA) is TRITON_OPS
    triton.lacks = "The kernels need a newer card."
    with pytest.raises(RuntimeError, match="implementation='triton' cannot run: The kernels need a newer card."):
        resolve_ops("triton", CUDA)


@pytest.mark.parametrize("device, lacks, expected", [
    (CUDA, None, "triton"), (CUDA, "Too old.", "torch"), (CPU, None, "torch"), (CPU, "No CUDA.", "torch")
])  # fmt: skip
def test_auto_is_the_fastest_there_is_and_says_so_once(triton, device, lacks, expected):
    triton.lacks = lacks
    for _ in range(3):
        assert resolve_ops("auto", device).name == expected
    (said,) = triton.said
    assert f"'{expected}'" in said and device.type in said


def test_an_unknown_implementation_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="cuda.*unknown") as error:
        resolve_ops("cuda", CPU)
    offered = re.findall(r"'(\w+)'", str(error.value).split("choose")[1])
    assert set(offered) == {"auto", "tcnn", "torch", "triton"}


@pytest.mark.parametrize("name", ["auto", "torch", "triton"])
def test_every_name_that_the_error_offers_is_known_on_this_machine(name):
    try:
        assert isinstance(resolve_ops(name, CPU), Ops)
    except RuntimeError as absent:
        # Known, but not on this machine: the message says so.
        assert name == "triton" and "Triton" in str(absent)
