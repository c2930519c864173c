"""A name for what a tokenizer does to any text: equal names mean equal ids, whichever library wrote its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer

VERSION = 2
"""Of the fingerprint that checkpoints are saved with. 1 covered vocabulary, merges and the ids of one probe alone."""

_PROBE = (
    "It's 12,345.6 tabs\t and  spaces\r\n\n```py\ndef f(x): return x**2```  naïve Ünïcode 中文 日本 한국어 🙂👩‍💻 <|x|> </s>."
)
# What tokenizers treat differently and their settings may not tell, such as the Unicode tables of the library that runs them.
_PROBES = [
    _PROBE,
    "cafe\u0301 e\u0302\u0323 \uff41\uff42\uff23 \ufb01ne ① ½ ㎏ \u017f İstanbul ΣΑΣ",  # decomposed, compatibility forms, case
    "DON'T we'LL I'm They'Ve can`t o'clock",
    "1 12 123 1234 12345678901234567890 1,234,567.89 0x1F ٣٤٥ \uff11\uff12\uff13",
    "שלום עליכם مرحبا بالعالم \u202eback\u202c हिन्दी ไทย",
    "a\x00b\x07c\x7f\u0085\u00a0\u2003\u200b\u2028\ufeff\u00ad\u0378\ue000\U000e0041\U0010ffff",  # control, blank, unassigned
    " x  y   z\t\tw\n \n\n  v\r\n\r\n u \t\n",
    "HTTPServer2Go snake_case kebab-case CamelCase $100% #tag @user https://a.b/c?d=e&f=g",
    "<|im_start|>user\n<|im_end|><s></s><unk><pad>[INST] [/INST] ▁under ##ing Ġspace",
]
# Keys with the values that mean what tokenizers did before they had the key. None everywhere means that a key is not set.
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "byte_fallback": (False,),
    "ignore_merges": (False,),
    "fuse_unk": (False,),
    "use_regex": (True,),
    "split": (True,),
    "continuing_subword_prefix": ("",),
    "end_of_word_suffix": ("",),
    "dropout": (0.0,),
}
# Decides offsets, no id.
_WITHOUT_EFFECT = ("trim_offsets",)

Ids = Callable[[Sequence[str]], list[list[int]]]


def fingerprint(tokenizer: Tokenizer, specials: Sequence[str], bos_ids: Sequence[int], ids: Ids) -> str:
    """Of normaliser, pre-tokenizer, model with its options, added tokens with their flags, specials, BOS, and probe texts' ids.

    What comes after the ids (decoder) and what the encoder takes away (post-processor, truncation, padding) is left out.
    """
    parts = json.loads(tokenizer.to_str())
    kept = {key: parts.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return digest([_canonical(kept), list(specials), list(bos_ids), ids(_PROBES)])


def fingerprint_1(tokenizer: Tokenizer, bos_ids: Sequence[int], ids: Ids) -> str:
    """As the first checkpoints have it. It is blind to normalisers and flags that its one probe does not show."""
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    scores = model["vocab"] if isinstance(model["vocab"], list) else []
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items())
    return digest([vocabulary, merges, scores, ids([_PROBE])[0], bos_ids])


def digest(value: object) -> str:
    """16 hexadecimal digits that name a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def _canonical(value: Any, key: str = "") -> Any:
    """One form for all the ways in which libraries write a setting: defaults written out or not, merges as strings or pairs."""
    if isinstance(value, dict):
        if key == "vocab":
            return value
        value = _as_newer(value)
        kept = {inner: _canonical(each, inner) for inner, each in value.items()}
        return {inner: each for inner, each in kept.items() if not _is_default(inner, each)}
    if isinstance(value, list):
        if key == "merges":
            return [merge.split(" ") if isinstance(merge, str) else merge for merge in value]
        return value if key == "vocab" else [_canonical(each) for each in value]
    return value


def _as_newer(value: dict[str, Any]) -> dict[str, Any]:
    """Metaspace's former ``add_prefix_space`` under its new name."""
    if value.get("type") != "Metaspace" or "prepend_scheme" in value:
        return value
    value = dict(value)
    return value | {"prepend_scheme": "always" if value.pop("add_prefix_space", True) else "never"}


def _is_default(key: str, value: Any) -> bool:
    return value is None or key in _WITHOUT_EFFECT or any(value == default for default in _DEFAULTS.get(key, ()))
