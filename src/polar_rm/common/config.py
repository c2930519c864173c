"""Configuration: YAML files layered left to right, then dotted overrides, checked by pydantic models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from polar_rm.errors import ConfigError

C = TypeVar("C", bound="Config")


def at_home(path: str | Path) -> str:
    """The path with a leading ``~`` or ``~user`` replaced by that home folder; others, and addresses, as they are.

    No shell looks into a YAML file, and a folder that is really called ``~`` is dangerous to remove.

    Raises:
        ValueError: there is no such user.
    """
    text = str(path)
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise ValueError(f"no home folder is known for {text.split('/')[0]!r}; write the whole path") from None


PathText = Annotated[str, AfterValidator(at_home)]
"""A string that may name a file or folder (a model, a pattern): ``~`` is the home folder."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of random numbers; the range is that of numpy, which the libraries behind us seed as well."""


class Config(BaseModel):
    """A group of settings: unknown keys are errors, values never change after the check, ``~`` in paths is the home folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="after")
    @classmethod
    def _paths_at_home(cls, value: Any) -> Any:
        return _at_home(value)


def _at_home(value: Any) -> Any:
    """A value of a field with all paths in it expanded; strings are no paths unless their type is :data:`PathText`."""
    if isinstance(value, Path):
        return Path(at_home(value))
    if isinstance(value, list | tuple) and any(isinstance(each, Path) for each in value):
        return type(value)(map(_at_home, value))
    return value


def load_config(kind: type[C], files: Sequence[str | Path], overrides: Sequence[str] = ()) -> C:
    """Settings out of YAML files, later ones over earlier ones, then overrides such as ``optim.lr=1e-4``.

    The value of an override is YAML too: ``data.train=[a.jsonl, b.jsonl]``, ``lora=null``.

    Raises:
        ConfigError: names the file or the override, the key and what is wrong; for an unknown key, the nearest known one.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in files:
        _layer(merged, _read(Path(file)), str(file), origins)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not all(key.split(".")):
            raise ConfigError(f"{override!r}: an override looks like key=value or group.key=value")
        layer = _parse(value, override)
        for part in reversed(key.split(".")):
            layer = {part: layer}
        _layer(merged, layer, override, origins)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(kind, error, origins)) from None


def suggestion(key: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown key: the nearest known one, if any is near."""
    near = get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def to_yaml(config: Config) -> str:
    """As a file that :func:`load_config` takes."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-3`` as a string, for want of a dot, where every user means a number; and ``2026-11-26`` as a date,
    where it is a run's name."""


_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # the latter from numbers with thousands of digits
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a UTF-8 text file") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path}: expected keys with values, not a {type(content).__name__}")
    return content or {}


def _layer(merged: dict[str, Any], layer: dict[str, Any], origin: str, origins: dict[str, str], above: str = "") -> None:
    for key, value in layer.items():
        path = f"{above}{key}"
        origins[path] = origin
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            _layer(merged[key], value, origin, origins, f"{path}.")
        else:
            # A copy: a later layer writes into it.
            merged[key] = {}
            if isinstance(value, dict):
                _layer(merged[key], value, origin, origins, f"{path}.")
            else:
                merged[key] = value


def _explain(kind: type[Config], error: ValidationError, origins: dict[str, str]) -> str:
    found = error.errors(include_url=False)
    # A mistyped key is often reported twice, first as the one that is missing.
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    keys = [str(part) for part in first["loc"] if not _is_branch(part)]
    key = ".".join(keys)
    origin = next((origins[".".join(keys[:n])] for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in origins), None)
    where = f"{origin}: " if origin else ""
    if first["type"] == "extra_forbidden":
        return f"{where}unknown key {key!r}{suggestion(keys[-1], _known(kind, keys[:-1]))}"
    if first["type"] == "missing":
        return f"{where}the key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
    return f"{where}{key or kind.__name__}: {message[0].lower()}{message[1:]}{got}"


def _is_branch(part: int | str) -> bool:
    """Pydantic adds the name of a union's member to the place of an error; it is no key of the user's."""
    return isinstance(part, str) and (not part.isidentifier() or part in ("int", "float", "str", "path", "bool"))


def _known(kind: type[Config], path: Sequence[str]) -> list[str]:
    """The keys of the group at ``path``, in which numbers are places in a list."""
    kinds = [kind]
    for key in path:
        if not key.isdigit():
            kinds = [
                inner for outer in kinds if key in outer.model_fields for inner in _groups(outer.model_fields[key].annotation)
            ]
    return list(dict.fromkeys(name for each in kinds for name in each.model_fields))


def _groups(annotation: Any) -> list[type[Config]]:
    """The groups of settings that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [group for member in get_args(annotation) for group in _groups(member)]
