"""Contenders that can be compared: a file for each kind, and the text forms that name them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from polar_rm.common.files import read_json
from polar_rm.common.paths import check_data, check_model
from polar_rm.common.sources import HUB, is_model_id
from polar_rm.conversion.layouts import is_official
from polar_rm.conversion.official import native_folder
from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders.base import Contender, Given, ModelOptions

__all__ = ["KINDS", "Contender", "Given", "ModelOptions", "find_contenders", "resolve_contenders"]

KINDS = {
    "FOLDER": "a reward model saved by polar or an official one; also owner/name[@revision] of the Hugging Face Hub",
    "hf:FOLDER": "any one-label *ForSequenceClassification of transformers, in its own chat template and without references; "
    "also hf:owner/name[@revision], where the files say what the model is",
    "http://HOST:PORT": "a reward server; for vLLM, SGLang and LMDeploy add #FOLDER, the folder of the model to encode with",
    "scores:FILE": "scores that were computed before, joined by id",
    "length": "closeness in length to the reference; without references: longer is better",
    "tfidf": "cosine of character TF-IDF with the reference",
    "embedding:FOLDER": "cosine of a sentence encoder's embeddings with the reference; also embedding:package:NAME",
}
"""The text forms that ``--model`` takes, with a description of each."""

# NAME=SPEC. A name has only letters, digits and a few other characters, so that a path with "=" is rarely read as NAME=SPEC.
_NAMED = re.compile(r"([\w.+-]+)=(.+)")


def find_contenders(specs: Sequence[str | Path], options: ModelOptions | None = None) -> list[Contender]:
    """Contenders from their text forms, see :data:`KINDS`; ``NAME=SPEC`` gives a contender another name.

    Only the existence of files and folders is checked.

    Raises:
        PolarError: a kind is unknown, a path does not exist, or two contenders have one name.
    """
    # All forms are checked before the first contender imports torch, which takes seconds.
    parsed = [_parse(str(spec)) for spec in specs]
    _check_names([name for name, _, _ in parsed])
    return [_make(name, kind, source, options or ModelOptions()) for name, kind, source in parsed]


def resolve_contenders(
    contenders: Sequence[str | Path | Contender], options: ModelOptions | None = None, *, is_partial: bool = False
) -> list[Contender]:
    """Contenders unchanged, and text forms as :func:`find_contenders` reads them. is_partial: see :class:`Contender`.

    Raises:
        PolarError: the errors of :func:`find_contenders`, or two contenders have one name.
    """
    from_text = iter(find_contenders([spec for spec in contenders if not isinstance(spec, Contender)], options))
    resolved = [each if isinstance(each, Contender) else next(from_text) for each in contenders]
    _check_names([contender.name for contender in resolved])
    for contender in resolved:
        contender.is_partial = is_partial
    return resolved


def _check_names(names: Sequence[str]) -> None:
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise PolarError(f"two contenders have the name {repeated!r}; give one of them another name: NAME={repeated}")


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
        kinds = [form.partition(":")[0] for form in KINDS if form != "FOLDER"]
        if ("/" not in spec or ":" in spec) and (close := difflib.get_close_matches(kind, kinds, 1)):
            raise PolarError(f"{spec}: no such contender; did you mean {close[0]}? There are: {', '.join(KINDS)}")
        kind, source = "native", spec
    match kind:
        case "native":
            source = str(native_folder(source))
        case "hf":
            kind, source = _of_hub(source)
        case "scores":
            source = str(check_data(source))
    return name, kind, source


def _of_hub(source: str) -> tuple[str, str]:
    """Kind and folder of ``hf:SOURCE``. A folder is an ordinary classifier; an id means what its files are."""
    if Path(source).is_dir() or not (source.startswith(HUB) or is_model_id(source)):
        return "hf", str(check_model(source))
    folder = check_model(source)
    polar = is_official(folder) or isinstance(read_json(folder / "config.json").get("polar"), dict)
    return ("native", str(native_folder(folder))) if polar else ("hf", str(folder))


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
