"""The site: its navigation has every document, links are right where pages are moved, and the forms for people are valid."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site():
    specification = importlib.util.spec_from_file_location("tools_site", ROOT / "tools/site.py")
    module = importlib.util.module_from_spec(specification)
    before = list(sys.path)
    specification.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_the_navigation_has_every_document_once(site):
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = [name for entry in settings["nav"] for name in site.page_names(entry)]
    documents = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    generated = {f"reference/{name}.md" for name in ("commands", "configs", "http", "python")}
    project = {f"project/{name}.md" for name in ("readme", "changelog", "contributing")}
    notebooks = {site.site_path(path).as_posix() for path in (ROOT / "docs").rglob("*.ipynb")}
    assert len(notebooks) == 3
    assert sorted(pages) == sorted(documents | generated | project | notebooks)


def test_a_notebook_is_a_page_with_its_code(site, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "ROOT", tmp_path)
    cells = [{"cell_type": "markdown", "source": ["# A\n", "text"]}, {"cell_type": "code", "source": ["x = 1\n", "x"]}]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    expected = "# A\ntext\n\nThe notebook is `a.ipynb` of the repository.\n\n```python\nx = 1\nx\n```\n"
    assert site.notebook_page(tmp_path / "a.ipynb") == expected


def test_the_site_has_colours_for_the_dark():
    settings = yaml.safe_load((ROOT / "zensical.yml").read_text())
    assert settings["INHERIT"] == "mkdocs.yml"
    assert [each["media"] for each in settings["theme"]["palette"]] == [
        f"(prefers-color-scheme: {scheme})" for scheme in ("light", "dark")
    ]
    assert "--config-file zensical.yml" in (ROOT / "Makefile").read_text()


@pytest.mark.slow
def test_the_site_is_built_strictly():
    """The build ends with an error at a dead link or anchor."""
    for command in (["tools/site.py"], ["-m", "zensical", "build", "--config-file", "zensical.yml", "--clean", "--strict"]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    page = (ROOT / "build/site/html/notebooks/1_score_and_look.html").read_text()
    assert "Score and look" in page and "prefers-color-scheme: dark" in page


def test_links_follow_pages_that_move(site):
    text = "[a](docs/rft.md#judges) [b](https://x.y/z.md) `[c](docs/rft.md)` [d](CONTRIBUTING.md) [e](#here)"
    expected = "[a](../rft.md#judges) [b](https://x.y/z.md) `[c](docs/rft.md)` [d](contributing.md) [e](#here)"
    fenced = "\n```\n[f](docs/rft.md)\n```\n"
    assert site.with_links(text + fenced, ROOT / "README.md") == expected + fenced
    assert site.with_links("[a](../README.md#start)", ROOT / "docs/rewards.md") == "[a](project/readme.md#start)"
    with pytest.raises(ValueError, match=r"src/polar_rm/errors\.py is not on the site"):
        site.with_links("[a](src/polar_rm/errors.py)", ROOT / "README.md")


def test_every_link_of_a_document_leads_to_a_page_of_the_site(site):
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        site.with_links(path.read_text(encoding="utf-8"), path)


def test_the_reference_has_every_verb_key_route_and_name(site):
    text = site.reference.configs()
    assert "## pretrain" in text
    assert "row_tokens: " in text
    assert "## recipe:pretrain" in text
    text = site.reference.python()
    for expected in ("### polar_rm.load", "(directory: 'str | Path'", "RewardClient.score(", "### polar_rm.rft.trl.PolarReward"):
        assert expected in text


def test_routes_are_in_the_reference(site):
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    text = site.reference.http()
    assert "## POST /v1/score" in text
    assert '"prompt"' in text


def test_forms_and_hooks_are_what_they_should_be():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(form)
            assert all(field["attributes"]["label"] for field in form["body"])
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert hooks == {line.strip().removeprefix("$(BIN)/").removesuffix(" .") for line in lint[1].splitlines()}


def test_the_citation_has_the_version_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == version
