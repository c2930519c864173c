"""Configuration: YAML files merged left to right, then dotted overrides, validated by pydantic models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from polar_rm.common.addresses import ADDRESS, LOCAL_ONLY
from polar_rm.common.recipes import PREFIX, read_recipe, recipe_hint
from polar_rm.common.yaml import MAX_BYTES, MAX_DEPTH, check_size, dump_yaml, parse_yaml
from polar_rm.errors import ConfigError

C = TypeVar("C", bound="Config")


def expand_home(path: str | Path) -> str:
    """Replace a leading ``~`` or ``~user`` by that home folder; other paths, and URLs, stay unchanged.

    No shell expands a YAML file, and a folder that is literally called ``~`` is dangerous to remove.

    Raises:
        ValueError: there is no such user.
    """
    text = str(path)
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise ValueError(f"no home folder is known for {text.split('/')[0]!r}; write the full path") from None


PathText = Annotated[str, AfterValidator(expand_home)]
"""A string that may name a file or folder (a model, a pattern): ``~`` is the home folder."""


@dataclass(frozen=True, slots=True)
class Names:
    """Marks a field, in its annotation, that names a model or data. what: the kind, a key of :func:`with_local_sources`.

    ``data``; ``model``, a language model; ``tokenizer``, a model of which only the tokenizer is read; ``reward``, a reward model
    or the address of a server.
    """

    what: Literal["data", "model", "tokenizer", "reward"]


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed of random number generators. The range is numpy's, because the libraries that we use seed numpy too."""


class Config(BaseModel):
    """A group of settings: unknown keys are errors, values are frozen after validation, ``~`` in paths is the home folder.

    Paths are local, but for those that :class:`Names` marks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="after")
    @classmethod
    def _expand_paths(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, Path) and ADDRESS.fullmatch(str(value)) and not any(_marks(field.annotation, field.metadata)):
            raise ValueError(LOCAL_ONLY)
        return _expanded(value)


def _expanded(value: Any) -> Any:
    """A field's value with all paths in it expanded. Plain strings are not paths; :data:`PathText` expands its own."""
    if isinstance(value, Path):
        return Path(expand_home(value))
    if isinstance(value, list | tuple) and any(isinstance(each, Path) for each in value):
        return type(value)(map(_expanded, value))
    return value


def load_config(kind: type[C], files: Sequence[str | Path], overrides: Sequence[str] = ()) -> C:
    """Load settings from YAML files, where later files override earlier ones, then from overrides such as ``optim.lr=1e-4``.

    A file may be a packaged recipe, ``recipe:NAME``. The value of an override is YAML too: ``data.train=[a.jsonl, b.jsonl]``,
    ``lora=null``.

    Raises:
        ConfigError: names the file or the override, the key and the error; for an unknown key, also the nearest known one.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in files:
        _merge(merged, _read(str(file)), str(file), origins)
    for override in overrides:
        _merge(merged, _parse_override(override), _shortened(override), origins)
    return _validated(kind, merged, origins)


def to_config(kind: type[C], values: Mapping[str, Any], origin: str) -> C:
    """The settings of nested values. origin: where they come from, for messages.

    Raises:
        ConfigError: as in :func:`load_config`.
    """
    return _validated(kind, dict(values), dict.fromkeys(values, origin))


def _validated(kind: type[C], values: dict[str, Any], origins: dict[str, str]) -> C:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*_explain(kind, error, origins)) from None


RENAMED = {
    "data": ("data.train", "inputs"),
    "dataset_name": ("data.train", "inputs"),
    "dtype": ("precision",),
    "eval_steps": ("eval_every",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "learning_rate": ("optim.lr",),
    "lora_alpha": ("lora.alpha",),
    "lora_r": ("lora.rank",),
    "max_grad_norm": ("optim.clip",),
    "max_response_length": ("model.encoder.max_response_length",),
    "model": ("model.init", "policy.model", "model"),
    "model_name_or_path": ("model.init", "policy.model", "model"),
    "num_train_epochs": ("epochs",),
    "output_dir": ("output",),
    "per_device_train_batch_size": ("batch_size",),
    "save_steps": ("checkpoint_every",),
    "token_budget": ("row_tokens",),
    "torch_dtype": ("precision",),
    "warmup_ratio": ("optim.warmup",),
}
"""Names in earlier versions and in transformers and TRL -> our keys, of which a config has one."""


def renamed(name: str, keys: Iterable[str], group: str = "") -> str | None:
    """Our key for another tool's name of a setting; None where there is none among ``keys``. group: where it was looked for."""
    keys = sorted(keys, key=lambda key: (key.rpartition(".")[0] != group, len(key)))
    return next((key for ours in RENAMED.get(name, ()) for key in keys if f".{key}".endswith(f".{ours}")), None)


