"""Every block of code in the documents: commands parse, configs are valid, names exist, links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command_lines import wrong_with
from support.configs import REQUIRED
from support.documents import ROOT, Block, anchors, commands, dead_link, documents, links, read_blocks, without_blocks

from polar_rm.cli.configs import CONFIGS, config_of
from polar_rm.common.config import load_config
from polar_rm.errors import ConfigError

DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in documents()]
LANGUAGES = {"sh", "python", "json", "jsonl", "yaml", "text", "ini", "toml", "dockerfile", "nginx", "http"}
MOST_UNCHECKED = 4


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(params=DOCUMENTS)
def document(request) -> str:
    return str(request.param)


def test_blocks_say_their_language_and_few_are_unchecked():
    blocks = [block for name in DOCUMENTS for block in read_blocks(text_of(name), name)]
    assert len([block for block in blocks if block.language == "sh"]) > 40
    assert [str(block) for block in blocks if block.language not in LANGUAGES] == []
    assert len([block for block in blocks if block.unchecked]) <= MOST_UNCHECKED


def test_commands_are_not_hidden_in_indented_blocks(document):
    lines = without_blocks(text_of(document)).splitlines()
    assert [
        f"{number}: {line}" for number, line in enumerate(lines, 1) if re.match(r"(    |\t)(polar|python|make|pip) ", line)
    ] == []


def faults(block: Block) -> list[str]:
    """What is wrong with a block."""
    check = {"sh": shell_faults, "python": python_faults, "json": json_faults, "jsonl": json_faults, "yaml": yaml_faults}
    if block.unchecked or block.language not in check:
        return []
    return [f"{block}: {fault}" for fault in check[block.language](block.text)]


def test_blocks_are_right(document):
    assert [fault for block in read_blocks(text_of(document), document) for fault in faults(block)] == []


def shell_faults(text: str) -> list[str]:
    return [fault for words in commands(text) if (fault := wrong_with(words))]


def json_faults(text: str) -> list[str]:
    """One value, or one a line."""
    try:
        json.loads(text)
    except ValueError:
        try:
            [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            return [str(error)]
    return []


def yaml_faults(text: str) -> list[str]:
    """A config is valid for one of the verbs that know all of its keys; other YAML says what it is in its first line."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [str(error)]
    if text.startswith("# not a config: "):
        return []
    verbs = [verb for verb in CONFIGS if set(content) <= set(config_of(verb).model_fields)]
    errors = [error for verb in verbs if (error := config_error(verb, content))]
    return [] if len(errors) < len(verbs) else errors or [f"no verb's config has the keys {', '.join(content)}"]


def config_error(verb: str, content: dict[str, Any]) -> str | None:
    required = [each for each in REQUIRED[verb] if each.split("=")[0] not in content]
    try:
        load_config(config_of(verb), [], [*required, *(f"{key}={json.dumps(value)}" for key, value in content.items())])
    except ConfigError as error:
        return f"polar {verb}: {error}"
    return None


def python_faults(text: str) -> list[str]:
    """It compiles, what it imports from polar_rm exists, and calls of these names have arguments that they take."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return [str(error)]
    known: dict[str, Any] = {}
    found: list[str] = []
    for node in ast.walk(tree):
        names = getattr(node, "names", [])
        if isinstance(node, ast.Import):
            known |= {each.name: import_module(each.name) for each in names if each.name.split(".")[0] == "polar_rm"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "polar_rm":
            module = import_module(str(node.module))
            found += [f"{node.module} has no {each.name}" for each in names if not hasattr(module, each.name)]
            known |= {each.asname or each.name: getattr(module, each.name, None) for each in names}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        root, _, attribute = ast.unparse(call.func).partition(".")
        if root in known and "." not in attribute:
            found += call_faults(known[root], attribute, call)
    return found


def call_faults(value: Any, attribute: str, call: ast.Call) -> list[str]:
    """value: what the call's name, or its first part, means."""
    if attribute and not hasattr(value, attribute):
        return [f"{ast.unparse(call.func)} does not exist"]
    target = getattr(value, attribute) if attribute else value
    if not callable(target) or any(isinstance(each, ast.Starred) for each in call.args):
        return []
    try:
        inspect.signature(target).bind(*call.args, **{each.arg: each for each in call.keywords if each.arg})
    except TypeError as error:
        return [f"{ast.unparse(call.func)}: {error}"]
    return []


