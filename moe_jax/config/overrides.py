"""From a config file and overrides to a checked config.

Overrides are (dotted path, value) pairs, the values typed or as text. Choices of a `kind` come
first, outer before inner, since each replaces its subtree by the new kind's defaults; the others
follow in their order.
"""

from __future__ import annotations

import copy
import inspect
import linecache
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from moe_jax.config import checks
from moe_jax.config.errors import ConfigError, Problem, UserError
from moe_jax.config.json_files import read_object
from moe_jax.config.kinds import KIND
from moe_jax.config.nearest import nearest, nearest_path
from moe_jax.config.tree import KeyPlace, build, from_json_dict, locate, paths, to_config_dict
from moe_jax.config.values import InvalidValue, fit, parse, storage_type

T = TypeVar("T")
Overrides = Mapping[str, object] | Iterable[tuple[str, object]]
Check = Callable[[Any], list[Problem]]


def load_config(
    file: str | Path, overrides: Overrides, cls: type[T], *, check: Check = checks.check
) -> T:
    """The `cls` of a config file, "FILE.py", "FILE.py:arg" or the config.json of a run, with
    overrides on top.

    check: gives the problems of the finished config. Raises ConfigError with all of them, wrong
    overrides and wrong values alike; UserError where the file is missing or fails.
    """
    if str(file).endswith(".json"):
        return apply_overrides(read_config_json(file, cls), overrides, check=check)
    return apply_overrides(read_config_file(file), overrides, cls, check=check)


def apply_overrides(
    config: Any, overrides: Overrides, cls: type | None = None, *, check: Check = checks.check
) -> Any:
    """A new config dataclass: `config`, a dataclass or the ConfigDict of a `cls`, overridden.

    A config with a method ``completed()`` is what that returns: with the values that follow from
    others. Raises ConfigError with all the problems: unknown paths, bad values, broken rules.
    """
    if isinstance(config, ConfigDict):
        if cls is None:
            raise TypeError("a ConfigDict does not know its dataclass: give cls")
        config_dict = copy.deepcopy(config)
    else:
        cls = type(config)
        config_dict = to_config_dict(config)
    problems = _apply(config_dict, overrides, cls)
    result: Any
    result, more = build(config_dict.to_dict(), cls)
    problems += more
    if not problems and hasattr(result, "completed"):
        result = result.completed()
    named = {problem.path for problem in problems}
    problems += [problem for problem in check(result) if problem.path not in named]
    if problems:
        raise ConfigError(problems)
    return result


def _apply(config_dict: ConfigDict, overrides: Overrides, cls: type) -> list[Problem]:
    """Changes `config_dict` in place; what cannot be applied is reported and left out."""
    pairs = list(overrides.items() if isinstance(overrides, Mapping) else overrides)
    kinds = [pair for pair in pairs if pair[0].split(".")[-1] == KIND]
    others = [pair for pair in pairs if pair[0].split(".")[-1] != KIND]
    problems = []
    for path, value in sorted(kinds, key=lambda pair: pair[0].count(".")) + others:
        try:
            place = _place(config_dict, cls, path)
            place.node[place.key] = _typed(value, place)
        except (InvalidValue, UserError) as error:
            problems.append(Problem(path, value, str(error)))
    return problems


def _place(config_dict: ConfigDict, cls: type, path: str) -> KeyPlace:
    place = locate(config_dict, cls, path)
    if place is None:
        match = nearest_path(path, paths(config_dict))
        raise InvalidValue(f"unknown key; {_meant(match, config_dict, path)}")
    if place.setting is not None and place.setting.subtree:
        keys = ", ".join(place.node[place.key])
        raise InvalidValue(f"is a group of settings; set one of them: {keys}")
    return place


def _meant(match: str | None, config_dict: ConfigDict, path: str) -> str:
    """The nearest path, or the keys of the innermost group that exists."""
    if match is not None:
        return f"did you mean config.{match}?"
    node, at = config_dict, "config"
    for name in path.split(".")[:-1]:
        if name not in node or not isinstance(node[name], ConfigDict):
            break
        node, at = node[name], f"{at}.{name}"
    return f"{at} has {', '.join(node)}"


def _typed(value: Any, place: KeyPlace) -> object:
    if place.setting is None:  # the name of a kind, which its KindDict checks
        return value
    hint = place.setting.hint
    as_text = isinstance(value, str) and (storage_type(hint) is not str or value.lower() == "none")
    return parse(value, hint) if as_text else fit(value, hint)


# Config files


def read_config_json(file: str | Path, cls: type[T]) -> T:
    """The `cls` that a run has written as its config.json. UserError where it is none."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"no config file {path}")
    return from_json_dict(read_object(path), cls, own=True)


def read_config_file(file: str | Path) -> ConfigDict:
    """The ConfigDict that "FILE.py" or "FILE.py:arg" gives: its get_config(arg).

    A config file that builds on another calls this with ``Path(__file__).with_name(...)``. Raises
    UserError where the file is missing, fails (with the line), or gives something else.
    """
    name, _, arg = str(file).partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(_not_found(path))
    module = run_file(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"{path}: has no function get_config(arg='')")
    takes_arg = bool(inspect.signature(get_config).parameters)
    if arg and not takes_arg:
        raise UserError(f"{path}: get_config takes no argument, but :{arg} is given")
    config = run_user_code(path, lambda: get_config(arg) if takes_arg else get_config())
    if not isinstance(config, ConfigDict):
        found = type(config).__name__
        raise UserError(f"{path}: get_config gives a {found}, not a ConfigDict (to_config_dict)")
    return config


def run_file(path: Path) -> types.ModuleType:
    """The file as a module of its own, without bytecode, which may be stale after an edit."""
    module = types.ModuleType(f"config_file_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where the type hints of its dataclasses are looked up
    linecache.checkcache(str(path))
    run_user_code(
        path, lambda: exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    )
    return module


def run_user_code(path: Path, call: Callable[[], T]) -> T:
    """`call()`; an exception becomes a UserError that names the line of the file."""
    try:
        return call()
    except SyntaxError as error:
        line = error.lineno if error.filename == str(path) else None
        raise UserError(_where(path, line) + f": {type(error).__name__}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
        code = error.exit_code if isinstance(error, UserError) else 2
        raise UserError(f"{_where(path, line)}: {_said(error)}", exit_code=code) from error


def _said(error: BaseException) -> str:
    """The error in one line; a ConfigDict wraps a KeyError, which quotes its text, once more."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, AttributeError | KeyError) and error.args:
        inner = error.args[0]
        text = str(inner.args[0] if isinstance(inner, KeyError) else inner)
        return f"{type(error).__name__}: {' '.join(text.split())}"
    return f"{type(error).__name__}: {error}"


def _where(path: Path, line: int | None) -> str:
    """File, line number and the line."""
    if line is None:
        return str(path)
    return f"{path}, line {line} ({linecache.getline(str(path), line).strip()})"


def _not_found(path: Path) -> str:
    """That the file is missing, and which other may be meant."""
    if path.is_dir():
        return f"config file {path}: is a folder; {_files_of(path)}"
    if not path.parent.is_dir():
        return f"no config file {path}: no folder {path.parent}"
    folders = [path.parent] + ([Path("configs")] if path.parent == Path() else [])
    found = {file.name: file for folder in folders for file in sorted(folder.glob("*.py"))}
    if (match := nearest(path.name, found)) is not None:
        return f"no config file {path}; did you mean {found[match]}?"
    return f"no config file {path}; {_files_of(path.parent)}"


def _files_of(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob("*.py"))
    return f"{folder} holds {', '.join(names) or 'no .py file'}"
