"""Which functions a name stands for, where it can run, and what is said about it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from zipnerf_ns import ops as implementation
from zipnerf_ns.errors import InputError, LaunchFailed
from zipnerf_ns.functional import signatures
from zipnerf_ns.kernels import support
from zipnerf_ns.kernels.device import find, pretending
from zipnerf_ns.ops import TORCH_OPS, Ops, resolve_ops, resolve_precision, triton_ops, with_fallbacks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OPERATIONS = Ops._fields[1 : Ops._fields.index("cameras")]


KERNELS = TORCH_OPS._replace(name="triton")
"""Stand for the kernels, which cannot be imported where there is no Triton."""


@pytest.fixture
def triton(monkeypatch, said) -> SimpleNamespace:
    """Whether Triton is there, whatever this machine has; what is said about the choice, as if for the first time."""
    state = SimpleNamespace(lacks=None, untried=None, said=said)
    monkeypatch.setattr(support, "why_unavailable", lambda device: state.lacks)
    monkeypatch.setattr(support, "why_untried", lambda device: state.untried)
    monkeypatch.setattr(implementation, "triton_ops", lambda: KERNELS)
    monkeypatch.setattr(implementation, "say", said.append)
    return state


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_kernel_of_the_same_name_and_parameters(name):
    pytest.importorskip("triton")
    twin, kernel = getattr(TORCH_OPS, name), getattr(triton_ops(), name)
    assert twin.__name__ == kernel.__name__ == name
    assert twin.__module__.startswith("zipnerf_ns.functional.") and kernel.__module__.startswith("zipnerf_ns.kernels.")
    assert list(inspect.signature(twin).parameters) == list(inspect.signature(kernel).parameters)
    assert getattr(sys.modules[twin.__module__], name) is twin


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_called_as_its_protocol_says(name):
    protocol = getattr(signatures, "".join(word.capitalize() for word in name.split("_")))
    described = list(inspect.signature(protocol.__call__).parameters.values())[1:]
    twin = inspect.signature(getattr(TORCH_OPS, name)).parameters.values()
    assert [(p.name, p.default) for p in described] == [(p.name, p.default) for p in twin]
    assert name.strip("_") in protocol.__doc__


def test_the_kernels_know_what_they_are_and_what_they_take():
    pytest.importorskip("triton")
    kernels = triton_ops()
    assert (TORCH_OPS.name, kernels.name) == ("torch", "triton")
    assert TORCH_OPS.cameras is None and all(name == each.__name__ for name, each in kernels.cameras._asdict().items())
    assert [ops.reads_half(4) for ops in (TORCH_OPS, kernels)] == [False, True] and not kernels.reads_half(1)
    sizes_of = {"why_density_unsupported": (12, 48), "why_radiance_unsupported": (12, 64, 3, 48, 16)}
    for name, sizes in sizes_of.items():
        assert getattr(TORCH_OPS, name)(*sizes) is None and "not 48" in getattr(kernels, name)(*sizes)


LATE_KERNELS = """
import sys, torch
from zipnerf_ns.ops import resolve_ops
assert {resolve_ops(name, torch.device("cpu")).name for name in ("auto", "torch", "tcnn")} == {"torch"}
assert not [name for name in sys.modules if name.startswith("zipnerf_ns.kernels")]
try:
    resolve_ops("triton", torch.device("cpu"))
except RuntimeError as error:
    assert "cannot run" in str(error)