def shown_runs() -> list[tuple[Block, str]]:
    """Blocks of Python that need only the package, each with the block after it: what it prints."""
    blocks = [block for name in DOCUMENTS for block in read_blocks(text_of(name), name)]
    return [
        (block, after.text)
        for block, after in pairwise(blocks)
        if block.language == "python" and "package:demo" in block.text and (block.file, after.language) == (after.file, "text")
    ]


def test_what_needs_only_the_package_prints_what_is_shown(capsys):
    """Numbers may differ in their last digit on another machine."""
    runs = shown_runs()
    assert {block.file for block, _ in runs} >= {"README.md", "docs/index.md"}
    printed = {}
    for block, expected in runs:
        if block.text not in printed:
            exec(block.text, {})
            printed[block.text] = capsys.readouterr().out
        found, shown = (
            [re.findall(r"[+-][0-9.]+", line) for line in text.splitlines()] for text in (printed[block.text], expected)
        )
        assert [len(line) for line in found] == [len(line) for line in shown] and any(shown), block
        for mine, theirs in zip(found, shown, strict=True):
            assert [float(each) for each in mine] == pytest.approx([float(each) for each in theirs], abs=0.011), block


def test_verbs_in_the_text_exist(document):
    """`polar VERB ...` inside a sentence: the verb, and where options are given these."""
    found = re.findall(r"`polar ([a-z][^`\n]*)`", without_blocks(text_of(document)))
    wrong = [
        fault for inline in found if "|" not in inline.split()[0] for fault in shell_faults(f"polar {inline.split('|')[0]} ...")
    ]
    assert [fault for fault in wrong if "requires an argument" not in fault] == []


def test_links_and_anchors_lead_somewhere(document):
    found = [(line, dead_link(ROOT / document, target)) for line, target in links(text_of(document))]
    assert [f"{document}:{line}: {fault}" for line, fault in found if fault] == []


def test_headings_that_are_linked_have_one_anchor_only(document):
    """GitHub's rule and that of the site differ where a heading has signs between spaces."""
    for _, target in links(text_of(document)):
        assert "--" not in target.partition("#")[2], target
    found = anchors(text_of(document))
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("sh", "polar pretrane recipe:pretrain", "no such verb"),
        ("sh", "polar score --model D --input a --output b --nosuch", "No such option"),
        ("sh", "polar score --model D --input a", "missing"),
        ("sh", "polar evaluate a.jsonl --model D --limit many", "valid integer"),
        ("sh", "polar evaluate a.jsonl --model D --combine worst", "'worst'"),
        ("sh", "polar pretrain recipe:nosuch output=o", "no such recipe"),
        ("sh", "polar pretrain recipes/nosuch.yaml output=o", "no such file"),
        ("sh", "polar pretrain recipe:pretrain output=o optim.rate=1", "unknown key 'optim.rate'"),
        ("sh", "torchrun --nproc-per-node 2 -m polar_rm pretrain ... --nosuch", "No such option"),
        ("sh", "polar scaling plot", "no such verb"),
        ("sh", "make nosuch", "no such target"),
        ("sh", "cd x && X=1 taskset -c 0 python benchmarks/nosuch.py", "no such script"),
        ("sh", "python benchmarks/scoring.py --nosuch 3 > out", "no such option: --nosuch"),
        ("sh", "pip install 'polar-rm[nosuch]'", "no such extra"),
        ("sh", "polr score", "does not know"),
        ("python", "import polar_rm\npolar_rm.laod('m')", "polar_rm.laod does not exist"),
        ("python", "from polar_rm.client import NoSuch", "has no NoSuch"),
        ("python", "import polar_rm\npolar_rm.load('m', nosuch=1)", "unexpected keyword"),
        ("python", "x = (", "never closed"),
        ("json", '{"a": 1', "delimiter"),
        ("yaml", "a: [1", "expected"),
        ("yaml", "nosuch: 1", "no verb's config"),
        ("yaml", "monitor: {length: {nosuch: 1}}", "unknown key"),
    ],
)
def test_faults_are_seen(language, text, expected):
    [first, *_] = faults(Block("a.md", 1, language, text))
    assert expected.lower() in first.lower()
    assert faults(Block("a.md", 1, language, text, unchecked="a reason")) == []


