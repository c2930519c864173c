"""`polar config` explains every key, and prints recipes by name."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml
from pydantic import Field
from support.configs import REQUIRED

import polar_rm
from polar_rm.cli.configs import CONFIGS, config_of
from polar_rm.common.config import Config, load_config, to_yaml
from polar_rm.common.recipes import recipe_names
from polar_rm.common.reference import explain


@pytest.mark.parametrize("verb", CONFIGS)
def test_the_output_is_a_config_with_all_keys_and_defaults(polar, tmp_path, verb):
    code, text, error = polar("config", verb)
    assert code == 0, error
    kind = config_of(verb)
    assert list(yaml.safe_load(text)) == list(kind.model_fields)
    file = tmp_path / "all.yaml"
    file.write_text(text)
    assert to_yaml(load_config(kind, [file], REQUIRED[verb])) == to_yaml(load_config(kind, [], REQUIRED[verb]))


def test_choices_limits_and_optional_groups_are_explained(polar):
    _, text, _ = polar("config", "pretrain")
    for expected in ("(auto, bf16 or fp32)", "(whole number > 0 or paper)", "(required: path)", "lora: null", "  # rank: 16"):
        assert expected in text
    _, text, _ = polar("config", "sample")
    assert "  # - # " in text and "  #   base_url:" in text


def test_a_groups_keys_have_the_defaults_of_the_key_that_holds_it():
    class Group(Config):
        """A group."""

        one: int = 1
        two: int = 2

    class Whole(Config):
        plain: Group = Field(Group(), description="As the group has them.")
        own: Group = Field(Group(two=22), description="One of another value.")
        none: Group | None = Field(None, description="Off.")

    written = explain(Whole, "title")
    assert yaml.safe_load(written) == {"plain": {"one": 1, "two": 2}, "own": {"one": 1, "two": 22}, "none": None}
    assert "  # two: 2\n" in written


def test_recipes_are_listed_printed_and_taken_by_name(polar):
    code, listed, _ = polar("config", "--list")
    assert code == 0
    for name in recipe_names():
        assert f"recipe:{name}: " in listed
    code, text, _ = polar("config", "--recipe", "finetune")
    assert code == 0
    assert text == (Path(polar_rm.__file__).parent / "recipes/finetune.yaml").read_text()
    code, _, error = polar("config", "--recipe", "finetun")
    assert code == 2
    assert "no such recipe; did you mean recipe:finetune?" in error
    code, _, error = polar("config")
    assert code == 2
    assert "expected one of: a verb" in error
    code, _, error = polar("config", "pretrian")
    assert code == 2
    assert "did you mean 'pretrain'?" in error


@pytest.mark.parametrize("verb", ["corpus", "pretrain", "finetune", "rft", "sample", "references", "scaling"])
def test_every_recipe_has_only_known_keys(verb):
    recipes = {
        "sample": ["sampling"],
        "corpus": ["corpus", "corpus_continuations"],
        "pretrain": ["pretrain", "pretrain_small", "pretrain_continuations"],
    }.get(verb, [verb])
    overrides = {
        **REQUIRED,
        "sample": [],
        "references": REQUIRED["references"][:2],
        "scaling": REQUIRED["scaling"][:2],
        "pretrain": ["optim.base_tokens=1e9", *REQUIRED["pretrain"]],
    }[verb]
    for recipe in recipes:
        load_config(config_of(verb), [f"recipe:{recipe}"], overrides)


def config_classes():
    source = Path(polar_rm.__file__).parent
    for file in sorted(source.rglob("*.py")):
        if "(Config)" in file.read_text() or "(Policy)" in file.read_text():
            import_module(".".join(("polar_rm", *file.relative_to(source).with_suffix("").parts)))
    todo, classes = [Config], set()
    while todo:
        for kind in todo.pop().__subclasses__():
            if kind.__module__.startswith("polar_rm.") and kind not in classes:
                classes.add(kind)
                todo.append(kind)
    return classes


def test_every_key_is_described():
    classes = config_classes()
    assert len(classes) > 20
    keys = {f"{kind.__name__}.{name}" for kind in classes for name, field in kind.model_fields.items() if not field.description}
    assert keys == {"TransformersPolicy.backend", "OpenAIPolicy.backend", "VLLMPolicy.backend"}
