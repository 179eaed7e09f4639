"""Alternatives by name: the classes that may stand in a `kind` field."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import operator
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from moe_jax.config.errors import UserError
from moe_jax.config.nearest import choices

KIND = "kind"  # the key that names the class; no field may have this name

# Whether naming a class imports its module. What the user's own command, config file or program
# names is imported; what stands in the files of a run may be a stranger's.
_imports = ContextVar("imports", default=True)
_trusts = ContextVar("trusts", default=False)


@contextlib.contextmanager
def of_a_file(*, own: bool = False) -> Iterator[None]:
    """Within the body classes are named by a file of a run: modules that are not imported already
    are not imported, unless the user trusts such files. own: the user's own file."""
    token = _imports.set(own or _trusts.get())
    try:
        yield
    finally:
        _imports.reset(token)


@contextlib.contextmanager
def trusted(trust: bool = True) -> Iterator[None]:
    """Within the body the classes that files of runs name are imported (--trust)."""
    token = _trusts.set(trust or _trusts.get())
    try:
        yield
    finally:
        _trusts.reset(token)


@dataclass(frozen=True)
class Kinds:
    """The table of a `kind` field, and the type (often a Protocol) that its values have."""

    table: Mapping[str, type]
    type: Any

    def name_of(self, cls: type) -> str:
        """The name of `cls` in the table, else "module:Class"."""
        for name, known in self.table.items():
            if known is cls:
                return name
        return f"{cls.__module__}:{cls.__qualname__}"

    def load(self, name: object) -> type:
        """The class named so. Raises UserError with what is wrong and what could be meant."""
        if not isinstance(name, str):
            raise UserError(f"kind {name!r}: must be a text, one of {', '.join(self.table)}")
        if name in self.table:
            return self.table[name]
        if ":" not in name:
            meant = choices(name, self.table)
            raise UserError(f"no kind {name!r}; {meant} (your own class: my_module:MyClass)")
        if not _imports.get() and name.partition(":")[0] not in sys.modules:
            raise UserError(
                f"kind {name!r}: a file of the run names this class, which is not moe_jax's; "
                "--trust imports it (in Python: trust=True), and runs its module's code"
            )
        cls = _import(name)
        for rule in self._broken_rules(cls):
            raise UserError(f"kind {name!r} {rule}")
        return cls

    def _broken_rules(self, cls: object) -> Iterator[str]:
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            yield "is not a dataclass"
            return
        if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            yield "must be frozen: @dataclass(frozen=True, kw_only=True)"
        fields = dataclasses.fields(cls)
        if bare := [f.name for f in fields if not has_default(f)]:
            yield f"needs a default for each field, has none for {', '.join(bare)}"
        base = None if _is_protocol(self.type) else self.type
        if isinstance(base, type) and not issubclass(cls, base):
            yield f"must extend {base.__module__}.{base.__name__}"
        if missing := self._missing_members(cls):
            yield f"is no {self.type.__name__}: it has no {', '.join(missing)}"

    def _missing_members(self, cls: type) -> list[str]:
        """What the Protocol asks for and the class has not."""
        if not _is_protocol(self.type):
            return []
        asked = {name for name in vars(self.type) if not name.startswith("_")}
        asked |= set(getattr(self.type, "__annotations__", {}))
        return sorted(asked - set(dir(cls)) - set(cls.__dataclass_fields__))  # type: ignore[attr-defined]


def _is_protocol(type_: object) -> bool:
    return bool(getattr(type_, "_is_protocol", False))


def has_default(field: dataclasses.Field) -> bool:
    """Whether a dataclass can be made without a value for the field."""
    empty = dataclasses.MISSING
    return field.default is not empty or field.default_factory is not empty


def _import(name: str) -> Any:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise UserError(f"kind {name!r}: no module {module_name!r} on the path") from error
        raise UserError(f"kind {name!r}: importing it failed: {error}") from error
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise UserError(f"kind {name!r}: importing {module_name!r} failed: {message}") from error
    try:
        return operator.attrgetter(class_name)(module)
    except AttributeError as error:
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        meant = choices(class_name, classes, here="it has")
        raise UserError(f"kind {name!r}: {module_name} has no {class_name!r}; {meant}") from error
