"""Configuration: YAML files layered left to right, then dotted overrides, checked by pydantic models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from polar_rm.common.recipes import PREFIX, read_recipe, recipe_hint
from polar_rm.common.yaml import MAX_BYTES, MAX_DEPTH, check_size, dump_yaml, parse_yaml
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

    A file may be a packaged recipe, ``recipe:NAME``. The value of an override is YAML too: ``data.train=[a.jsonl, b.jsonl]``,
    ``lora=null``.

    Raises:
        ConfigError: names the file or the override, the key and what is wrong; for an unknown key, the nearest known one.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in files:
        _layer(merged, _read(str(file)), str(file), origins)
    for override in overrides:
        _layer(merged, _overridden(override), _shortened(override), origins)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(kind, error, origins)) from None


RENAMED = {"dtype": "precision", "token_budget": "row_tokens"}
"""Words that were options once, or are options elsewhere, and ours for them."""


def suggestion(key: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown key: our word for it, or the nearest known one, if any is near."""
    known = list(known)
    near = [RENAMED[key]] if RENAMED.get(key) in known else get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def to_yaml(config: Config) -> str:
    """As a file that :func:`load_config` takes."""
    return dump_yaml(config.model_dump(mode="json"))


def _parse(text: str, origin: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _read(source: str) -> dict[str, Any]:
    """The keys of a file, or of a packaged recipe by ``recipe:NAME``."""
    content = _parse(read_recipe(source.removeprefix(PREFIX)) if source.startswith(PREFIX) else _text_of(Path(source)), source)
    if not isinstance(content, dict | None):
        raise ConfigError(f"{source}: expected keys with values, not a {type(content).__name__}")
    return content or {}


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        check_size(len(content))
        return content.decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: {error.strerror}{recipe_hint(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a UTF-8 text file") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _overridden(override: str) -> dict[str, Any]:
    """The nested group that an override such as ``optim.lr=1e-4`` stands for."""
    key, separator, value = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"{_shortened(override)!r}: an override looks like key=value or group.key=value")
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"{_shortened(override)}: it is nested deeper than {MAX_DEPTH} levels")
    layer = _parse(value, _shortened(override))
    for part in reversed(parts):
        layer = {part: layer}
    return dict(layer)


def _layer(merged: dict[str, Any], layer: dict[str, Any], origin: str, origins: dict[str, str], above: str = "") -> None:
    """Write a layer over what is there, group by group. All containers are copied: later layers write into them, and YAML's
    aliases would share them."""
    for key, value in layer.items():
        path = f"{above}{key}"
        origins[path] = origin
        if isinstance(value, dict):
            if not isinstance(merged.get(key), dict):
                merged[key] = {}
            _layer(merged[key], value, origin, origins, f"{path}.")
        else:
            merged[key] = _copied(value)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _explain(kind: type[Config], error: ValidationError, origins: dict[str, str]) -> str:
    found = error.errors(include_url=False)
    # A mistyped key is often reported twice, first as the one that is missing.
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    keys = [str(part) for part in first["loc"] if not _is_branch(part)]
    key = ".".join(keys)
    origin = next((origins[".".join(keys[:n])] for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in origins), None)
    where = f"{origin}: " if origin else ""
    if first["type"] == "extra_forbidden":
        near = _elsewhere(kind, keys) or suggestion(keys[-1], _known(kind, keys[:-1]))
        return f"{where}unknown key {key!r}{near}"
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


def _elsewhere(kind: type[Config], keys: Sequence[str]) -> str:
    """The end of a message about a key that stands in the wrong group: where it belongs, if that is one place."""
    word = RENAMED.get(keys[-1], keys[-1])
    paths = [path for path in all_keys(kind) if path.rpartition(".")[2] == word]
    return f"; did you mean {paths[0]!r}?" if len(paths) == 1 else ""


def all_keys(kind: type[Config], above: str = "") -> list[str]:
    """The dotted names of all keys outside lists, those of optional groups included."""
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(f"{above}{name}")
        if get_origin(field.annotation) not in (list, tuple, dict):
            keys += [key for group in _groups(field.annotation) for key in all_keys(group, f"{above}{name}.")]
    return keys


def _groups(annotation: Any) -> list[type[Config]]:
    """The groups of settings that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [group for member in get_args(annotation) for group in _groups(member)]
