"""Nothing of the package needs Unix: what only Unix has is found in the sources, and everything imports without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "zipnerf_ns"

UNIX_MODULES = frozenset({"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"})
UNIX_NAMES = {
    "os": frozenset(
        "chown chroot ctermid fchmod fchown fork forkpty getegid geteuid getgid getgroups getloadavg getpgid getpgrp "
        "getpriority getsid getuid initgroups killpg lchown lockf major makedev minor mkfifo mknod nice openpty "
        "pathconf posix_fadvise posix_fallocate posix_spawn pread preadv pwrite pwritev sched_getaffinity "
        "sched_setaffinity sched_yield sendfile setegid seteuid setgid setpgid setpriority setsid setuid statvfs sync "
        "sysconf tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4 waitid WEXITSTATUS WIFEXITED WIFSIGNALED WTERMSIG "
        "WNOHANG".split()
    ),
    "signal": frozenset(
        "SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH alarm "
        "pause pthread_kill pthread_sigmask setitimer sigwait".split()
    ),
    "time": frozenset({"tzset"}),
    "socket": frozenset({"AF_UNIX", "socketpair"}),
}
"""What these modules have on Unix alone."""
UNIX_OPTIONS = frozenset({"preexec_fn", "start_new_session", "process_group"})
"""Of subprocess.Popen."""
LINKS = frozenset({"symlink", "symlink_to", "link", "hardlink_to"})
"""Windows may refuse them: allowed where an error is handled."""
UNIX_PATHS = ("/tmp", "/dev/", "/proc/", "/sys/", "/usr/", "/etc/")
TEXT_FILES = frozenset({"open", "read_text", "write_text"})
"""Their encoding is the locale's where none is given."""

ALLOWED = {
    ("tools/programs.py", "signal.SIGKILL"): "a process ends by a signal, with a negative status, on Unix alone",
    ("tools/colmap.py", "rename"): "folders, onto names that are free",
    ("data/memory.py", "/proc/self/cgroup"): "read where it is; elsewhere there is no control group",
    ("data/memory.py", "/sys/fs/cgroup"): "the same",
    ("tools/sanitize.py", "/usr/local/cuda"): "looked at after the path, on which Windows has it",
    ("tools/demo_scene.py", "rename"): "a folder, onto a name that is free",
}
"""Uses that are no fault, by file and name, and why."""


