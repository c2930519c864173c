"""Who can be compared: one file a kind, and the words by which a kind is named."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from polar_rm.common.paths import check_data, check_model
from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders.base import Contender, Given, ModelOptions

__all__ = ["KINDS", "Contender", "Given", "ModelOptions", "as_found", "find_contenders"]

KINDS = {
    "FOLDER": "a reward model saved by polar",
    "hf:FOLDER": "any one-label *ForSequenceClassification of transformers, in its own chat template and without references",
    "http://HOST:PORT": "a reward server; vLLM, SGLang and LMDeploy need #FOLDER behind it, of the model to encode with",
    "scores:FILE": "scores that were computed before, joined by id",
    "length": "closeness in length to the reference; without references: longer is better",
    "tfidf": "cosine of character TF-IDF with the reference",
    "embedding:FOLDER": "cosine of a sentence encoder's embeddings with the reference; also embedding:package:NAME",
}
"""What ``--model`` takes, and what it is."""

# NAME=SPEC: a name of letters, digits and a few signs, so that paths with "=" in them are rarely meant otherwise.
_NAMED = re.compile(r"([\w.+-]+)=(.+)")


def find_contenders(specs: Sequence[str | Path], options: ModelOptions | None = None) -> list[Contender]:
    """Contenders by what names them, see :data:`KINDS`; ``NAME=SPEC`` gives one another name. Only whether files and folders are
    there is looked at.

    Raises:
        PolarError: an unknown kind, nothing at a path, or two of one name.
    """
    # All are looked at before the first of them imports torch, which takes seconds.
    parsed = [_parse(str(spec)) for spec in specs]
    _check_names([name for name, _, _ in parsed])
    return [_make(name, kind, source, options or ModelOptions()) for name, kind, source in parsed]


def as_found(
    contenders: Sequence[str | Path | Contender], options: ModelOptions | None = None, *, is_partial: bool = False
) -> list[Contender]:
    """Contenders as they are, words as :func:`find_contenders` reads them. is_partial: see :class:`Contender`.

    Raises:
        PolarError: as there, or two of one name.
    """
    made = iter(find_contenders([each for each in contenders if not isinstance(each, Contender)], options))
    found = [each if isinstance(each, Contender) else next(made) for each in contenders]
    _check_names([each.name for each in found])
    for each in found:
        each.is_partial = is_partial
    return found


def _check_names(names: Sequence[str]) -> None:
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise PolarError(f"two contenders have the name {repeated!r}; give one another: NAME={repeated}")


def _parse(spec: str) -> tuple[str, str, str]:
    """Name, kind and source."""
    name = spec
    if (named := _NAMED.fullmatch(spec)) and not Path(spec).exists():
        name, spec = named.groups()
    kind, _, source = spec.partition(":")
    if Path(spec).is_dir():
        kind, source = "native", spec
    elif kind in ("http", "https"):
        kind, source = "http", spec
    elif spec in ("length", "tfidf"):
        pass
    elif kind not in ("hf", "scores", "embedding") or not source:
        words = [word.partition(":")[0] for word in KINDS if word != "FOLDER"]
        if ("/" not in spec or ":" in spec) and (close := difflib.get_close_matches(kind, words, 1)):
            raise PolarError(f"{spec}: no such contender; did you mean {close[0]}? There are: {', '.join(KINDS)}")
        kind, source = "native", spec
    if kind in ("native", "hf"):
        check_model(source)
    elif kind == "scores":
        check_data(source)
    return name, kind, source


def _make(name: str, kind: str, source: str, options: ModelOptions) -> Contender:
    match kind:
        case "http":
            from polar_rm.evaluation.contenders.server import Server

            return Server(name, source, options)
        case "hf":
            from polar_rm.evaluation.contenders.stock import Stock

            return Stock(name, source, options)
        case "scores":
            from polar_rm.evaluation.contenders.stored import Stored

            return Stored(name, source)
        case "embedding":
            from polar_rm.evaluation.contenders.embedding import Embedding

            return Embedding(name, source, options)
        case "native":
            from polar_rm.evaluation.contenders.native import Native

            return Native(name, source, options)
    from polar_rm.evaluation.contenders.baselines import BASELINES

    return BASELINES[kind](name)
