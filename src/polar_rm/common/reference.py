"""The reference of a config class as commented YAML: every key with its default, its meaning and the values that it accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from polar_rm.common.config import Config
from polar_rm.common.yaml import dump_line

Schema = dict[str, Any]

_WIDTH = 100
_LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}


def explain(kind: type[Config], title: str) -> str:
    """All keys of ``kind`` as YAML. Groups that are off by default, and groups in lists, are comments. title: the first line."""
    schema = kind.model_json_schema()
    lines = [f"# {title}", *_group(schema, schema.get("$defs", {}))]
    return "\n".join(lines) + "\n"


def _group(group: Schema, definitions: Schema, defaults: Schema | None = None) -> Iterator[str]:
    """The lines of a group's keys. defaults: those of the field that holds the group, where they differ from the group's own."""
    for name, field in group.get("properties", {}).items():
        field = _flat(field)
        required = name in group.get("required", ())
        if defaults and name in defaults:
            field["default"] = defaults[name]
        yield from _comment(field, definitions, required)
        yield from _value(name, field, definitions, required)


def _flat(field: Schema) -> Schema:
    """The field with its reference at the top level: earlier pydantic wraps a reference that has a description or a default."""
    return {**field, **field["allOf"][0]} if "allOf" in field else dict(field)


def _comment(field: Schema, definitions: Schema, required: bool) -> Iterator[str]:
    """The lines of a key's comment: what it means, then which values it accepts."""
    groups = list(_groups(field, definitions))
    text = field.get("description") or (_summary(groups[0]) if len(groups) == 1 else "")
    accepts = f"({'required: ' if required and 'default' not in field else ''}{words(field, definitions)})"
    text = " ".join(text.split()) + ("" if "$ref" in field and groups else f" {accepts}")
    yield from (f"# {line}" for line in wrap(text.strip(), _WIDTH, break_long_words=False))


def _value(name: str, field: Schema, definitions: Schema, required: bool) -> Iterator[str]:
    """The line of a key with its default, and the lines of the groups that the key holds."""
    groups = list(_groups(field, definitions))
    if "$ref" in field and groups:
        yield f"{name}:"
        yield from (f"  {line}" for line in _group(groups[0], definitions, field.get("default")))
        return
    default = field.get("default", {"array": [], "object": {}}.get(field.get("type", "")))
    yield f"{name}:" if required else f"{name}: {dump_line(default)}"
    listed = field.get("type") == "array"
    for group in groups:
        if len(groups) > 1:
            yield f"  # {_summary(group)}"
        for number, line in enumerate(_group(group, definitions)):
            yield f"  # {('- ' if number == 0 else '  ') if listed else ''}{line}"


def _summary(group: Schema) -> str:
    return " ".join(group.get("description", "").partition("\n\n")[0].split()) or str(group.get("title", ""))


def _groups(field: Schema, definitions: Schema) -> Iterator[Schema]:
    """The groups of settings that a field may hold: directly, as one member of a union, or in a list."""
    field = _flat(field)
    if "$ref" in field:
        definition = definitions[field["$ref"].rpartition("/")[2]]
        if "properties" in definition:
            yield definition
    for inner in (*field.get("anyOf", ()), *field.get("oneOf", ()), *([field["items"]] if "items" in field else ())):
        yield from _groups(inner, definitions)


def words(field: Schema, definitions: Schema) -> str:
    """The values that a field accepts in words: type, limits and choices."""
    field = _flat(field)
    if "$ref" in field:
        definition = definitions[field["$ref"].rpartition("/")[2]]
        return "group" if "properties" in definition else words(definition, definitions)
    if "const" in field or "enum" in field:
        return _alternatives([json.dumps(each).strip('"') for each in field.get("enum", [field.get("const")])])
    if branches := [*field.get("anyOf", ()), *field.get("oneOf", ())]:
        return _alternatives(list(dict.fromkeys(words(branch, definitions) for branch in branches)))
    if field.get("type") == "array":
        return _array(field, definitions)
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"keys with values: {words(values, definitions)}" if isinstance(values, dict) and values else "keys with values"
    if field.get("format") == "path":
        return "path"
    limits = [f"{sign} {_number(field[key])}" for key, sign in _LIMITS.items() if key in field]
    return f"{_TYPES.get(field.get('type', ''), 'anything')}{' ' if limits else ''}{' and '.join(limits)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _array(field: Schema, definitions: Schema) -> str:
    if "prefixItems" in field:
        return f"[{', '.join(words(each, definitions) for each in field['prefixItems'])}]"
    minimum = f", at least {field['minItems']}" if field.get("minItems") else ""
    return f"list of: {words(field.get('items', {}), definitions)}{minimum}"


def _alternatives(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
