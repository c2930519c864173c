"""Usage lines show the arguments as they are written, whatever brackets a version of typer would add."""

import pytest
import typer

from polar_rm.cli import main
from polar_rm.cli.options import VERBS


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
