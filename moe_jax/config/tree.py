"""A config as dataclasses, as a ConfigDict and as JSON, and the ways between them.

The dataclasses are the truth. `to_config_dict` gives the surface that config files edit: locked
and type-safe. `from_config_dict` checks every key and value and tells all problems at once.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ml_collections import ConfigDict, FieldReference

from moe_jax.config.errors import ConfigError, Problem, UserError
from moe_jax.config.json_files import Json, JsonObject
from moe_jax.config.kinds import KIND, Kinds, has_default, of_a_file
from moe_jax.config.nearest import choices
from moe_jax.config.values import (
    Hint,
    InvalidValue,
    fit,
    one_or_more,
    optional,
    storage_type,
    supported,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One field of a config dataclass: a value, or a subtree of settings."""

    name: str
    hint: Hint
    kinds: Kinds | None  # the alternatives, where the field is a `kind`
    schedulable: bool

    @property
    def subtree(self) -> bool:
        return self.kinds is not None or dataclasses.is_dataclass(self.hint)


def settings(cls: type) -> dict[str, Setting]:
    """The fields of a config dataclass. Raises TypeError for a field that no config can hold."""
    return _settings(cls)  # type: ignore[arg-type]  # classes are hashable


@functools.cache
def _settings(cls: type) -> dict[str, Setting]:
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        hint, table = hints[field.name], field.metadata.get("kinds")
        schedulable = bool(field.metadata.get("schedulable"))
        setting = Setting(
            field.name, hint, None if table is None else Kinds(table, hint), schedulable
        )
        where = f"{cls.__qualname__}.{field.name}"
        if field.name == KIND:
            raise TypeError(f"{where}: the name {KIND!r} is kept for the choice of the class")
        if not setting.subtree and not supported(hint):
            raise TypeError(f"{where}: a config cannot hold the type {hint}")
        if schedulable and hint is not float:
            raise TypeError(f"{where}: a schedulable field must be a float, not {hint}")
        if not has_default(field):
            raise TypeError(f"{where}: a field of a config needs a default")
        found[field.name] = setting
    return found


def join(path: str, name: str) -> str:
    """The dotted path of `name` below `path`."""
    return f"{path}.{name}" if path else name


def value_at(config: object, path: str) -> Any:
    """The value that stands at a dotted path of a config dataclass."""
    return operator.attrgetter(path)(config)


def leaves(config: object, path: str = "") -> Iterator[tuple[str, Setting, Any]]:
    """(dotted path, setting, value) of each value of a config dataclass, in order of the fields."""
    for name, setting in settings(type(config)).items():
        value, at = getattr(config, name), join(path, name)
        if setting.subtree:
            yield from leaves(value, at)
        else:
            yield at, setting, value


# Dataclass -> ConfigDict


class SettingsDict(ConfigDict):
    """A ConfigDict whose refusal of an unknown key is short and names the nearest one."""

    def __setitem__(self, key: str, value: object) -> None:
        if self.is_locked and key not in self:
            raise KeyError(f"unknown key {key!r}; {choices(key, self)}")
        super().__setitem__(key, value)


class KindDict(SettingsDict):
    """The ConfigDict of a `kind` field. Setting `kind` to another name fills it anew, with the
    defaults of the class of that name."""

    def __init__(self, *args: Any, kinds: Kinds | None = None, **options: Any):
        # ConfigDict's own attributes go past its __setattr__, which would make them keys.
        object.__setattr__(self, "_kinds", kinds)
        super().__init__(*args, **options)

    def __setitem__(self, key: str, value: object) -> None:
        if key == KIND and self._kinds is not None and self.get(KIND, value) != value:
            chosen = self._kinds.load(value)()
            with self.unlocked():
                for name in list(self):
                    del self[name]
                super().__setitem__(KIND, value)
                _fill(self, chosen)
        else:
            super().__setitem__(key, value)

    def update(self, *others: Any, **more: Any) -> None:
        """As ConfigDict.update, the kind first."""
        for other in (*others, more):
            if KIND in other:
                self[KIND] = other[KIND]
        super().update(*others, **more)

    def copy_and_resolve_references(self, visit_map: object = None) -> ConfigDict:
        """As ConfigDict's; the copy knows its kinds too."""
        copy = super().copy_and_resolve_references(visit_map)
        object.__setattr__(copy, "_kinds", self._kinds)
        return copy

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(state)
        object.__setattr__(self, "_kinds", state["_kinds"])


def to_config_dict(config: object) -> ConfigDict:
    """The config as a locked, type-safe ConfigDict.

    The subtree of a `kind` field has the extra first key ``kind``; assigning to it replaces the
    subtree by the defaults of that kind. Optional values may be set and set back to None. Raises
    ConfigError where a value has not its field's type.
    """
    if problems := type_problems(config):
        raise ConfigError(problems)
    root = SettingsDict(sort_keys=False)
    _fill(root, config)
    return root.lock()


def _fill(node: ConfigDict, config: object) -> None:
    for name, setting in settings(type(config)).items():
        value = getattr(config, name)
        if setting.kinds is not None:
            child = KindDict(kinds=setting.kinds, sort_keys=False)
            child[KIND] = setting.kinds.name_of(type(value))
            _fill(child, value)
            node[name] = child
        elif setting.subtree:
            node[name] = SettingsDict(sort_keys=False)
            _fill(node[name], value)
        elif optional(setting.hint)[1] or one_or_more(setting.hint):
            # A plain None would take any type, and a plain value would lose its type with None, or
            # take no other than its own.
            node[name] = FieldReference(fit(value, setting.hint), storage_type(setting.hint))
        else:
            node[name] = fit(value, setting.hint)


