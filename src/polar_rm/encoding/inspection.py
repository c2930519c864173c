"""Shows one encoded comparison on the terminal: what the model reads, where branches begin, where scores are read."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text as RichText

from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.tree import PrefixTree
from polar_rm.records import Comparison

_LEGEND = [
    ("prompt and reference", "cyan"),
    ("separator", "bold black on magenta"),
    ("shared part of the candidates", "blue"),
    ("a candidate's own branch", "green"),
    ("score", "bold white on red"),
]


def render(comparison: Comparison, encoder: Encoder, *, ids: bool = False) -> RenderableType:
    """Prefix, branches, score positions and truncation. ids: show each token with its id."""
    tree = encoder.encode(comparison)
    separator = tree.prefix.index(encoder.separator_id)
    prefix = RichText()
    prefix.append(_tokens(tree.prefix[: len(encoder.bos_ids)], encoder, ids), style="dim")
    prefix.append(_tokens(tree.prefix[len(encoder.bos_ids) : separator], encoder, ids), style="cyan")
    prefix.append(_tokens([encoder.separator_id], encoder, ids), style="bold black on magenta")
    prefix.append(_tokens(tree.prefix[separator + 1 :], encoder, ids), style="blue")
    table = Table("branch", "rank", "position of the score", "tokens", "cut", "text", show_lines=True)
    for number, branch in enumerate(tree.branches):
        text = RichText(_tokens(branch[:-1], encoder, ids), style="green")
        text.append(_tokens(branch[-1:], encoder, ids), style="bold white on red")
        position = len(tree.prefix) + len(branch) - 1
        truncation = tree.truncation.candidates[number]
        table.add_row(str(number), str(tree.ranks[number]), str(position), str(len(branch)), str(truncation or "-"), text)
    legend = RichText.assemble(*[part for name, style in _LEGEND for part in ((name, style), "  ")])
    return Group(legend, "", prefix, table, RichText(_summary(tree, encoder)))


def _tokens(token_ids: list[int], encoder: Encoder, ids: bool) -> str:
    if not ids:
        return encoder.tokenizer.decode(token_ids, skip_special_tokens=False)
    return " ".join(f"{encoder.tokenizer.decode([token], skip_special_tokens=False)!r}:{token}" for token in token_ids)


def _summary(tree: PrefixTree, encoder: Encoder) -> str:
    separate = sum(len(tree.sequence(i)) for i in range(len(tree.branches)))
    truncation = tree.truncation
    return (
        f"prefix {len(tree.prefix)} tokens; whole tree {tree.n_tokens} tokens, as separate sequences {separate} "
        f"({separate / tree.n_tokens:.2f}x)\n"
        f"truncated: prompt {truncation.prompt} (from its beginning), reference {truncation.reference}, candidates "
        f"{list(truncation.candidates)} (limits: {encoder.settings.max_length} and {encoder.settings.max_response_length} "
        "per response)\n"
        f"encoder {encoder.settings.template} {encoder.settings.version}, hash {encoder.hash}"
    )
