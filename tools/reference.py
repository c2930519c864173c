"""Pages of reference, made from the code: commands from Typer, keys from pydantic, routes from OpenAPI, names from docstrings."""

from __future__ import annotations

import inspect
import json
import os
from importlib import import_module
from textwrap import indent
from typing import Any
from unittest.mock import MagicMock

import typer.main
from typer.testing import CliRunner

from polar_rm.cli.configs import CONFIGS, config_of
from polar_rm.cli.main import app
from polar_rm.cli.options import VERBS
from polar_rm.common.recipes import read_recipe, recipe_names
from polar_rm.common.reference import explain

MODULES = (
    "polar_rm",
    "polar_rm.client",
    "polar_rm.records",
    "polar_rm.encoding",
    "polar_rm.evaluation",
    "polar_rm.rewards.outcomes",
    "polar_rm.rewards.transforms",
    "polar_rm.rft.trl",
    "polar_rm.rft.verl",
    "polar_rm.rft.openrlhf",
)
"""Modules that a user imports from."""


def pages() -> dict[str, str]:
    """Name of a page -> its Markdown."""
    return {"commands": commands(), "configs": configs(), "http": http(), "python": python()}


def commands() -> str:
    """The help of every verb."""
    os.environ.update({"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
    group: Any = typer.main.get_command(app)
    parts = ["# Commands\n\nThe help of every verb, as `polar VERB --help` prints it.\n", _block([])]
    for name in VERBS:
        parts.append(f"## polar {name}\n")
        steps = getattr(group.commands[name], "commands", {})
        parts += [_block([name]), *(_block([name, step]) for step in steps)]
    return "\n".join(parts)


def _block(words: list[str]) -> str:
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="polar")
    if result.exit_code:
        raise SystemExit(f"polar {' '.join(words)} --help: {result.output}")
    return f"```text\n{result.output.strip()}\n```\n"


def configs() -> str:
    """Every key of every config, and the recipes."""
    parts = ["# Config keys\n\nWhat `polar config VERB` prints: every key with its default, meaning and choices.\n"]
    for verb in CONFIGS:
        parts.append(f"## {verb}\n\n```yaml\n{explain(config_of(verb), f'Every key of `polar {verb}`, with its default.')}```\n")
    for name in recipe_names():
        parts.append(f"## recipe:{name}\n\n```yaml\n{read_recipe(name)}```\n")
    return "\n".join(parts)


def http() -> str:
    """The routes of our server with the schemas of their bodies."""
    from polar_rm.serving.app import create_app

    document = create_app(MagicMock()).app.openapi()
    parts = ["# HTTP\n", f"{document['info']['description']}\n", "A running server has the same document at `/openapi.json`.\n"]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            parts.append(f"## {method.upper()} {path}\n\n{route.get('summary', '')}\n\n{route.get('description', '')}\n")
            content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name, example in content.get("examples", {}).items():
                parts.append(f"{name}:\n\n```json\n{json.dumps(example['value'], indent=2, ensure_ascii=False)}\n```\n")
    parts.append("## Schemas\n")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"### {name}\n\n```json\n{json.dumps(schema, indent=2, ensure_ascii=False)}\n```\n")
    return "\n".join(parts)


def python() -> str:
    """Signature and docstring of every public name of the modules."""
    parts = ["# Python\n\nShapes, units, errors and sources are in the docstrings.\n"]
    for name in MODULES:
        module = import_module(name)
        parts.append(f"## {name}\n\n```text\n{inspect.getdoc(module)}\n```\n")
        own = [key for key, value in vars(module).items() if key[0] != "_" and getattr(value, "__module__", None) == name]
        for key in getattr(module, "__all__", own):
            value = getattr(module, key)
            if inspect.isclass(value) or inspect.isfunction(value):
                parts.append(_described(name, key, value))
    return "\n".join(parts)


def _described(module: str, name: str, value: Any) -> str:
    lines = [f"{name}{_signature(value)}", "", inspect.getdoc(value) or ""]
    if inspect.isclass(value):
        for key, method in vars(value).items():
            if inspect.isfunction(method) and not key.startswith("_"):
                lines += ["", f"{name}.{key}{_signature(method)}", "", indent(inspect.getdoc(method) or "", "    ")]
    return f"### {module}.{name}\n\n```text\n" + "\n".join(lines).rstrip() + "\n```\n"


def _signature(value: Any) -> str:
    try:
        return str(inspect.signature(value))
    except (TypeError, ValueError):  # a class of a library without a signature
        return ""
