"""A run is found where its config.yml lies, and its data where they are now: either may have been moved since.

Nerfstudio's programs read config.yml as Python objects, and look for checkpoints and data where they were when it was
written, as seen from where the training was started.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from traceback import walk_stack
from typing import Any

import yaml

from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.decorators import check_main_thread

from zipnerf_ns.data.trained import DATA_VARIABLE, TrainedData
from zipnerf_ns.engine.checkpoints import checkpoints_in, load_checkpoint_file
from zipnerf_ns.engine.checks import check_devices
from zipnerf_ns.engine.messages import escape_what_cannot_be_printed, tell, tell_of_lost_processes
from zipnerf_ns.engine.parallel.processes import agree, join
from zipnerf_ns.engine.safety.files import newest_whole
from zipnerf_ns.engine.safety.stopping import hand_on_signals
from zipnerf_ns.errors import FULL, InputError, say


class RunConfig(TrainerConfig):
    """Nerfstudio's configuration of a run, which knows where it lies once it is read for anything but training."""

    _folder: Path | None = None
    """Where the config.yml lies that was read to look at the run."""

    def __post_init__(self) -> None:
        if self.load_config is not None and not self.load_config.is_file():
            raise InputError(f"--load-config {self.load_config} does not exist. Give the config.yml of a run.")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores what a file or a copy holds; whatever was moved is found anew."""
        self.__dict__.update(state)
        escape_what_cannot_be_printed()
        path, command = _file_being_read(), _command_of_training()
        if path is not None:
            with tell(self):
                self._find(path)
        if command is not None:
            self._take(command)

    def set_experiment_name(self) -> None:
        """By default the name of the data's folder, all of it: for Nerfstudio, what follows a dot is no part of it."""
        data = self.pipeline.datamanager.data
        if self.experiment_name is None and data is not None:
            data = data.absolute()
            self.experiment_name = (data.parent if data.is_file() else data).name
        super().set_experiment_name()

    def get_base_dir(self) -> Path:
        """The run's folder."""
        return super().get_base_dir() if self._folder is None else self._folder

    def get_checkpoint_dir(self) -> Path:
        """The folder of the run's checkpoints."""
        return super().get_checkpoint_dir() if self._folder is None else self.load_dir

    def set_timestamp(self) -> None:
        """Nerfstudio's, the same for all processes of a training: it names their run's folder."""
        escape_what_cannot_be_printed()
        with tell(self):
            join(self.machine)
        super().set_timestamp()
        self.timestamp = agree(self.timestamp)

    @check_main_thread
    def save_config(self) -> None:
        """Writes config.yml, unless that would overwrite another run's.

        Raises:
            SystemExit: if the run's folder holds checkpoints and the run does not resume from there, or there are
                fewer devices than are asked for.
        """
        folder = self.get_checkpoint_dir()
        source = self.load_dir or (self.load_checkpoint and self.load_checkpoint.parent)
        resumes_here = source is not None and source.resolve() == folder.resolve()
        with tell(self):
            # Before Nerfstudio starts a process for each.
            check_devices(self.machine)
            if re.search("[\ud800-\udfff]", str(folder)):
                raise InputError(f"{folder} is no name in UTF-8. Give another --experiment-name or --output-dir.")
            if not resumes_here and checkpoints_in(folder):
                raise InputError(
                    f"{folder} holds checkpoints of an earlier run. Resume it with --load-dir {folder}, "
                    "or choose another --timestamp or --experiment-name."
                )
            try:
                super().save_config()
            except OSError as error:
                if error.errno in FULL:
                    raise
                raise InputError(
                    f"{folder.parent} cannot be written ({error.strerror}). Give another --output-dir."
                ) from error
        if self.machine.num_devices * self.machine.num_machines > 1:
            tell_of_lost_processes(folder)
            hand_on_signals()

    def _take(self, command: TrainerConfig) -> None:
        """Takes what a command says beside ``--load-config``, all of which Nerfstudio drops.

        Args:
            command: what was made of the command: its method's defaults, but for what it says.
        """
        # Late, for it loads every method's entry point, this project's among them.
        from nerfstudio.configs.method_configs import all_methods

        path, method = command.load_config, command.method_name
        command = dataclasses.replace(command, load_config=None)
        taken = _take_changes(self, command, all_methods[method])
        options = ", ".join(f"--{name.replace('_', '-')}" for name in taken)
        said = f"besides, the command's {options}" if options else "all of the command is as usual"
        say(f"Read {path} (method {self.method_name}); {said}.")

    def _find(self, path: Path) -> None:
        """Finds checkpoints and data.

        Args:
            path: of the config.yml.
        Raises:
            InputError: if there is no checkpoint, or no data where they are said to be.
        """
        beside = path.parent / self.relative_model_dir
        # Beside the file, in one folder with it, or where only the file was taken from.
        folders = (beside, path.parent, super().get_checkpoint_dir())
        self.load_dir = next((folder for folder in folders if checkpoints_in(folder)), None)
        if self.load_dir is None:
            raise InputError(
                f"{beside} holds no checkpoint (step-*.ckpt). Copy the run's {self.relative_model_dir.name} beside "
                f"{path}."
            )
        self._folder = path.parent
        steps = checkpoints_in(self.load_dir)
        if self.load_step not in steps:
            # Nerfstudio takes any file for a checkpoint, if it has to find the last one.
            self.load_step = newest_whole(steps)
        manager = self.pipeline.datamanager
        manager.trained = read_trained(steps[self.load_step])
        was = Path(manager.data if manager.data is not None else manager.dataparser.data)
        manager.data = _find_data(was, path.absolute().parent, manager.trained)


