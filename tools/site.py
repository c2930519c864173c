"""Assemble the sources of the documentation site in build/site/docs: the documents with their links, and the generated reference.

python tools/site.py && mkdocs build --strict
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
import reference

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "build/site/docs"
LINK = re.compile(r"(\]\()([^()\s:#]+)((?:#[^()\s]*)?\))")


def site_path(source: Path) -> Path:
    """Where a file of the repository is on the site, relative to its root.

    Raises:
        ValueError: it is on no page.
    """
    if source.is_relative_to(ROOT / "docs"):
        page = source.relative_to(ROOT / "docs")
        return page.with_suffix(".md") if page.suffix == ".ipynb" else page
    if source.parent == ROOT and source.suffix == ".md":
        return Path("project", source.name.lower())
    raise ValueError(f"{source.relative_to(ROOT)} is not on the site: name it without a link")


def with_links(text: str, source: Path) -> str:
    """A document with its links as they are on the site. Code is left as it is."""
    here = site_path(source).parent

    def moved(match: re.Match[str]) -> str:
        target = site_path((source.parent / match[2]).resolve())
        return f"{match[1]}{Path(os.path.relpath(target, here)).as_posix()}{match[3]}"

    parts = re.split(r"(^ *```.*?^ *```$|`[^`\n]*`)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if index % 2 else LINK.sub(moved, part) for index, part in enumerate(parts))


def notebook_page(source: Path) -> str:
    """A notebook as Markdown: its texts, its code in blocks, and where the file is."""
    parts = []
    for cell in json.loads(source.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    parts.insert(1, f"The notebook is `{source.relative_to(ROOT).as_posix()}` of the repository.")
    return "\n\n".join(parts) + "\n"


def assemble() -> None:
    """Write all sources anew."""
    shutil.rmtree(TARGET, ignore_errors=True)
    pages = set(page_names(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    for source in sorted([*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*") if path.is_file())]):
        path = site_path(source)
        if path.suffix == ".md" and path.as_posix() not in pages:
            if source.parent == ROOT:
                continue  # such as SECURITY.md, which GitHub shows
            raise SystemExit(f"{source.relative_to(ROOT)}: the navigation of mkdocs.yml lacks {path}")
        (TARGET / path).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = notebook_page(source) if source.suffix == ".ipynb" else source.read_text(encoding="utf-8")
            (TARGET / path).write_text(with_links(text, source), encoding="utf-8")
        else:
            shutil.copyfile(source, TARGET / path)
    (TARGET / "reference").mkdir()
    for name, text in reference.pages().items():
        (TARGET / "reference" / f"{name}.md").write_text(text, encoding="utf-8")


def page_names(entry: object) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    inner = list(entry.values()) if isinstance(entry, dict) else entry if isinstance(entry, list) else []
    return [name for each in inner for name in page_names(each)]


if __name__ == "__main__":
    assemble()
