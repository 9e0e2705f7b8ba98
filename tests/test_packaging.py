"""What a user gets: registered methods, a light import, and a README whose commands exist."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import zipnerf_ns

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
METHODS = {"zipnerf", "zipnerf-big", "zipnerf-lite", "zipnerf-360", "zipnerf-blender"}

IMPORT_NAMES = {"Pillow": "PIL", "PyYAML": "yaml", "scikit-image": "skimage"}
"""Distributions whose package has another name."""
OPTIONAL_IMPORTS = {"imageio_ffmpeg", "pycolmap"}
"""Imported where they are installed; extras of the distribution bring them."""


def readme_commands() -> list[list[str]]:
    """Every command line in the README's shell blocks, as words."""
    commands = []
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                commands.append(words)
    return commands


def readme_training_options() -> list[list[str]]:
    """Options of ns-train that the README's text names with a value, as command lines."""
    found = re.findall(r"`(--(?:pipeline|viewer)\S* \S+)`", README)
    return [["ns-train", "zipnerf", *option.split()] for option in found]


def run_python(program: str) -> str:
    """The output of a program in a fresh interpreter."""
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300).stdout


def test_methods_are_registered():
    """The installed distribution offers exactly its three methods."""
    entries = importlib.metadata.distribution("zipnerf-ns").entry_points
    values = {entry.name: entry.value for entry in entries if entry.group == "nerfstudio.method_configs"}
    assert values == {name: f"zipnerf_ns.config:{name.replace('-', '_')}" for name in METHODS}


LIGHT_IMPORT = """
import json, sys
for absent in ("triton", "open3d", "lpips"):
    sys.modules[absent] = None
import nerfstudio.engine.trainer, nerfstudio.pipelines.base_pipeline, nerfstudio.plugins.types
import nerfstudio.data.dataparsers.blender_dataparser, nerfstudio.model_components.renderers
before = set(sys.modules)
import zipnerf_ns.config
from nerfstudio.plugins.registry import discover_methods
configs, descriptions = discover_methods()
print(json.dumps({
    "tools": sorted(name for name in sys.modules if name.startswith("zipnerf_ns.tools")),
    "late": sorted(name for name in sys.modules if name.endswith((".method_configs", ".eval_utils"))),
    "packages": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "methods": {name: config.method_name for name, config in configs.items() if name.startswith("zipnerf")},
    "descriptions": [descriptions[name] for name in configs if name.startswith("zipnerf")],
}))
"""


def test_configuration_loads_light_and_without_triton():
    """Nerfstudio finds the methods where Triton and open3d are absent, and loading them pulls in nothing heavy."""
    found = json.loads(run_python(LIGHT_IMPORT).splitlines()[-1])
    assert found["methods"] == {name: name for name in METHODS}
    assert all(found["descriptions"])
    assert found["tools"] == [] and found["late"] == []
    assert not {"open3d", "triton", "tensorboard", "wandb", "comet_ml", "imageio_ffmpeg"} & set(found["packages"])


def test_readme_commands_are_understood(parse_problems):
    """Every ns-* command and training option of the README passes nerfstudio's own argument parser."""
    commands = [words for words in readme_commands() if words[0].startswith("ns-") and "--help" not in words]
    options = readme_training_options()
    assert {words[0] for words in commands} >= {"ns-process-data", "ns-train", "ns-eval", "ns-render", "ns-export"}
    assert len(options) >= 5
    problems = dict(zip(map(shlex.join, commands + options), parse_problems(commands + options), strict=True))
    without_library = {command for command, problem in problems.items() if problem and "libusb" in problem}
    assert {command: problem for command, problem in problems.items() if problem and "libusb" not in problem} == {}
    if without_library:
        pytest.skip(f"open3d does not load here without libusb-1.0-0, so not checked: {sorted(without_library)}")


def test_readme_targets_and_modules_exist():
    """Every make target and every module that the README runs is there."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {words[1] for words in readme_commands() if words[0] == "make"} | set(re.findall(r"`make (\w+)", README))
    assert named >= {"setup", "demo", "test"} and named <= targets
    modules = set(re.findall(r"python -m (zipnerf_ns[\w.]*)", README))
    assert modules and all(importlib.util.find_spec(module) for module in modules)


def test_readme_names_every_method_and_layer():
    """The table of methods is complete, and the layout names modules that exist."""
    assert {name for name in METHODS if f"| `{name}` |" in README} == METHODS
    layout = README.split("## How it is laid out")[1].split("To change it")[0]
    for name in re.findall(r"(\w+(?:\.py|/))", layout):
        assert (ROOT / "zipnerf_ns" / name).exists(), name


def test_readme_links_lead_somewhere():
    """Pictures and files that the README shows are in the repository."""
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [target for target in targets if "://" not in target]
    assert ".github/fox.png" in local and "LICENSE" in local
    assert [target for target in local if not (ROOT / target).is_file()] == []


def test_licence_is_apache():
    """The whole text, and the same name in the distribution's metadata."""
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10)) and "END OF TERMS AND CONDITIONS" in text
    metadata = importlib.metadata.metadata("zipnerf-ns")
    assert "Apache-2.0" in (metadata.get("License") or metadata.get("License-Expression"))


def test_one_version():
    """Package, distribution and the newest change agree."""
    assert importlib.metadata.version("zipnerf-ns") == zipnerf_ns.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest.group(1) == zipnerf_ns.__version__


def test_imports_are_declared():
    """Each package that the source imports is a declared dependency, and each declared one is imported."""
    imported = set()
    for path in (ROOT / "zipnerf_ns").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= set(sys.stdlib_module_names) | {"zipnerf_ns"} | OPTIONAL_IMPORTS
    required = [text for text in importlib.metadata.requires("zipnerf-ns") if "extra ==" not in text]
    names = {re.match(r"[\w.-]+", text).group() for text in required}
    # torch brings Triton where it exists, so that it is never required by itself.
    assert imported - {"triton"} == {IMPORT_NAMES.get(name, name) for name in names}
