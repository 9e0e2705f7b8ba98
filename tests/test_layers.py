"""Imports point downwards only: the package's layers, read from its source without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "zipnerf_ns"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

# From the top to the bottom. A module may import those of lower rows, and of its own where the row allows it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"tools"}),
    frozenset({"config"}),
    frozenset({"splats"}),
    frozenset({"engine"}),
    frozenset({"model"}),
    frozenset({"render", "model_config"}),
    frozenset({"zipnerf"}),
    frozenset({"settings"}),
    frozenset({"field", "sampler", "losses"}),
    frozenset({"encoding", "data"}),
    frozenset({"cameras"}),
    frozenset({"ops", "hash_table"}),
    frozenset({"kernels"}),
    frozenset({"rays", "functional", "errors"}),
    frozenset({""}),
)
"""The first part of a module's name within the package; the package itself is the empty name."""
FOLDERS = frozenset(
    {"tools", "splats", "engine", "render", "encoding", "data", "cameras", "kernels", "functional"}
)
FUNCTIONAL_MAY_IMPORT = frozenset({"torch", "jaxtyping", "numpy"})
TRAINER_CONFIG_USERS = frozenset({"config", "engine"})
LATE_UPWARDS = frozenset({(f"{PACKAGE}.model_config", f"{PACKAGE}.model")})
"""A configuration names the class that it builds, which is made of it: imported within a function."""
KERNEL_USERS = frozenset({"ops", "kernels"})
"""The parts that import kernels; ops does so where they can run, within a function."""
CHECKING_TOOLS = frozenset({f"{PACKAGE}.tools.check_gpu", f"{PACKAGE}.tools.sanitize"})
CHECK = f"{PACKAGE}.kernels.check"
"""Tools that compile kernels instead of running them, or run them alone; they may ask for what does so, within a
function."""
LATE_IMPORTS_ONLY = ("nerfstudio.configs.method_configs", "nerfstudio.utils.eval_utils")
"""Modules that load every method's entry point: imported while ours loads, they go in a circle."""


class Import(NamedTuple):
    """One imported name: ``from target import name``, or ``import target`` with the name None."""

    target: str
    name: str | None
    line: int
    at_top: bool
    """Whether importing the module runs it: false within functions and under TYPE_CHECKING."""


def find_imports(source: str, module: str, is_package: bool) -> list[Import]:
    """Every import of a module's source, with relative targets resolved."""
    found: list[Import] = []

    def visit(node: ast.AST, at_top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            target = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                target = ".".join([*parents, *([target] if target else [])])
            found.extend(Import(target, alias.name, node.lineno, at_top) for alias in node.names)
        inside_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, at_top and not inside_function and not typing_only)

    visit(ast.parse(source), True)
    return found


def modules(root: Path, package: str = PACKAGE) -> Iterator[tuple[str, Path]]:
    """Dotted names and files of a package's modules."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def inner_targets(found: Import, known: frozenset[str]) -> str | None:
    """The module of the package that an import reads, or None where it reads another package."""
    if found.target.split(".")[0] != PACKAGE:
        return None
    as_module = f"{found.target}.{found.name}"
    return as_module if as_module in known else found.target


def part(module: str) -> str:
    """The part of a module's name that names its layer."""
    return ".".join(module.split(".")[1:2])


def layer(module: str) -> int:
    """The row of LAYERS that a module belongs to.

    Raises:
        KeyError: none: whoever adds a module says where it stands.
    """
    for row, names in enumerate(LAYERS):
        if part(module) in names:
            return row
    raise KeyError(f"{module} has no layer: add it to LAYERS in {Path(__file__).name}")


def arrow_violation(source: str, target: str) -> str | None:
    """What is wrong with one arrow between two modules of the package, or None."""
    if part(target) == "tools" and part(source) != "tools":
        return "nothing imports tools"
    checks = source in CHECKING_TOOLS and target.startswith(CHECK)
    if part(target) == "kernels" and part(source) not in KERNEL_USERS and not checks:
        return "kernels are had from ops"
    if layer(target) < layer(source):
        return "points upwards"
    same_folder = part(source) == part(target) and part(source) in FOLDERS
    if layer(target) == layer(source) and not same_folder:
        return "stays in its layer"
    return None


def outer_violation(source: str, found: Import) -> str | None:
    """What is wrong with an import of another package, or None."""
    top = found.target.split(".")[0]
    if part(source) == "functional" and top not in FUNCTIONAL_MAY_IMPORT | sys.stdlib_module_names:
        return "functional knows torch, jaxtyping and numpy only"
    if top in ("triton", "tinycudann") and part(source) != "kernels":
        return f"{top} belongs to kernels"
    if top == "importlib" and part(source) == "kernels":
        return "kernels import each other like any module"
    if found.name == "TrainerConfig" and part(source) not in TRAINER_CONFIG_USERS:
        return "TrainerConfig belongs to config and engine"
    names = {found.target, f"{found.target}.{found.name}"}
    if found.at_top and names & set(LATE_IMPORTS_ONLY):
        return "loads every entry point while one is loading"
    return None


def violations(root: Path) -> list[str]:
    """Every import of a package that breaks a rule, as ``file:line: what and why``."""
    files = dict(modules(root))
    known = frozenset(files)
    result = []
    for module, path in files.items():
        layer(module)
        for found in find_imports(path.read_text(), module, path.name == "__init__.py"):
            target = inner_targets(found, known)
            if not found.at_top and (module, target) in LATE_UPWARDS:
                continue
            reason = outer_violation(module, found) if target is None else arrow_violation(module, target)
            if reason is None and found.at_top and part(target or "") == "kernels" != part(module):
                reason = "imports triton where there may be none"
            if reason is not None:
                what = target or found.target
                result.append(f"{path.relative_to(root)}:{found.line}: {module} -> {what}: {reason}")
    return result