def type_problems(config: object, path: str = "") -> list[Problem]:
    """The values of a config dataclass that have not their field's type."""
    problems = []
    for name, setting in settings(type(config)).items():
        value, at = getattr(config, name), join(path, name)
        if setting.subtree:
            rule = _wrong_class(value, setting)
            problems += type_problems(value, at) if rule is None else [Problem(at, value, rule)]
            continue
        try:
            fit(value, setting.hint)
        except InvalidValue as invalid:
            problems.append(Problem(at, value, str(invalid)))
    return problems


def _wrong_class(value: object, setting: Setting) -> str | None:
    """The rule that a subtree's object breaks, None if it may stand there."""
    if setting.kinds is None:
        return None if type(value) is setting.hint else f"must be a {setting.hint.__name__}"
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        return f"must be a dataclass, such as {next(iter(setting.kinds.table.values())).__name__}()"
    return None


# ConfigDict or JSON -> dataclass


def from_config_dict(config_dict: ConfigDict, cls: type[T]) -> T:
    """The dataclass `cls` with the values of `config_dict`.

    Missing keys keep their defaults. Raises ConfigError with every unknown key and wrong type.
    """
    config, problems = build(config_dict.to_dict(), cls)
    if problems:
        raise ConfigError(problems)
    return config


def to_json_dict(config: object) -> JsonObject:
    """The config as nested dicts, lists and scalars: what config.json holds."""
    tree: JsonObject = {}
    for name, setting in settings(type(config)).items():
        value = getattr(config, name)
        if setting.kinds is not None:
            tree[name] = {KIND: setting.kinds.name_of(type(value)), **to_json_dict(value)}
        elif setting.subtree:
            tree[name] = to_json_dict(value)
        else:
            tree[name] = _listed(fit(value, setting.hint))
    return tree


def _listed(value: object) -> Json:
    return [_listed(element) for element in value] if isinstance(value, tuple) else value


def from_json_dict(tree: Mapping[str, Json], cls: type[T], *, own: bool = False) -> T:
    """The inverse of `to_json_dict`; missing keys keep their defaults. Raises ConfigError.

    own: the tree is of the user's own config file, so that the classes that it names are imported;
    those that another file names only where the user says so (`kinds.trusted`).
    """
    with of_a_file(own=own):
        config, problems = build(tree, cls)
    if problems:
        raise ConfigError(problems)
    return config


def build(tree: Mapping[str, Json], cls: type[T]) -> tuple[T, list[Problem]]:
    """The dataclass of a nested dict, and its problems; what has a problem keeps its default."""
    problems: list[Problem] = []
    return _build(tree, cls(), "", problems), problems


def _build(tree: Mapping[str, Json], base: T, path: str, problems: list[Problem]) -> T:
    """`base` with the values of `tree` in place of its own."""
    known = settings(type(base))
    values = {}
    for key, value in tree.items():
        at = join(path, key)
        if key not in known:
            problems.append(Problem(at, value, f"unknown key; {choices(key, known)}"))
        elif known[key].subtree:
            default = getattr(base, key)
            values[key] = _build_subtree(value, default, known[key].kinds, at, problems)
        else:
            try:
                values[key] = fit(value, known[key].hint)
            except InvalidValue as invalid:
                problems.append(Problem(at, value, str(invalid)))
    return dataclasses.replace(base, **values)  # type: ignore[type-var]


def _build_subtree(
    tree: Json, base: Any, kinds: Kinds | None, path: str, problems: list[Problem]
) -> Any:
    if not isinstance(tree, Mapping):
        rule = f"must be a group of settings: {', '.join(settings(type(base)))}"
        problems.append(Problem(path, tree, rule))
        return base
    if kinds is None:
        return _build(tree, base, path, problems)
    rest = {key: value for key, value in tree.items() if key != KIND}
    name = tree.get(KIND, kinds.name_of(type(base)))
    try:
        cls = kinds.load(name)
    except UserError as error:
        problems.append(Problem(join(path, KIND), name, str(error)))
        return base
    return _build(rest, base if type(base) is cls else cls(), path, problems)


# Dotted paths into a ConfigDict


@dataclass(frozen=True)
class KeyPlace:
    """Where a dotted path leads: the key of a node of a ConfigDict, and what may stand there.

    setting: None for the key ``kind`` itself.
    """

    node: ConfigDict
    key: str
    setting: Setting | None


def locate(config_dict: ConfigDict, cls: type, path: str) -> KeyPlace | None:
    """The place of a dotted path in the ConfigDict of a `cls`, None where there is none."""
    node, known, kinds = config_dict, settings(cls), None
    *way, key = path.split(".")
    for name in way:
        if name not in known or not known[name].subtree:
            return None
        kinds, node = known[name].kinds, node[name]
        inner = known[name].hint if kinds is None else kinds.load(node[KIND])
        known = settings(inner)
    if key == KIND and kinds is not None:
        return KeyPlace(node, key, None)
    return KeyPlace(node, key, known[key]) if key in known else None


def paths(config_dict: ConfigDict, path: str = "") -> Iterator[str]:
    """The dotted path of every value of a ConfigDict."""
    for key, value in config_dict.items():
        if isinstance(value, ConfigDict):
            yield from paths(value, join(path, key))
        else:
            yield join(path, key)