found = {name for name in sys.modules if name.startswith("zipnerf_ns.kernels")}
assert found == {"zipnerf_ns.kernels", "zipnerf_ns.kernels.device", "zipnerf_ns.kernels.support"}, found
"""


def test_kernels_are_imported_where_they_run_and_nowhere_else(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LATE_KERNELS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_torch_runs_anywhere(triton, device):
    triton.lacks = "No Triton."
    assert resolve_ops("torch", device) is TORCH_OPS and triton.said == []


def test_triton_is_given_where_it_can_run_and_refused_with_the_reason_where_it_cannot(triton):
    assert resolve_ops("triton", CUDA) is KERNELS
    triton.lacks = "The kernels need a newer card."
    with pytest.raises(RuntimeError, match="implementation='triton' cannot run: The kernels need a newer card."):
        resolve_ops("triton", CUDA)
    with pytest.raises(RuntimeError, match="implementation='triton' of the fields cannot run: The kernels"):
        resolve_ops("triton", CUDA, " of the fields")


@pytest.mark.parametrize("device, lacks, expected", [
    (CUDA, None, "triton"), (CUDA, "Too old.", "torch"), (CPU, None, "torch"), (CPU, "No CUDA.", "torch")
])  # fmt: skip
def test_auto_is_the_fastest_there_is_and_says_so_once(triton, device, lacks, expected):
    triton.lacks = lacks
    for _ in range(3):
        assert resolve_ops("auto", device).name == expected
    (said,) = triton.said
    assert f"'{expected}'" in said and device.type in said
    # Whoever has a GPU is told what keeps it from the kernels.
    assert lacks is None or (lacks in said) is (device is CUDA)


ARGUMENTS = torch.ones(1, 4), torch.linspace(1.0, 2.0, 5)[None], torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 4, 3)
FAILURE = LaunchFailed("render", "march_kernel", "a GPU", "it is too large.")


@pytest.fixture
def unable(triton, monkeypatch) -> list[str]:
    """Kernels of which "render" cannot be launched; its calls."""
    calls = []

    def render(*arguments):
        calls.append(arguments)
        raise FAILURE

    monkeypatch.setattr(implementation, "triton_ops", lambda: KERNELS._replace(render=render))
    monkeypatch.setattr(implementation, "_in_torch", set())
    implementation.guarded_ops.cache_clear()
    yield calls
    implementation.guarded_ops.cache_clear()


def test_auto_goes_on_in_torch_where_a_kernel_cannot_be_launched_and_says_so_once(unable, triton):
    ops = resolve_ops("auto", CUDA)
    for _ in range(2):
        assert all(map(torch.equal, ops.render(*ARGUMENTS), TORCH_OPS.render(*ARGUMENTS)))
    assert len(unable) == 1 and resolve_ops("auto", CUDA) is ops
    (said,) = [line for line in triton.said if "march_kernel" in line]
    assert said == "march_kernel cannot be launched on a GPU: it is too large. Torch computes render instead."


def test_triton_by_name_does_not_give_way(unable):
    with pytest.raises(LaunchFailed):
        resolve_ops("triton", CUDA).render(*ARGUMENTS)
    assert resolve_ops("triton", CUDA).name == "triton"


def test_a_backward_pass_that_failed_begins_anew(unable):
    attempts, undone = [], []

    def compute():
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise FAILURE
        return "done"

    assert with_fallbacks("auto", compute, lambda: undone.append(len(attempts))) == "done"
    assert attempts == [0, 1] and undone == [1] and "render" in implementation._in_torch
    attempts.clear()
    with pytest.raises(InputError, match="march_kernel .*'triton' was asked for: 'auto' takes"):
        with_fallbacks("triton", compute, undone.clear)


@pytest.mark.parametrize("capability, asked, given", [
    ("7.5", "bfloat16", "float16"), ("8.0", "bfloat16", "bfloat16"), ("12.0", "bfloat16", "bfloat16"),
    ("7.5", "float32", "float32"), ("8.6", "float16", "float16"),
])  # fmt: skip
def test_a_gpu_without_bfloat16_multiplies_float16_and_says_so(capability, asked, given, triton):
    with pretending(find(capability)):
        assert [resolve_precision(asked, CPU) for _ in range(2)] == [given] * 2
    assert len(triton.said) == (asked != given) and resolve_precision(asked, CPU) == "float32"


def test_where_the_kernels_are_untried_only_who_names_them_gets_them(triton):
    triton.untried = "Nobody has tried them."
    assert resolve_ops("triton", CUDA) is KERNELS and triton.said == []
    assert resolve_ops("auto", CUDA) is resolve_ops("auto", CUDA) is TORCH_OPS
    assert triton.said == ["Implementation 'auto' chose 'torch' on cuda: Nobody has tried them."]


def test_an_unknown_implementation_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="cuda.*unknown") as error:
        resolve_ops("cuda", CPU)
    offered = re.findall(r"'(\w+)'", str(error.value).split("choose")[1])
    assert set(offered) == {"auto", "tcnn", "torch", "triton"}


@pytest.mark.parametrize("name", ["auto", "tcnn", "torch", "triton"])
def test_every_name_that_the_error_offers_is_known_on_this_machine(name):
    try:
        assert isinstance(resolve_ops(name, CPU), Ops)
    except RuntimeError as absent:
        # Known, but not on this machine: the message says so.
        assert name == "triton" and "Triton" in str(absent)
