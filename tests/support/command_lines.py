"""What is wrong with a command line of a document, found without running it."""

from __future__ import annotations

import re
import tomllib
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import typer.main

from polar_rm.cli.configs import CONFIGS, config_of
from polar_rm.cli.main import app
from polar_rm.common.config import load_config
from polar_rm.common.recipes import PREFIX, read_recipe
from polar_rm.errors import PolarError
from support.configs import REQUIRED
from support.documents import ROOT

PROGRAMS = frozenset("cd cmp curl head for done sbatch kubectl docker systemctl hf journalctl mkdocs".split())
"""Programs of others, whose arguments are theirs."""

SHARED = [ROOT / "benchmarks" / name for name in ("common.py", "models.py")]
"""Where several benchmarks have their options."""


def wrong_with(words: list[str]) -> str | None:
    """The first fault of a command line, or None."""
    program, arguments = Path(words[0]).name, words[1:]
    if program == "polar":
        return _polar(arguments)
    if program in ("python", "torchrun", "accelerate"):
        return _python(program, arguments)
    if program == "make":
        return _make(arguments)
    if program == "pip":
        return _pip(arguments)
    return None if program in PROGRAMS else f"{program}: a program that this test does not know"


@cache
def _click_app() -> Any:
    return typer.main.get_command(app)


def _polar(arguments: list[str]) -> str | None:
    """The verb exists, its options exist and take their values, nothing required is missing, and its config is valid."""
    command, names = _click_app(), ["polar"]
    if arguments and arguments[0].startswith("-"):
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        return None if set(arguments) <= known else f"polar: no such option: {arguments}"
    if arguments[:1] == ["VERB"] or "|" in "".join(arguments[:2]):  # `polar scaling plan|run|fit`
        return None
    while getattr(command, "commands", None):
        if arguments in ([], ["..."]) and len(names) > 1:
            return None
        if not arguments or arguments[0] not in command.commands:
            return f"{' '.join([*names, *arguments[:1]])}: no such verb"
        names.append(arguments[0])
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if arguments == ["--help"]:
        return None
    abbreviated = "..." in arguments
    given = [word for word in arguments if word != "..."]
    try:
        context = command.context_class(command, info_name=names[-1])
        values, _, _ = command.make_parser(context).parse_args(given)
        for parameter in map(_without_callback, command.params):
            value = values.get(parameter.name)
            if _is_placeholder(value) or (abbreviated and value in (None, (), [])):
                continue
            parameter.process_value(context, value)
    except Exception as error:  # its class is click's or, in recent versions, typer's
        return f"{' '.join(names)}: {getattr(error, 'param_hint', None) or ''} {error or type(error).__name__}"
    rest = values.get("arguments") if names[1] in CONFIGS and names[-1] != "fit" else None
    return _config(names[1], list(rest or []), abbreviated) if rest is not None else None


def _without_callback(parameter: Any) -> Any:
    """A parameter whose value is converted and not looked for on the disk."""
    parameter = copy(parameter)
    parameter.callback = None
    return parameter


def _is_placeholder(value: Any) -> bool:
    """Capital letters, or a variable of the shell, stand for a value of the reader's."""
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(each, str) and re.fullmatch(r"[A-Z_]+|\$\w+", each) for each in values)


def _config(verb: str, arguments: list[str], abbreviated: bool) -> str | None:
    """The config files exist, if they are ours, and all keys and values are valid together."""
    overrides = [word for word in arguments if "=" in word and "$" not in word and not word.endswith("=NAME")]
    files: list[str | Path] = []
    for word in arguments:
        if "=" not in word and word != "--" and not word.startswith("-"):
            known = [folder / Path(word).name for folder in (ROOT / Path(word).parent, ROOT / "benchmarks")]
            found = [path for path in known if path.is_file()]
            if word.startswith("recipe:"):
                files.append(word)
            elif found:
                files.append(found[0])
            elif "/" in word:
                return f"polar {verb}: {word}: no such file"
    try:
        load_config(config_of(verb), files, overrides)
    except PolarError as error:
        # What only the reader knows is missing; a value may also say "$suite".
        if "is missing" not in str(error) and not abbreviated:
            return f"polar {verb}: {error}"
        try:
            load_config(config_of(verb), files, [*_unless_set(verb, files), *overrides])
        except PolarError as again:
            return f"polar {verb}: {again}"
    return None


def _unless_set(verb: str, files: list[str | Path]) -> list[str]:
    """The required keys of a verb that none of the files sets."""
    texts = [path.read_text() if isinstance(path, Path) else read_recipe(path.removeprefix(PREFIX)) for path in files]
    return [each for each in REQUIRED[verb] if not any(f"\n{each.split('=')[0]}:" in f"\n{text}" for text in texts)]


def _python(program: str, arguments: list[str]) -> str | None:
    """``python SCRIPT``: the script exists and knows the options. ``-m polar_rm``: as ``polar``."""
    if "polar_rm" in arguments and arguments[arguments.index("polar_rm") - 1] == "-m":
        return _polar(arguments[arguments.index("polar_rm") + 1 :])
    if "-m" in arguments and arguments[arguments.index("-m") + 1] == "pytest":
        paths = [word for word in arguments if word.startswith("tests")]
        return next((f"{path}: no such test" for path in paths if not (ROOT / path.split("::")[0]).exists()), None)
    if "-m" in arguments or program != "python":
        return None
    script = next((path for path in (ROOT / arguments[0], ROOT / "benchmarks" / arguments[0]) if path.is_file()), None)
    if script is None:
        return f"{arguments[0]}: no such script"
    source = "".join(path.read_text() for path in {script, *SHARED})
    options = [word.split("=")[0] for word in arguments[1:] if word.startswith("--")]
    options = options[: options.index("--server") + 1] if "--server" in options else options
    return next((f"{arguments[0]}: no such option: {each}" for each in options if f'"{each}"' not in source), None)


def _make(arguments: list[str]) -> str | None:
    targets = {
        name for line in re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE) for name in line.split()
    }
    return next((f"make: no such target: {word}" for word in arguments if "=" not in word and word not in targets), None)


def _pip(arguments: list[str]) -> str | None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [
        extra for word in arguments for names in re.findall(r"^(?:polar-rm|\.)\[(.+)\]$", word) for extra in names.split(",")
    ]
    return next((f"pip: no such extra: {name}" for name in named if name not in extras), None)
