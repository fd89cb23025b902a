"""Study files: one TOML file, or a Python module that exposes ``federation``; both give a `Federation`."""

import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from hansa.errors import HansaError, StudyError, did_you_mean
from hansa.federation import BundledFile, Federation
from hansa.methods.base import METHODS
from hansa.task import CodeTask, Task

MOVED = ("rounds", "stop")  # keys of [method] that are the federation's own
PREFIX = "hansa_study_"  # of the names of the modules that studies are written in
STUDY_KEYS = frozenset({"name", "dataset", "seed", "files"})
TABLES = {"study", *Federation.model_fields} - {*STUDY_KEYS, *MOVED, "bundle"}
IN_FILE = {f"federation.{key}": f"{'method' if key in MOVED else 'study'}.{key}" for key in (*STUDY_KEYS, *MOVED)}
"""Where a study file says what a federation says at its root."""


def load(path: str | Path) -> Federation:
    """Read a study: a ``.toml`` file, or a ``.py`` file that exposes ``federation``; raises StudyError with the file,
    the place in it, and the nearest known word."""
    path = Path(path)
    if path.is_dir():
        raise StudyError(f"{path} is a folder", remedy="Name the study file in it")
    if not path.is_file():
        beside = (path.parent if path.parent.is_dir() else Path()).iterdir()
        near = did_you_mean(path.name, [p.name for p in beside if p.suffix in {".toml", ".py"}])
        raise StudyError(f"no such file: {path}", remedy=near or "`hansa new` writes a study")
    try:
        return _from_python(path) if path.suffix == ".py" else _from_toml(path)
    except HansaError as error:
        error.message = f"{path}: {error.message}"
        raise


def from_mapping(body: Mapping[str, Any], folder: Path) -> Federation:
    """A federation from the tables of a study file; ``folder`` is where its files lie; raises StudyError with the
    place, and the nearest known word."""
    _known(body, TABLES, "table [{}]")
    for name in body:
        if not isinstance(body[name], Mapping):
            raise StudyError(f"{name} is {body[name]!r}, not a table", remedy=f"Write [{name}] and its keys")
    study = dict(body.get("study", {}))
    _known(study, STUDY_KEYS, "key study.{}")
    if "task" not in body:
        raise StudyError("there is no [task]", remedy='Write [task] with kind = "..." and target')
    files = study.pop("files", [])
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise StudyError("study.files is not a list of file names")
    method = dict(body.get("method", {"kind": "fedavg"}))
    moved = {key: method.pop(key) for key in MOVED if key in method}
    if method.get("kind") in [*METHODS]:
        # Asked here, because the method itself does not know that `rounds` and `stop` stand beside it.
        _known(method, {"kind", *MOVED, *METHODS.find(method["kind"]).model_fields}, "key method.{}")
    task: Task | Mapping[str, Any] = body["task"]
    if "module" in body["task"]:
        task, code = _code(body["task"], folder)
        files = [code, *files]
    rest = {name: body[name] for name in TABLES - {"study", "task", "method"} if name in body}
    bundle = tuple(BundledFile.of(folder, name) for name in files)
    return build({**study, **moved, "task": task, "method": method, "bundle": bundle, **rest})


def build(values: Mapping[str, Any]) -> Federation:
    """A federation from its fields, each a part or the table of a study file that says it; raises StudyError with the
    place in a study file."""
    try:
        return Federation(**values)
    except StudyError as error:
        if place := re.search(r"\bfederation\.(\w+)", error.message):
            error.message = error.message.replace(place[0], IN_FILE.get(place[0], place[1]), 1)
        raise


def _from_toml(path: Path) -> Federation:
    try:
        text = path.read_text(encoding="utf-8-sig")
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"this is not TOML: {error}", remedy=_to_quote(text, error)) from None
    except UnicodeDecodeError as error:
        raise StudyError(f"this is not UTF-8: byte {error.start}", remedy="Save it as UTF-8") from None
    return from_mapping(body, path.parent)


def _to_quote(text: str, error: tomllib.TOMLDecodeError) -> str:
    """A remedy, if a key in the line at fault has letters that TOML wants in quotes."""
    line = re.search(r"at line (\d+)", str(error))
    key = text.splitlines()[int(line[1]) - 1].split("=")[0] if line else ""
    bare = re.search(r"[\w-]*[^\W\x00-\x7f][\w-]*", re.sub(r"""(["']).*?\1""", "", key))
    return f'Quote the key: "{bare[0]}"' if bare else ""


def _from_python(path: Path) -> Federation:
    federation = getattr(run_module(path), "federation", None)
    if not isinstance(federation, Federation):
        remedy = "Write federation = hansa.Federation(...) at its top level"
        raise StudyError("the module exposes no `federation`", remedy=remedy)
    return federation


def _code(task: Mapping[str, Any], folder: Path) -> tuple[Task, str]:
    """The author's task, loaded, and the name of the file it came from."""
    if extra := set(task) - {"module", "kind"}:
        remedy = "A task with a module says everything in the module"
        raise StudyError(f"task.{sorted(extra)[0]} beside task.module", remedy=remedy)
    name, _, attribute = str(task["module"]).partition(":")
    if not name.isidentifier() or not attribute.isidentifier():
        raise StudyError(f"task.module is {task['module']!r}", remedy='Write module = "file:object"')
    file = f"{name}.py"
    if not (folder / file).is_file():
        raise StudyError(f"task.module: no such file: {folder / file}")
    loaded = getattr(run_module(folder / file), attribute, None)
    if not isinstance(loaded, Task):
        remedy = "Expose an object of a class derived from hansa.task.Task"
        raise StudyError(f"{file} has no task named {attribute!r}", remedy=remedy)
    return CodeTask(module=str(task["module"]), target=loaded.target).bound_to(loaded), file


def run_module(path: Path) -> ModuleType:
    """Run a Python file of the user's own, on the user's own machine; a StudyError if it fails."""
    spec = importlib.util.spec_from_file_location(f"{PREFIX}{path.stem}", path)
    if spec is None or spec.loader is None:
        raise StudyError("this is not a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except HansaError:
        raise
    except Exception as error:
        raise StudyError(f"the module fails: {type(error).__name__}: {error}") from error
    return module


def _known(body: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    for key in body:
        if key not in known:
            raise StudyError(f"unknown {what.format(key)}", remedy=did_you_mean(key, known))
