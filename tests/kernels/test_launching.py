"""What becomes of errors at a launch, and which launch is chosen for a device."""

from __future__ import annotations

import subprocess

import pytest
import torch

from zipnerf_ns.errors import LaunchFailed
from zipnerf_ns.kernels import launching as launches
from zipnerf_ns.kernels.device import INTERPRETER, SHARED_MEMORY, find, pretending
from zipnerf_ns.kernels.launching import choose, give_way, launching
from zipnerf_ns.kernels.mlp.tuning import RADIANCE, RadianceTuning, radiance_launches

OutOfResources = type("OutOfResources", (Exception,), {"__module__": "triton.runtime.errors"})
TENSOR = torch.zeros(1)


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a person is told; every operation begins with its fastest launch."""
    lines: list[str] = []
    monkeypatch.setattr(launches, "say", lines.append)
    monkeypatch.setattr(launches, "_failures", {})
    return lines


@pytest.mark.parametrize("error", [
    OutOfResources("out of resource: shared memory, Required: 193024, Hardware limit: 101376."),
    RuntimeError("PassManager::run failed"), RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
])  # fmt: skip
def test_an_error_at_a_launch_names_operation_and_device(error):
    with pretending(find("8.6")), pytest.raises(LaunchFailed, match="render .*compute capability 8.6: ") as failed:
        with launching("render", TENSOR):
            raise error
    assert str(error) in str(failed.value) and failed.value.operation == "render" and failed.value.__cause__ is error


@pytest.mark.parametrize("error", [
    subprocess.CalledProcessError(1, ["gcc", "main.c"]), RuntimeError("Failed to find C compiler. Please specify CC")
])  # fmt: skip
def test_a_missing_compiler_is_told_with_what_to_install(error):
    with pytest.raises(LaunchFailed, match="install gcc and python3-dev"), launching("render", TENSOR):
        raise error


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: an illegal memory access"),
    RuntimeError("Triton Error [CUDA]: unspecified launch failure"), ValueError("w must have shape (3,)"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), KeyboardInterrupt(),
])  # fmt: skip
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as raised, launching("render", TENSOR):
        raise error
    assert raised.value is error


def test_a_kernel_whose_code_finds_no_memory_is_like_a_tensor_that_finds_none():
    """Pictures then shrink, and a training ends with what to lower."""
    error = RuntimeError("Triton Error [CUDA]: out of memory")
    with pytest.raises(torch.OutOfMemoryError, match="out of memory") as raised, launching("render", TENSOR):
        raise error
    assert raised.value.__cause__ is error


def test_an_operation_that_failed_goes_one_launch_down_until_there_is_none(said):
    failed = LaunchFailed("radiance_mlp", "radiance_forward_kernel", "a GPU", "too large.")
    assert [choose("radiance_mlp", "abc"), choose("density_mlp", "xy")] == ["a", "x"]
    for expected, is_smaller in (("b", True), ("c", True), ("c", False)):
        assert give_way(failed) is is_smaller and choose("radiance_mlp", "abc") == expected
    assert choose("density_mlp", "xy") == "x" and len(said) == 2
    assert said[0] == f"{failed} A smaller launch takes its place."


def test_an_operation_of_one_launch_has_nothing_smaller(said):
    assert not give_way(LaunchFailed("render", "march_kernel", "a GPU", "too large.")) and said == []


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize(("width", "layers"), [(64, 3), (128, 3), (256, 3), (256, 4)])
def test_launches_of_the_color_network_fit_every_device_the_fastest_first(capability, width, layers):
    device, column = find(capability), (64, 128, 256).index(width) + layers - 3
    found = radiance_launches("bfloat16", width, layers, device)
    fitting = [rung for rung in RADIANCE if rung.tuning in found]
    assert [rung.tuning for rung in fitting] == list(found) and found[-1] is RADIANCE[-1].tuning
    assert all(rung.shared_memory[column] <= device.shared_memory for rung in fitting)
    if capability == "9.0" or (capability, layers) == ("10.0", 3):
        assert found[0] == RadianceTuning()


def test_an_unknown_device_gets_the_smallest_launch_and_the_interpreter_the_largest():
    tiny = find("7.5")._replace(shared_memory=16 << 10)
    assert radiance_launches("bfloat16", 256, 3, tiny) == (RADIANCE[-1].tuning,)
    assert radiance_launches("bfloat16", 256, 3, INTERPRETER)[0] == RadianceTuning()


def test_the_table_has_a_row_for_each_kind_of_gpu():
    first = [radiance_launches("bfloat16", 256, 3, find(capability))[0] for capability in ("9.0", "8.0", "8.6")]
    assert first == [rung.tuning for rung in RADIANCE[:3]]
    for alike in [("10.0", "9.0"), ("8.9", "8.6"), ("12.0", "8.6")]:
        assert len({radiance_launches("bfloat16", 256, 3, find(capability)) for capability in alike}) == 1
