import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import ConfigDict, Discriminator, Field, Tag

from polar_rm.common.config import Config, PathText, Seed, load_config, to_yaml
from polar_rm.errors import ConfigError


class Optim(Config):
    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)


class Lora(Config):
    rank: int = 8


class Run(Config):
    name: str
    optim: Optim = Optim()
    lora: Lora | None = None
    batch: int | None = None


def write(path, text):
    path.write_text(text)
    return path


def test_layers_then_overrides(tmp_path):
    first = write(tmp_path / "a.yaml", "name: one\noptim: {lr: 1e-3, betas: [0.8, 0.9]}\n")
    second = write(tmp_path / "b.yaml", "optim: {lr: 2e-3}\nlora: {rank: 4}\n")
    config = load_config(Run, [first, second], ["name=two", "optim.lr=5e-4", "lora=null"])
    assert config == Run(name="two", optim=Optim(lr=5e-4, betas=(0.8, 0.9)))
    assert load_config(Run, [write(tmp_path / "c.yaml", to_yaml(config))]) == config


def test_a_date_is_a_name(tmp_path):
    assert load_config(Run, [], ["name=2026-11-26"]).name == "2026-11-26"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lrr=1"], "optim.lrr=1: unknown key 'optim.lrr'; did you mean 'lr'?"),
        (["lora.ranks=1"], "lora.ranks=1: unknown key 'lora.ranks'; did you mean 'rank'?"),
        (["optim.learning_rate=1"], "optim.learning_rate=1: unknown key 'optim.learning_rate'; did you mean 'optim.lr'?"),
        (["zzz=1"], "zzz=1: unknown key 'zzz'"),
        (["optim.lr=fast"], "optim.lr=fast: optim.lr: input should be a valid number.*, not 'fast'"),
        (["batch=x"], "batch=x: batch: .*not 'x'"),
        (["name"], "looks like key=value"),
        (["name=[1"], "not valid YAML"),
        (["name=" + "1" * 5000], "not valid YAML: Exceeds the limit"),
    ],
)
def test_errors_name_origin_key_and_remedy(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Run, [write(tmp_path / "a.yaml", "name: one\n")], overrides)