def test_dead_links_and_open_blocks_are_seen(tmp_path):
    (tmp_path / "a.md").write_text(
        "# One, two\n\n```sh\n# no heading\n```\n[x](b.md) [y](#one-two) [z](#no-heading) `[w](c.md)`\n"
    )
    found = [dead_link(tmp_path / "a.md", target) for _, target in links((tmp_path / "a.md").read_text())]
    assert found == ["b.md: no such file", None, "#no-heading: no such heading"]
    with pytest.raises(ValueError, match=r"a\.md:2: the block is never closed"):
        read_blocks("text\n```sh\npolar", "a.md")
    assert [block.unchecked for block in read_blocks("<!-- not checked: why -->\n```sh\nx\n```\n```sh\n```\n", "a")] == [
        "why",
        None,
    ]


def test_examples_of_the_help_texts_are_right():
    """The examples under `polar VERB --help`."""
    sources = sorted((ROOT / "src/polar_rm/cli").glob("*.py"))
    lines = [line.strip() for path in sources for line in path.read_text().splitlines() if re.match(r" {8}polar [a-z]", line)]
    assert len(lines) > 30
    assert [fault for line in lines for fault in shell_faults(line)] == []


def test_examples_in_recipes_are_right():
    for path in sorted(Path(ROOT / "recipes").glob("*.yaml")):
        script = "\n".join(line[4:] for line in path.read_text().splitlines() if line.startswith("#   "))
        assert shell_faults(script) == [], path.name


def test_every_footgun_names_a_test_that_exists():
    text = (ROOT / "docs/footguns.md").read_text(encoding="utf-8")
    paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.startswith("**")]
    assert len(paragraphs) > 20
    for paragraph in paragraphs:
        named = re.findall(r"`(tests\w*/[\w/]+\.py)::(test_\w+)`", paragraph)
        assert named, paragraph
        assert [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text()] == []


def test_tables_of_results_are_what_their_script_makes():
    """After a change of benchmarks/results: python benchmarks/tables.py."""
    done = subprocess.run([sys.executable, ROOT / "benchmarks/tables.py", "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_headlines_say_where_they_come_from():
    known = anchors(text_of("docs/results/log.md"))
    for row in json.loads((ROOT / "benchmarks/results/headlines.json").read_text()):
        assert {"what", "figure", "machine", "precision", "date", "logged_in", "command"} <= row.keys()
        assert row["source"].partition("#")[2] in known


def test_a_row_of_the_readmes_table_has_one_machine_and_one_depth():
    table = text_of("README.md").partition("\n## Numbers\n")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 5
    for name, machine, _measured, _against in rows[1:]:
        assert len(re.findall(r"\b(?:H100|H200|CPU)\b", machine)) == 1, f"{name}: one machine a row, not {machine}"
        assert not re.search(r"\d layers? (and|or|to) ", name), f"{name}: one depth a row"


def test_no_number_of_two_layers_is_a_headline():
    for name in ("README.md", "docs/results/index.md"):
        rows = [line for line in text_of(name).splitlines() if line.startswith("|")]
        assert [row for row in rows if re.search(r"\b(two|2) layers", row)] == []
