"""A config.yml is Python objects, and can name any: what ours are made of is known, and nothing else is to be built."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from nerfstudio.data.utils.nerfstudio_collate import nerfstudio_collate
from nerfstudio.engine.trainer import TrainerConfig

from zipnerf_ns.errors import InputError

PYTHON = "tag:yaml.org,2002:python/"
PACKAGES = ("nerfstudio", "zipnerf_ns", "torch.optim", "pathlib")
"""Packages of whose classes configurations are made."""
FUNCTIONS = (nerfstudio_collate,)
"""Functions that a configuration names."""


def check_config_file(path: Path) -> None:
    """Refuses a config.yml that would run more than a configuration's classes; nothing in it is built for that.

    Args:
        path: of the file.
    Raises:
        InputError: naming the line.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not the config.yml of a run: {' '.join(str(error).split())}") from error
    for node in _nodes(root):
        if node.tag.startswith("tag:yaml.org,2002:") and not node.tag.startswith(PYTHON):
            continue
        if not _is_known(node.tag.removeprefix(PYTHON)):
            raise InputError(
                f"{path}, line {node.start_mark.line + 1}: {node.tag.rpartition(',2002:')[2]} is no part of a run's "
                "configuration and could run anything. Take the config.yml that ns-train wrote."
            )
    kind = None if root is None else _named(root.tag.removeprefix(PYTHON).partition(":")[2])
    if not (isinstance(kind, type) and issubclass(kind, TrainerConfig)):
        raise InputError(f"{path} is not the config.yml of a run: it holds something else.")


def _nodes(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """All nodes, each once, however often others point to it."""
    seen: set[int] = set()
    waiting: list[Any] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting.extend(node)
        elif node is not None and id(node) not in seen:
            seen.add(id(node))
            yield node
            if isinstance(node.value, list):
                waiting.extend(node.value)


def _named(name: str) -> Any:
    """What a name stands for in the packages of whose classes configurations are made; None where there is no such."""
    module, _, attribute = name.rpartition(".")
    if not any(f"{module}.".startswith(f"{package}.") for package in PACKAGES):
        return None
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return None


def _is_known(tag: str) -> bool:
    """Whether a tag of Python's asks for what configurations are made of."""
    kind, _, name = tag.partition(":")
    if kind == "tuple":
        return True
    found = _named(name)
    if kind == "name":
        return isinstance(found, type) or found in FUNCTIONS
    if kind == "object":
        return isinstance(found, type) and dataclasses.is_dataclass(found)
    return kind == "object/apply" and isinstance(found, type) and issubclass(found, (Enum, pathlib.PurePath))