def _names(node: ast.AST) -> Iterator[str]:
    """What is wrong with a node on Windows."""
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in UNIX_MODULES)
        case ast.ImportFrom(module=module, level=0):
            if module in UNIX_MODULES:
                yield module
            yield from (f"{module}.{a.name}" for a in node.names if a.name in UNIX_NAMES.get(module, ()))
        case ast.Attribute(value=ast.Name(id=module), attr=name) if name in UNIX_NAMES.get(module, ()):
            yield f"{module}.{name}"
        case ast.Call(func=ast.Attribute(attr=name)) if name in LINKS or name == "rename":
            yield name
        case ast.Call(func=ast.Attribute(attr="get_context" | "set_start_method"), args=[ast.Constant(value=way), *_]):
            yield from () if way == "spawn" else (f"multiprocessing {way}",)
        case ast.Call(func=ast.Attribute(attr="strftime"), args=arguments):
            yield from (a.value for a in arguments if isinstance(a, ast.Constant) and ":" in str(a.value))
    if isinstance(node, ast.Call):
        yield from (keyword.arg for keyword in node.keywords if keyword.arg in UNIX_OPTIONS)
        yield from _unencoded(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(UNIX_PATHS):
        yield node.value


def _unencoded(call: ast.Call) -> Iterator[str]:
    """A text file whose encoding is not given."""
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    owner = getattr(call.func, "value", None)
    owner = getattr(owner, "attr", getattr(owner, "id", None))
    if name not in TEXT_FILES or owner in ("Image", "tarfile", "Database"):
        return
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return
    mode = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    is_binary = name == "open" and any(isinstance(value, str) and "b" in value for value in mode)
    # JSON that Python has written is ASCII.
    if not is_binary and not (name == "write_text" and "json.dumps" in ast.unparse(call)):
        yield f"{name} without encoding"


def faults(source: str, file: str) -> list[str]:
    """Every use of what only Unix has, as ``file:line: what``; those within ``try`` or a look at the platform pass."""
    found: list[str] = []

    def visit(node: ast.AST, is_guarded: bool, is_json: bool) -> None:
        for name in _names(node):
            passes = is_guarded or (file, name) in ALLOWED or (is_json and name == "read_text without encoding")
            if not passes:
                found.append(f"{file}:{node.lineno}: {name}")
        is_json = isinstance(node, ast.Call) and ast.unparse(node.func) == "json.loads"
        asks = isinstance(node, (ast.If, ast.IfExp)) and any(
            word in ast.unparse(node.test) for word in ("sys.platform", "os.name", "hasattr")
        )
        for field, children in ast.iter_fields(node):
            handles = isinstance(node, ast.Try) and node.handlers and field == "body"
            for child in children if isinstance(children, list) else [children]:
                if isinstance(child, ast.AST):
                    visit(child, is_guarded or asks or bool(handles), is_json)

    visit(ast.parse(source), False, False)
    return found


def test_the_sources_use_nothing_that_only_unix_has():
    found = [
        fault
        for path in sorted(ROOT.rglob("*.py"))
        for fault in faults(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]
    assert found == []


@pytest.mark.parametrize(("file", "name"), ALLOWED)
def test_what_is_allowed_is_still_there(file, name):
    """An exception that nobody needs any more would hide the next fault."""
    assert name.split(".")[-1] in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "source",
    [
        "import fcntl",
        "from resource import getrusage",
        "import os\nmemory = os.sysconf('SC_PAGE_SIZE')",
        "from os import fork",
        "def f():\n    import signal, os\n    os.kill(1, signal.SIGKILL)",
        "import subprocess\nsubprocess.Popen([], start_new_session=True)",
        "from pathlib import Path\nPath('a').symlink_to('b')",
        "import os\nos.rename('a', 'b')",
        "import multiprocessing\nmultiprocessing.get_context('fork')",
        "import multiprocessing\nmultiprocessing.set_start_method('forkserver')",
        "SCRATCH = '/tmp/zipnerf'",
        "import time\nname = time.strftime('%H:%M')",
        "open('a.txt')",
        "open('a.txt', 'w')",
        "path.read_text()",
        "path.write_text('ü')",
    ],
)
def test_a_fault_is_reported_with_its_place(source):
    (found,) = faults(source, "field.py")
    assert found.startswith(f"field.py:{len(source.splitlines())}: ")


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import resource\nexcept ImportError:\n    resource = None",
        "import os, sys\nif sys.platform != 'win32':\n    os.nice(1)",
        "import os\ncores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()",
        "def f():\n    try:\n        os.symlink('a', 'b')\n    except OSError:\n        shutil.copy('a', 'b')",
        "import os\nos.replace('a', 'b')",
        "import signal\nnumber = signal.SIGINT",
        "open('a', 'rb')\nImage.open('a.png')",
        "open('a', encoding='utf-8')\npath.read_text(encoding='utf-8')",
        "json.loads(path.read_text())\npath.write_text(json.dumps({}))",
    ],
)
def test_what_runs_anywhere_passes(source):
    assert faults(source, "field.py") == []


PRETEND = """
import importlib, os, pkgutil, signal, sys

import zipnerf_ns
from tests_names import UNIX_MODULES, UNIX_NAMES

names = [found.name for found in pkgutil.walk_packages(zipnerf_ns.__path__, "zipnerf_ns.")]
for name in names:
    # What others need of Unix is their own affair: they are loaded before.
    importlib.import_module(name)
for name in [name for name in sys.modules if name.split(".")[0] == "zipnerf_ns"]:
    del sys.modules[name]


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in UNIX_MODULES:
            raise ModuleNotFoundError(f"there is no {name} on Windows")


sys.meta_path.insert(0, Missing())
for name in UNIX_MODULES:
    sys.modules.pop(name, None)
for module, missing in UNIX_NAMES.items():
    for name in missing:
        vars(sys.modules[module]).pop(name, None) if module in sys.modules else None
sys.platform = "win32"
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_every_module_imports_where_there_is_no_unix(tmp_path: Path):
    """As on Windows, as far as this machine can pretend it; kernels are those of a Windows with Triton."""
    pytest.importorskip("triton")
    (tmp_path / "tests_names.py").write_text(f"{UNIX_MODULES = }\n{UNIX_NAMES = }\n", encoding="utf-8")
    (tmp_path / "pretend.py").write_text(PRETEND, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "pretend.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 100
