"""Markdown documents as tests read them: blocks of code, headings with their anchors, links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNCHECKED = re.compile(r"<!-- not checked: (.+) -->")
"""The line before a block that no test can check; the reason is part of it."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code. line: of the opening fence. unchecked: the reason of a mark before it, or None."""

    file: str
    line: int
    language: str
    text: str
    unchecked: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def documents() -> list[Path]:
    """All documents for people, in the order of their names."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / ".github").rglob("*.md"))]


def read_blocks(text: str, file: str) -> list[Block]:
    """The fenced blocks of a document.

    Raises:
        ValueError: a fence is never closed.
    """
    blocks: list[Block] = []
    lines, start = text.splitlines(), None
    for number, line in enumerate(lines, 1):
        fence = re.match(r" *(`{3,})(.*)", line)
        if start is None and fence:
            start, language, ticks = number, fence[2].strip(), fence[1]
        elif start is not None and fence and fence[1] == ticks and not fence[2]:
            before = UNCHECKED.fullmatch(lines[start - 2].strip()) if start > 1 else None
            content = "\n".join(lines[start : number - 1])
            blocks.append(Block(file, start, language, content, before[1] if before else None))
            start = None
    if start is not None:
        raise ValueError(f"{file}:{start}: the block is never closed")
    return blocks


def without_blocks(text: str) -> str:
    """A document without its fenced blocks; the numbers of lines stay."""
    kept, fenced = [], False
    for line in text.splitlines():
        is_fence = re.match(r" *`{3,}", line) is not None
        kept.append("" if fenced or is_fence else line)
        fenced ^= is_fence
    return "\n".join(kept)


def anchors(text: str) -> list[str]:
    """The anchors of a document's headings, by the rule of GitHub: lower case, no punctuation, ``-`` for spaces."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", without_blocks(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return found + re.findall(r'<a id="([^"]+)"', text)


def links(text: str) -> list[tuple[int, str]]:
    """(number of the line, target) of every inline link and image; code is no link."""
    found = []
    for number, line in enumerate(without_blocks(text).splitlines(), 1):
        found += [(number, target) for target in re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`]*`", "`", line))]
    return found


def dead_link(file: Path, target: str) -> str | None:
    """What is wrong with a link in ``file``, or None. Addresses of other sites are not asked."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    other = (file.parent / path).resolve() if path else file
    if not other.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(other.read_text(encoding="utf-8")):
        return f"{target}: no such heading"
    return None


def commands(script: str) -> list[list[str]]:
    """The simple commands of a shell script as words; assignments before a command, redirections and comments are left out."""
    found: list[list[str]] = []
    for line in re.sub(r"\\\n", " ", script).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
        lexer.wordchars += "$,:@%+^!"
        lexer.whitespace_split = True
        lexer.commenters = ""
        words: list[str] = []
        skip = False
        for word in lexer:
            if word.startswith("#"):
                break
            if word and set(word) <= set(";&|"):
                found.append(words)
                words = []
            elif word and set(word) <= set("<>"):
                skip = True
            elif skip:
                skip = False
            else:
                words.append(word)
        found.append(words)
    return [command for words in found if (command := _simple(words))]


def _simple(words: list[str]) -> list[str]:
    """A command without what stands before it: assignments, ``taskset``, keywords of the shell."""
    while words:
        if words[0] in ("do", "then", "export") or re.fullmatch(r"[A-Za-z_]\w*=.*", words[0], re.DOTALL):
            words = words[1:]
        elif words[0] == "taskset":
            words = words[3:]
        else:
            return words
    return []
