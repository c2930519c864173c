from pathlib import Path

import pytest
from pydantic import Field

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