def read_trained(path: Path, resumes: bool = False) -> TrainedData | None:
    """What a checkpoint knows of its data; None for those of earlier versions, which know nothing.

    Args:
        path: of the checkpoint.
        resumes: whether the training goes on.
    Raises:
        InputError: if it cannot be read.
    """
    state = load_checkpoint_file(path, mapped=True).get("data")
    return None if state is None else TrainedData.from_state(state, resumes)


def _find_data(was: Path, folder: Path, trained: TrainedData | None) -> Path:
    """Where a run's data are: where the person says, or as seen from here, from a folder around the run, or as they
    were; where there are none, the path as it was.

    Args:
        was: path in config.yml.
        folder: of config.yml.
        trained: what the checkpoint knows.
    Raises:
        InputError: if the person says a place where nothing is.
    """
    given = os.environ.get(DATA_VARIABLE)
    if given:
        if not Path(given).exists():
            raise InputError(f"{given} does not exist: correct {DATA_VARIABLE}, or leave it out.")
        return Path(given)
    places = [was, *(around / was for around in folder.parents), *([] if trained is None else [trained.data])]
    return next((place for place in places if place.exists()), was)


def _file_being_read() -> Path | None:
    """The config.yml that one of Nerfstudio's programs is reading to look at a run; None in a training.

    It keeps the path to itself, while the objects in the file come into being.
    """
    for frame, _ in walk_stack(sys._getframe(1)):
        if frame.f_code.co_name == "eval_setup" and "config_path" in frame.f_locals:
            return Path(frame.f_locals["config_path"])
    return None


def _command_of_training() -> Any:
    """What ``ns-train`` has made of its command while it reads a config.yml instead; None otherwise."""
    for frame, _ in walk_stack(sys._getframe(1)):
        if frame.f_code.co_name == "main" and frame.f_globals.get("__name__") == "nerfstudio.scripts.train":
            command = frame.f_locals["config"]
            return command if command.load_config is not None else None
    return None


def _take_changes(kept: Any, given: Any, usual: Any) -> list[str]:
    """Sets in a configuration what in another one is not as usual; the names of what was set.

    Args:
        kept: the configuration that is changed.
        given, usual: of one type.
    """
    taken = []
    for name in (field.name for field in dataclasses.fields(given)):
        value, default = getattr(given, name), getattr(usual, name)
        if value == default:
            continue
        inner = getattr(kept, name, None)
        if type(value) is type(default) and _has_fields_of(inner, value):
            taken += [f"{name}.{each}" for each in _take_changes(inner, value, default)]
        else:
            setattr(kept, name, value)
            taken.append(name)
    return taken


def _has_fields_of(kept: Any, given: Any) -> bool:
    """Whether a configuration has what another of its type has, or of a derived one: an earlier version's, say."""
    if not dataclasses.is_dataclass(given) or not isinstance(given, type(kept)):
        return False
    return {field.name for field in dataclasses.fields(kept)} == {field.name for field in dataclasses.fields(given)}


def read_paths_of_other_systems() -> None:
    """Lets Nerfstudio read a config.yml that was written on Windows, or there one that was not."""
    foreign: dict[str, type[PurePath]] = {"WindowsPath": PureWindowsPath, "PosixPath": PurePosixPath}
    del foreign[type(Path()).__name__]
    for name, pure in foreign.items():

        def construct(loader: yaml.Loader, node: yaml.Node, pure: type[PurePath] = pure) -> Path:
            return Path(pure(*loader.construct_sequence(node)).as_posix())

        yaml.add_constructor(f"tag:yaml.org,2002:python/object/apply:pathlib.{name}", construct, Loader=yaml.Loader)
