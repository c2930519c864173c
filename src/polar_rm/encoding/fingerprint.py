"""Fingerprints of a tokenizer's behaviour: equal fingerprints mean equal ids, whichever library wrote the tokenizer's file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer

VERSION = 2
"""The version of the fingerprint in new checkpoints. Version 1 covered only vocabulary, merges and the ids of one probe."""

_PROBE = (
    "It's 12,345.6 tabs\t and  spaces\r\n\n```py\ndef f(x): return x**2```  naïve Ünïcode 中文 日本 한국어 🙂👩‍💻 <|x|> </s>."
)
# Texts that tokenizers treat differently for reasons outside their settings, such as the Unicode tables of the library.
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
# Keys with the values that equal the behaviour of older libraries, which lacked the key. None means that a key is not set.
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
# These keys change offsets, but no id.
_WITHOUT_EFFECT = ("trim_offsets",)

Ids = Callable[[Sequence[str]], list[list[int]]]


def fingerprint(tokenizer: Tokenizer, specials: Sequence[str], bos_ids: Sequence[int], ids: Ids) -> str:
    """The fingerprint covers normaliser, pre-tokenizer, model with its options, added tokens with their flags, special tokens,
    BOS and the ids of the probe texts.

    It leaves out what runs after the ids (decoder) and what the encoder disables (post-processor, truncation, padding).
    """
    parts = json.loads(tokenizer.to_str())
    kept = {key: parts.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return digest([_canonical(kept), list(specials), list(bos_ids), ids(_PROBES)])


def fingerprint_1(tokenizer: Tokenizer, bos_ids: Sequence[int], ids: Ids) -> str:
    """The fingerprint of the first checkpoints. It misses normalisers and flags that do not change the ids of its one probe."""
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    scores = model["vocab"] if isinstance(model["vocab"], list) else []
    vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=True).items())
    return digest([vocabulary, merges, scores, ids([_PROBE])[0], bos_ids])


def digest(value: object) -> str:
    """The hash of a JSON value: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def _canonical(value: Any, key: str = "") -> Any:
    """One form for all forms in which libraries write a setting: with or without defaults, merges as strings or as pairs."""
    if isinstance(value, dict):
        if key == "vocab":
            return value
        value = _as_newer(value)
        settings = {name: _canonical(setting, name) for name, setting in value.items()}
        return {name: setting for name, setting in settings.items() if not _is_default(name, setting)}
    if isinstance(value, list):
        if key == "merges":
            return [merge.split(" ") if isinstance(merge, str) else merge for merge in value]
        return value if key == "vocab" else [_canonical(each) for each in value]
    return value


def _as_newer(value: dict[str, Any]) -> dict[str, Any]:
    """The settings of Metaspace with the former ``add_prefix_space`` as ``prepend_scheme``; other settings unchanged."""
    if value.get("type") != "Metaspace" or "prepend_scheme" in value:
        return value
    value = dict(value)
    return value | {"prepend_scheme": "always" if value.pop("add_prefix_space", True) else "never"}


def _is_default(key: str, value: Any) -> bool:
    return value is None or key in _WITHOUT_EFFECT or any(value == default for default in _DEFAULTS.get(key, ()))
