"""What a user gets: registered methods, a light import, and pages whose commands, links, names and messages exist."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_layers import LAYERS

import zipnerf_ns

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README, CODE, GUIDE, TROUBLE = (PAGES[ROOT / name] for name in ("README.md", "docs/code.md", "docs/guide.md",
                                                                "docs/trouble.md"))  # fmt: skip
ALL_PAGES = "\n".join(PAGES.values())
IN_TEXT = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", ALL_PAGES, flags=re.DOTALL))
"""What stands between backticks outside of blocks."""
MOST_README_LINES = 200
METHODS = {
    "zipnerf", "zipnerf-big", "zipnerf-lite", "zipnerf-dynamic", "zipnerf-360", "zipnerf-blender", "zipnerf-splat"
}  # fmt: skip

IMPORT_NAMES = {"Pillow": "PIL", "PyYAML": "yaml", "scikit-image": "skimage"}
"""Distributions whose package has another name."""
OPTIONAL_IMPORTS = {"imageio_ffmpeg", "msgspec", "open3d", "pillow_heif", "pycolmap", "rawpy", "websockets"}
"""Imported where they are installed; extras of the distribution bring them, nerfstudio open3d and rawpy, and its viewer
msgspec and websockets."""


def page_commands() -> list[list[str]]:
    """Every command line of the pages as words: all of their shell blocks, and those in their text with options."""
    blocks = re.findall(r"```bash\n(.*?)```", ALL_PAGES, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += filter(re.compile(r"ns-[a-z-]+ .*--|python -m zipnerf_ns\S+ ").match, IN_TEXT)
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\w+", words[0]):
            del words[0]
        if words and words not in commands:
            commands.append(words)
    return commands


def page_training_options() -> list[list[str]]:
    """Options of ns-train, and of its dataparsers, that the pages' text names with a value, as command lines."""
    options = re.compile(r"--(pipeline|viewer|machine)\S* \S+|\w+-data --\S+ \S.*")
    return [["ns-train", "zipnerf", *text.split()] for text in dict.fromkeys(filter(options.fullmatch, IN_TEXT))]


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def messages_of_the_source() -> str:
    """Every string of the package's source, those parts of f-strings that are not computed, one a line; its scripts."""
    texts = [path.read_text() for path in (ROOT / "zipnerf_ns").rglob("*.js")]
    for path in (ROOT / "zipnerf_ns").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        texts += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n".join(texts)


def run_python(program: str) -> str:
    """The output of a program in a fresh interpreter."""
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300).stdout


def test_methods_are_registered():
    """The installed distribution offers exactly these methods."""
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


def test_commands_of_the_pages_are_understood(parse_problems):
    """Every command and training option of README and docs passes its program's own argument parser."""
    parsed = re.compile(r"ns-|python -m zipnerf_ns\.")
    commands = [words for words in page_commands() if parsed.match(" ".join(words)) and "--help" not in words]
    options = page_training_options()
    programs = {words[0] for words in commands}
    assert programs >= {"ns-process-data", "ns-train", "ns-eval", "ns-render", "ns-export", "ns-viewer", "python"}
    assert len(commands) >= 30 and len(options) >= 10
    problems = dict(zip(map(shlex.join, commands + options), parse_problems(commands + options), strict=True))
    without_library = {command for command, problem in problems.items() if problem and "libusb" in problem}
    assert {command: problem for command, problem in problems.items() if problem and "libusb" not in problem} == {}
    if without_library:
        pytest.skip(f"open3d does not load here without libusb-1.0-0, so not checked: {sorted(without_library)}")


