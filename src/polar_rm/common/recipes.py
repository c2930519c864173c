"""Recipes: the configs that come with the package, by name."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from polar_rm.errors import ConfigError

PREFIX = "recipe:"
"""``recipe:NAME`` means a packaged recipe wherever a config file is accepted."""


def recipe_names() -> list[str]:
    """The names of all recipes, sorted."""
    folder = files("polar_rm") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_recipe(name: str) -> str:
    """A recipe's YAML text, with its comments.

    Raises:
        ConfigError: there is no such recipe; the message has the nearest name, or all names.
    """
    if name not in (names := recipe_names()):
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"the recipes are {', '.join(names)}"
        raise ConfigError(f"{PREFIX}{name}: no such recipe; {hint}")
    return (files("polar_rm") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """The comment at the top of a recipe, up to the first example."""
    comment = []
    for line in read_recipe(name).splitlines():
        if not line.startswith("# ") or line.startswith("#   "):
            break
        comment.append(line.removeprefix("# "))
    return " ".join(comment)


def recipe_hint(path: str | Path) -> str:
    """The end of a message about a missing config file: the recipe with the file's name, if there is one."""
    name = Path(path).name.removesuffix(".yaml").removesuffix(".yml")
    return f"; did you mean {PREFIX}{name}?" if name in recipe_names() else ""
