"""Usage lines show the arguments as they are written, whatever brackets a version of typer would add."""

import pytest
import typer

from polar_rm.cli import main, unknown
from polar_rm.cli.configs import CONFIGS, config_of
from polar_rm.cli.options import VERBS
from polar_rm.common.config import RENAMED, all_keys


def verbs(command, names=()):
    """Every verb and step by its words."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from verbs(inner, (*names, name))
    else:
        yield names, command


COMMANDS = dict(verbs(typer.main.get_command(main.app)))


def test_all_verbs_are_looked_at():
    assert {names[0] for names in COMMANDS} == set(VERBS) and len(COMMANDS) > len(VERBS)


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_usage_shows_metavars_unchanged(names, polar):
    code, _, shown = polar(*names, "--no-such-option")
    usage = " ".join(shown.partition("Try")[0].split())
    assert code == 2 and usage.startswith("Usage: "), shown
    arguments = [parameter for parameter in COMMANDS[names].params if parameter.param_type_name == "argument"]
    after = usage.partition("[OPTIONS]")[2].strip()
    assert [p.metavar or p.name.upper() for p in arguments if (p.metavar or p.name.upper()) not in after] == []
    assert "[[" not in usage and "{" not in usage and "]]" not in usage


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("serve --tensor-parallel-size 2", "polar serve --model DIR --engine vllm -- --tensor-parallel-size"),
        ("serve --dtype fp16", "Did you mean --precision?"),
        ("serve --modle m", "(Possible options: --model)"),
        ("serve --trust-remote-code", "No code of a checkpoint is ever run"),
        ("score --model_name_or_path m", "Did you mean --model?"),
        ("score --row_tokens 3", "Did you mean --row-tokens?"),
        ("evaluate --output_dir x", "No such option: --output_dir"),
        ("pretrain --learning-rate 1e-4", "optim.lr=VALUE. `polar config pretrain`"),
        ("finetune --batch_size 3", "batch_size=VALUE"),
        ("finetune --per_device_train_batch_size 3", "batch_size=VALUE"),
        ("rft --learning_rate 1e-4", "trainer.learning_rate=VALUE"),
        ("rft --model_name_or_path m", "policy.model=VALUE"),
        ("rft --num_generations 4", "trainer.num_generations=VALUE"),
        ("rft --dryrun", "(Possible options: --dry-run)"),
        ("rft --learning-rates 4", "No such option: --learning-rates ╰"),
        ("pretrain --model x", "model.init=VALUE"),
        ("pretrain --data x", "data.train=VALUE"),
        ("encode --output x", "output=VALUE"),
        ("scaling run --output x", "output=VALUE. `polar config scaling`"),
        ("select --best-of-n 1", "best_of_n=VALUE"),
        ("corpus --num_train_epochs 1", "No such option: --num_train_epochs"),
        ("audit --trehshold x", "--threshold"),
    ],
)
def test_an_option_of_another_tool_gets_its_name_here(polar, arguments, advice):
    code, _, error = polar(*arguments.split())
    assert code == 2 and advice in " ".join(error.replace("│", "").split()), error


def test_all_advice_names_what_there_is():
    options = {name for command in COMMANDS.values() for parameter in command.params for name in parameter.opts}
    keys = {key for verb in CONFIGS for key in all_keys(config_of(verb))}
    assert set(unknown.RENAMED.values()) <= options
    assert {key for ours in RENAMED.values() for key in ours} <= keys
