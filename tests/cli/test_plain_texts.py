"""F13: paths and texts are printed unchanged, never read as rich's markup."""

import ast
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import polar_rm
from polar_rm.common.progress import plain_console, progress_bar, progress_lines, say, status_line

SOURCE = Path(polar_rm.__file__).parent
NAMES = ["run[/b]", "run[bold]", "[red]run[/red]", ":smile:", "[link=x]run"]
_TAG = re.compile(r"\[/?(bold|dim|red|green|yellow|blue|cyan|magenta|italic|b|i|link|/)[^\]]*\]|\[/\]")


def strings(node):
    return [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def is_console(node):
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in ("console", "messages")


def offences(file):
    """Calls that pass a string to a function that reads markup, instead of `say`, `status_line` or `progress_bar`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and reads_markup(node):
            yield f"{file.name}:{node.lineno}"


def reads_markup(call):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
    if name in ("print", "status", "log") and isinstance(call.func, ast.Attribute) and is_console(call.func.value):
        return bool(call.args) and isinstance(call.args[0], ast.Constant | ast.JoinedStr | ast.BinOp)
    if name in ("from_markup", "render_markup") or (name == "TextColumn" and options.get("markup") is not False):
        return True
    if name == "Console":
        return options.get("markup") is not False
    return name in ("print_text", "message", "say", "add_task", "update") and any(map(_TAG.search, strings(call)))


def test_no_string_is_passed_to_a_function_that_reads_markup():
    assert [offence for file in sorted(SOURCE.rglob("*.py")) for offence in offences(file)] == []


def test_the_rule_finds_violations(tmp_path):
    bad = [
        'console.print(f"x {1}")',
        'self.console.status(f"x {1}")',
        'TextColumn("{x}")',
        'bar.update(t, status=f"[red]down {1}")',
    ]
    for line in bad:
        (tmp_path / "x.py").write_text(line)
        assert list(offences(tmp_path / "x.py")) == ["x.py:1"], line


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["plain", "a user's own"])
def test_every_output_function_prints_texts_unchanged(monkeypatch, name, kind):
    console = plain_console() if kind == "plain" else Console()
    console.file = io.StringIO()
    console.width = 200
    say(console, f"saved in {name}")
    progress_lines(console)(name, "1/2")
    assert console.file.getvalue() == f"saved in {name}\n{name}: 1/2\n"
    console._force_terminal = True
    with progress_bar(console) as bar:
        bar.update(bar.add_task(name, total=2, status=name), completed=1)
    with status_line(console, name) as show:
        show(name + " more")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert shown.count(name) >= 4