def suggestion(key: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown key: the nearest known key; empty where none is near."""
    near = get_close_matches(key, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def with_local_sources(config: C, local: Mapping[str, Callable[[str | Path], str | Path]]) -> C:
    """The config in which every field that is marked by :class:`Names` holds local paths.

    local: kind of the field -> the function from a name to its local path, which raises the errors; other kinds stay.
    """
    changes: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        kind = next(iter(_marks(field.annotation, field.metadata)), None)
        found = _localised(value, local, local.get(kind or ""))
        if found != value:
            changes[name] = found
    return config.model_copy(update=changes) if changes else config


def _marks(annotation: Any, metadata: Sequence[Any]) -> Iterator[str]:
    yield from (each.what for each in metadata if isinstance(each, Names))
    for inner in get_args(annotation):
        yield from _marks(inner, getattr(inner, "__metadata__", ()))


def _localised(
    value: Any, local: Mapping[str, Callable[[str | Path], str | Path]], find: Callable[[str | Path], str | Path] | None
) -> Any:
    if isinstance(value, Config):
        return with_local_sources(value, local)
    if isinstance(value, list | tuple):
        return type(value)(_localised(each, local, find) for each in value)
    if find is None or not isinstance(value, str | Path):
        return value
    return type(value)(find(value))


def to_yaml(config: Config) -> str:
    """The config as YAML text that :func:`load_config` reads."""
    return dump_yaml(config.model_dump(mode="json"))


def _parse(text: str, origin: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _read(source: str) -> dict[str, Any]:
    """The keys of a file, or of a packaged recipe named ``recipe:NAME``."""
    content = _parse(read_recipe(source.removeprefix(PREFIX)) if source.startswith(PREFIX) else _read_text(Path(source)), source)
    if not isinstance(content, dict | None):
        raise ConfigError(f"{source}: expected keys with values, not a {type(content).__name__}")
    return content or {}


def _read_text(path: Path) -> str:
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


def _parse_override(override: str) -> dict[str, Any]:
    """The nested group that an override such as ``optim.lr=1e-4`` sets."""
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


def _merge(merged: dict[str, Any], layer: dict[str, Any], origin: str, origins: dict[str, str], prefix: str = "") -> None:
    """Merge a layer into ``merged``, group by group, and record the origin of each key.

    All containers are copied: later layers write into them, and YAML aliases would share them. prefix: the dotted name of the
    group that holds the layer.
    """
    for key, value in layer.items():
        path = f"{prefix}{key}"
        origins[path] = origin
        if isinstance(value, dict):
            if not isinstance(merged.get(key), dict):
                merged[key] = {}
            _merge(merged[key], value, origin, origins, f"{path}.")
        else:
            merged[key] = _copied(value)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _explain(kind: type[Config], error: ValidationError, origins: dict[str, str]) -> list[str]:
    """One line for each wrong key: its origin, the key and what is wrong."""
    errors = error.errors(include_url=False)
    by_key: dict[tuple[str, ...], Any] = {}
    for each in errors:  # a key with a union is reported once for each of its members
        by_key.setdefault(_keys_of(each), each)
    unknown = {keys for keys, each in by_key.items() if each["type"] == "extra_forbidden"}
    # Pydantic reports a mistyped key twice, also as a missing one.
    meant = {(*keys[:-1], near) for keys in unknown for near in _known_keys(kind, keys[:-1]) if suggestion(keys[-1], [near])}
    return [_line(kind, keys, each, origins) for keys, each in by_key.items() if each["type"] != "missing" or keys not in meant]


def _keys_of(error: Any) -> tuple[str, ...]:
    return tuple(str(part) for part in error["loc"] if not _is_union_member(part))


def _line(kind: type[Config], keys: Sequence[str], error: Any, origins: dict[str, str]) -> str:
    key = ".".join(keys)
    origin = next((origins[".".join(keys[:n])] for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in origins), None)
    start = f"{origin}: " if origin else ""
    if error["type"] == "extra_forbidden":
        ours = renamed(keys[-1], all_keys(kind), ".".join(keys[:-1]))
        hint = f"; did you mean {ours!r}?" if ours else _other_kind(kind, keys) or _right_group(kind, keys)
        return f"{start}unknown key {key!r}{hint or suggestion(keys[-1], _known_keys(kind, keys[:-1]))}"
    if error["type"] == "missing":
        return f"{start}the key {key!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    value = "" if isinstance(error["input"], dict | list) else f", not {error['input']!r}"
    if error["type"] in ("list_type", "tuple_type") and isinstance(error["input"], str):
        value += f" ({key}='[{error['input']}]')"
    return f"{start}{key or kind.__name__}: {message[0].lower()}{message[1:]}{value}"


def _is_union_member(part: int | str) -> bool:
    """Whether a part of an error's location is the name of a union's member, which pydantic adds, and not a key of the user's."""
    return isinstance(part, str) and (not part.isidentifier() or part in ("int", "float", "str", "path", "bool"))


def _known_keys(kind: type[Config], path: Sequence[str]) -> list[str]:
    """The keys of the group at ``path``, in which numbers are indices of a list."""
    return list(dict.fromkeys(name for each in _groups_at(kind, path) for name in each.model_fields))


def _groups_at(kind: type[Config], path: Sequence[str]) -> list[type[Config]]:
    """The config classes that the group at ``path`` may have: several for a union."""
    kinds = [kind]
    for key in path:
        if not key.isdigit():
            kinds = [
                inner for outer in kinds if key in outer.model_fields for inner in _groups(outer.model_fields[key].annotation)
            ]
    return kinds


def _other_kind(kind: type[Config], keys: Sequence[str]) -> str:
    """The end of a message about a key that only other members of a union have: the kinds of these; empty where none has it."""
    groups = [group for group in _groups_at(kind, keys[:-1]) if keys[-1] in group.model_fields]
    names = [
        str(name) for group in groups if "kind" in group.model_fields for name in get_args(group.model_fields["kind"].annotation)
    ]
    return f"; only kind {' or '.join(names)} has it" if names else ""


def _right_group(kind: type[Config], keys: Sequence[str]) -> str:
    """The end of a message about a key in the wrong group: its dotted name, if exactly one group has this key."""
    paths = [path for path in all_keys(kind) if path.rpartition(".")[2] == keys[-1]]
    return f"; did you mean {paths[0]!r}?" if len(paths) == 1 else ""


def all_keys(kind: type[Config], prefix: str = "") -> list[str]:
    """The dotted names of all keys outside lists, including those of optional groups."""
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(f"{prefix}{name}")
        if get_origin(field.annotation) not in (list, tuple, dict):
            keys += [key for group in _groups(field.annotation) for key in all_keys(group, f"{prefix}{name}.")]
    return keys


def _groups(annotation: Any) -> list[type[Config]]:
    """The config classes that a type annotation contains."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [group for member in get_args(annotation) for group in _groups(member)]