def test_targets_and_modules_of_the_pages_exist():
    """Every make target and every module that the pages run is there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {words[1] for words in page_commands() if words[0] == "make"}
    named |= set(re.findall(r"`make ([\w-]+)", ALL_PAGES))
    assert named >= {"setup", "demo", "test"} and named <= targets
    modules = set(re.findall(r"python -m (zipnerf_ns[\w.]*)", ALL_PAGES))
    assert modules and all(importlib.util.find_spec(module) for module in modules)


def test_the_table_of_commands_is_complete():
    """Every command of ours and every make target has its row in the guide."""
    table = GUIDE.split("\n## Commands\n")[1]
    rows = re.findall(r"^\| `([^`]+)` \| \S", table, flags=re.MULTILINE)
    tools = {path.stem for path in (ROOT / "zipnerf_ns" / "tools").glob("*.py")
             if "\nif __name__ == " in path.read_text()}  # fmt: skip
    assert {row.split()[2].removeprefix("zipnerf_ns.tools.") for row in rows if row.startswith("python -m")} == tools
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {row.split()[1] for row in rows if row.startswith("make")} == set(targets) - {"help"}


def test_readme_is_short_and_names_every_method():
    """The table of methods is complete."""
    assert len(README.splitlines()) <= MOST_README_LINES
    assert {name for name in METHODS if f"| `{name}` |" in README} == METHODS


def test_the_tree_and_the_layers_are_the_codes():
    """The tree lists every module and folder at the top and names none that does not exist; layers are as tested."""
    tree, layers = (CODE.split(f"\n## {name}\n")[1].split("```")[1] for name in ("The tree", "Layers"))
    parents, found = [ROOT], set()
    for line in tree.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        words = re.split(r" {2,}", line.strip())
        names = list(itertools.takewhile(re.compile(r"\w+(\.py|/)").fullmatch, words))
        del parents[depth + 1 :]
        assert names and all((parents[depth] / name).exists() for name in names), line
        if parents[1:] == [ROOT / "zipnerf_ns"]:
            found |= {name.rstrip("/") for name in names}
        parents.append(parents[depth] / names[0])
    package = ROOT / "zipnerf_ns"
    there = {path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found == there
    assert [frozenset(line.split()) for line in layers.strip().splitlines()] == [row for row in LAYERS if row != {""}]


def test_messages_that_the_pages_mend_are_said():
    """What trouble.md quotes of this package is in its source, up to what is filled in."""
    said = messages_of_the_source()
    rows = re.findall(r"^\| (?:`?[\w ]+`?: )?\*([^*]+)\* \|", TROUBLE.split("\n## Data\n")[1], flags=re.MULTILINE)
    foreign = {"weights_only", "need at least one array to stack", "images_4.0 … missing"}
    parts = [part.strip() for row in rows if row not in foreign for part in row.split("…")]
    assert len(parts) >= 25
    assert [part for part in parts if part not in said] == []


def test_links_of_the_pages_lead_somewhere():
    """Pictures, files and headings that the pages link to are in the repository, and README leads to every page."""
    absent = []
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            path = page if not name else (page.parent / name).resolve()
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE) if anchor and path.is_file() else []
            if not path.is_file() or (anchor and anchor not in map(slug, headings)):
                absent.append(f"{page.name}: {target}")
    assert absent == []
    assert ".github/fox.png" in README and "(LICENSE)" in README
    assert all(f"(docs/{page.name})" in README for page in PAGES if page.parent != ROOT)


def test_licence_is_apache():
    """The whole text, and the same name in the distribution's metadata."""
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10)) and "END OF TERMS AND CONDITIONS" in text
    metadata = importlib.metadata.metadata("zipnerf-ns")
    assert "Apache-2.0" in (metadata.get("License") or metadata.get("License-Expression"))


def test_one_version():
    """Package, distribution and the newest release of the changes agree."""
    assert importlib.metadata.version("zipnerf-ns") == zipnerf_ns.__version__
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest.group(1) == zipnerf_ns.__version__


def test_tests_that_the_pages_name_exist():
    """What a page says was shown is shown by a test of that name; every fault of a training has one."""
    there = {
        node.name for path in (ROOT / "tests").rglob("test_*.py") for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }  # fmt: skip
    named = set(re.findall(r"`(test_\w+)`", ALL_PAGES))
    assert named - there == set() and len(named) >= 18
    part = ALL_PAGES.split("## What faults of a training cost")[1].split("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 12 and all("`test_" in row.split("|")[-2] for row in rows)


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
    # Torch brings Triton where it exists, and who wants tinycudann builds it: neither is required by itself.
    names -= {"setuptools"}  # of tensorboard's command
    assert imported - {"triton", "tinycudann"} == {IMPORT_NAMES.get(name, name) for name in names}