def test_imports_point_downwards():
    """No import of the package breaks a rule."""
    assert violations(ROOT) == []


def test_modules_import_without_a_circle():
    """Within a folder, where arrows may run sideways, following them never comes back."""
    files = dict(modules(ROOT))
    arrows = {
        module: {
            target
            for found in find_imports(path.read_text(), module, path.name == "__init__.py")
            if found.at_top and (target := inner_targets(found, frozenset(files))) not in (None, module)
        }
        for module, path in files.items()
    }
    while free := [module for module, targets in arrows.items() if not targets & arrows.keys()]:
        for module in free:
            del arrows[module]
    assert arrows == {}


def test_no_module_is_named_like_the_standard_library():
    """A file math.py or types.py would be taken for the library's when its folder is on the path."""
    names = {module.split(".")[-1] for module, _ in modules(ROOT)}
    assert not names & sys.stdlib_module_names


def test_every_folder_is_a_package():
    """A folder without __init__.py would be missing from the wheel."""
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def write_package(root: Path, files: dict[str, str]) -> Path:
    """A package with the given sources, and empty ones that they may import."""
    names = ["", "config", "model", "field", "sampler", "encoding", "functional/spacing", "tools/demo"]
    sources = {f"{name or '__init__'}.py": "" for name in names}
    for name, source in {**sources, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


BAD_SOURCES = [
    ("encoding.py", "from zipnerf_ns.field import Field", "encoding.py:1", "upwards"),
    ("encoding.py", "def f():\n    from zipnerf_ns import model", "encoding.py:2", "upwards"),
    ("functional/spacing.py", "from .. import encoding", "functional/spacing.py:1", "upwards"),
    ("sampler.py", "import torch\nfrom .field import Field", "sampler.py:2", "stays in its layer"),
    ("config.py", "import zipnerf_ns.tools.demo", "config.py:1", "nothing imports tools"),
    ("functional/spacing.py", "from nerfstudio.cameras import rays", "functional/spacing.py:1", "torch, jaxtyping"),
    ("model.py", "from nerfstudio.engine.trainer import TrainerConfig", "model.py:1", "TrainerConfig"),
    ("field.py", "def f():\n    from zipnerf_ns.kernels import adam", "field.py:2", "had from ops"),
    ("ops.py", "from zipnerf_ns.kernels import adam", "ops.py:1", "where there may be none"),
    ("tools/check_gpu.py", "def f():\n    from zipnerf_ns.kernels import adam", "tools/check_gpu.py:2", "had from ops"),
    ("tools/check_gpu.py", "from zipnerf_ns.kernels.check import a", "tools/check_gpu.py:1", "where there may be none"),
    ("tools/demo.py", "def f():\n    from zipnerf_ns.kernels.check import a", "tools/demo.py:2", "had from ops"),
    ("ops.py", "import triton.language as tl", "ops.py:1", "belongs to kernels"),
    ("encoding.py", "def f():\n    import tinycudann", "encoding.py:2", "belongs to kernels"),
    ("kernels/adam.py", "import importlib", "kernels/adam.py:1", "like any module"),
    ("config.py", "from nerfstudio.utils import eval_utils", "config.py:1", "entry point"),
    ("config.py", "from nerfstudio.configs.method_configs import all_methods", "config.py:1", "entry point"),
]


@pytest.mark.parametrize(("name", "source", "place", "reason"), BAD_SOURCES)
def test_checker_reports(tmp_path: Path, name: str, source: str, place: str, reason: str):
    """One bad line in an otherwise clean package is the one that is reported, with its place."""
    assert violations(write_package(tmp_path / "good", {})) == []
    (reported,) = violations(write_package(tmp_path / "bad", {name: source}))
    assert reported.startswith(f"{place}: ") and reason in reported


GOOD_SOURCES = [
    ("config.py", "from nerfstudio.engine.trainer import TrainerConfig\nfrom zipnerf_ns.model import Model"),
    ("field.py", "from .encoding import Encoding\nfrom zipnerf_ns.functional import spacing"),
    ("functional/__init__.py", "from . import spacing\nimport math\nfrom jaxtyping import Float"),
    ("ops.py", "def f():\n    from zipnerf_ns.kernels import adam"),
    ("tools/check_gpu.py", "def f():\n    from zipnerf_ns.kernels.check.compiler import compile_launch"),
    ("kernels/adam.py", "import triton\nfrom zipnerf_ns.kernels import support"),
    ("functional/other.py", "from .spacing import s_to_t"),
    ("tools/other.py", "from zipnerf_ns.tools.demo import main\nfrom zipnerf_ns.config import zipnerf"),
    ("tools/late.py", "def f():\n    from nerfstudio.utils.eval_utils import eval_setup"),
]


@pytest.mark.parametrize(("name", "source"), GOOD_SOURCES)
def test_checker_accepts(tmp_path: Path, name: str, source: str):
    """Arrows that point downwards, or sideways within a folder, are not reported."""
    assert violations(write_package(tmp_path, {name: source})) == []


def test_checker_wants_a_place_for_every_module(tmp_path: Path):
    """A module that no row names is an error, not an exception to the rules."""
    with pytest.raises(KeyError, match="unheard_of"):
        violations(write_package(tmp_path, {"unheard_of.py": "import torch"}))


def test_the_house_stays_small():
    """What a newcomer has to hold: few rooms, files of one responsibility, one door to the kernels."""
    assert len([path for path in ROOT.glob("*.py") if path.name != "__init__.py"]) <= 12
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 350} == {}
    carried = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in ROOT.rglob("*.py")
        if "tools" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and "ops" in {argument.arg for argument in node.args.args}
    ]
    assert len(carried) <= 8, carried