def test_errors_of_files(tmp_path):
    for text, message in [
        ("", "'name' is missing"),
        ("- 1", "expected keys with values"),
        ("nam: x\nname: y", r"a.yaml: unknown key 'nam'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_config(Run, [write(tmp_path / "a.yaml", text)])
    with pytest.raises(ConfigError, match="No such file"):
        load_config(Run, [tmp_path / "missing.yaml"])


class Zoo(Config):
    """Every way in which a config holds a path."""

    output: Path | None = None
    data: list[Path] = Field([])
    texts: tuple[Path, ...] = ()
    model: PathText = "m"
    inputs: tuple[PathText, ...] = ()
    system: str = ""
    seed: Seed = 0


@pytest.mark.parametrize("kind", ["yaml", "override"])
def test_a_tilde_is_the_home_folder_in_every_path_and_only_there(tmp_path, monkeypatch, kind):
    """H10."""
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {"output": "~/run", "data": "[~/a.jsonl, b.jsonl]", "texts": "[~/t]", "model": "~/lm"}
    values |= {"inputs": "['~/x*', y]", "system": "~/"}
    if kind == "yaml":
        file = write(tmp_path / "c.yaml", "".join(f"{name}: {value}\n" for name, value in values.items()))
        config = load_config(Zoo, [file])
    else:
        config = load_config(Zoo, [], [f"{name}={value}" for name, value in values.items()])
    assert (config.output, config.data) == (tmp_path / "run", [tmp_path / "a.jsonl", Path("b.jsonl")])
    assert (config.texts, config.model, config.inputs) == ((tmp_path / "t",), f"{tmp_path}/lm", (f"{tmp_path}/x*", "y"))
    assert config.system == "~/"
    assert Zoo(model="package:llm").model == "package:llm" and Zoo(model="a~b").model == "a~b"
    with pytest.raises(ConfigError, match="output=~nobody-here/x: output: no home folder is known for '~nobody-here'"):
        load_config(Zoo, [], ["output=~nobody-here/x"])


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_a_seed_that_no_library_takes_is_refused(seed):
    """B14."""
    with pytest.raises(ConfigError, match="seed"):
        load_config(Zoo, [], [f"seed={seed}"])


def refusal(files=(), overrides=(), kind=Run):
    with pytest.raises(ConfigError) as caught:
        load_config(kind, files, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BOMB = "name: one\na0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{p: *a{i}, q: *a{i}}}\n" for i in range(40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "holds more than 100,000 values after its aliases are expanded"),
        (BOMB.replace("{p: *", "[*").replace(", q: *", ", *").replace("}", "]").replace("{x: 1]", "[1]"), "more than 100,000"),
        ("name: one\noptim: &o {lr: *o}\n", r"the alias \*o refers to itself"),
        ("name: &n [*n]\n", r"the alias \*n refers to itself"),
        ("name: " + "[" * 1_000_000, "nested deeper than 64 levels"),
        ("name: " + "{a: " * 20_000, "nested deeper than 64 levels"),
        ("".join(" " * i + "a:\n" for i in range(1000)), "nested deeper than 64 levels"),
        ("name: one\n#" + "x" * (1 << 20), "more than 1,048,576 bytes"),
        ("name: one\nbatch: 1\nname: two\n", "line 3: the key 'name' appears twice"),
    ],
)
def test_what_a_small_text_expands_to_is_bounded(tmp_path, text, message):
    """F12."""
    path = write(tmp_path / "a.yaml", text)
    error = refusal([path])
    assert error.startswith(f"{path}: ")
    assert re.search(message, error)


def test_overrides_are_bounded_as_files_are():
    """F12."""
    assert refusal([], ["name=" + "[" * 20_000]).endswith("...: it is nested deeper than 64 levels")
    assert "nested deeper than 64 levels" in refusal([], [".".join(["a"] * 20_000) + "=1"])
    assert "the alias *n refers to itself" in refusal([], ["name=&n [*n]"])
    assert "more than 1,048,576 bytes" in refusal([], ["name=x" + "x" * (1 << 20)])
    assert len(refusal([], ["x" * 10_000])) < 300


def test_a_file_without_end_is_read_to_the_bound_only(tmp_path):
    """F12."""
    path = tmp_path / "sparse.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "more than 1,048,576 bytes" in refusal([path])


def test_a_later_layer_changes_one_of_two_values_that_share_an_alias(tmp_path):
    """F12."""

    class Two(Config):
        a: dict[str, list[dict[str, int]]]
        b: dict[str, list[dict[str, int]]]

    path = write(tmp_path / "a.yaml", "a: &shared {x: [&one {n: 1}, *one]}\nb: *shared\n")
    config = load_config(Two, [path], ["b.x=[{n: 2}]"])
    assert config.a == {"x": [{"n": 1}, {"n": 1}]}
    assert config.b == {"x": [{"n": 2}]}
    assert config.a["x"][0] is not config.a["x"][1]


def test_recipes_are_files_by_name(tmp_path):
    class Small(Config):
        model_config = ConfigDict(extra="allow")

    assert load_config(Small, ["recipe:pretrain_small"], ["batch_size=4"]).batch_size == 4
    assert refusal(["recipe:pretrain_smal"]) == "recipe:pretrain_smal: no such recipe; did you mean recipe:pretrain_small?"
    assert "the recipes are corpus, corpus_continuations, encode, finetune, " in refusal(["recipe:zzz"])
    assert refusal([tmp_path / "rft.yaml"]).endswith("No such file or directory; did you mean recipe:rft?")


def test_an_error_names_the_right_group_and_the_right_name_of_a_key():
    class Other(Config):
        optim: Optim = Optim()
        lora: Lora | None = None
        precision: str = "auto"
        row_tokens: int = 1

    assert "unknown key 'optim.rank'; did you mean 'lora.rank'?" in refusal([], ["optim.rank=1"], Other)
    assert "unknown key 'dtype'; did you mean 'precision'?" in refusal([], ["dtype=bf16"], Other)
    assert "unknown key 'optim.token_budget'; did you mean 'row_tokens'?" in refusal([], ["optim.token_budget=1"], Other)


def test_a_former_name_that_several_groups_have_is_meant_in_its_own_group():
    class Machine(Config):
        precision: str = "auto"
        dtypes_of_logs: str = "none"  # nearer by its letters

    class Other(Config):
        sampling: Machine = Machine()
        training: Machine = Machine()

    assert "unknown key 'training.dtype'; did you mean 'training.precision'?" in refusal([], ["training.dtype=bf16"], Other)


def test_a_key_of_another_kind_is_told_with_its_kind():
    """It was suggested in place of itself."""

    class Square(Config):
        kind: Literal["square"] = "square"
        side: int = 1

    class Circle(Config):
        kind: Literal["circle", "disc"] = "circle"
        radius: int = 1

    class Shapes(Config):
        shape: Annotated[
            Annotated[Square, Tag("a square")] | Annotated[Circle, Tag("a circle")],
            Discriminator(lambda value: "a square" if value["kind"] == "square" else "a circle"),
        ] = Field({"kind": "square"}, validate_default=True)

    assert "unknown key 'shape.radius'; only kind circle or disc has it" in refusal(
        [], ["shape={kind: square, radius: 1}"], Shapes
    )
    assert "unknown key 'shape.sid'; did you mean 'side'?" in refusal([], ["shape={kind: square, sid: 1}"], Shapes)


def test_remedies_for_a_lone_value_and_for_an_address():
    class Run(Config):
        data: list[str]
        output: Path

    assert refusal([], ["data=a.jsonl", "output=x"], Run).endswith("a valid list, not 'a.jsonl' (data='[a.jsonl]')")
    assert "output: expected a local path: mount the bucket" in refusal([], ["data=[]", "output=s3://bucket/run"], Run)
