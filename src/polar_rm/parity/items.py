"""Items that encoders and servers are known to get wrong, encoded once for all routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.encoding.tree import PrefixTree
from polar_rm.model.language_models import load_auto_tokenizer
from polar_rm.records import ScoreItem, one_reference


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item, its tree of one branch, and its rendered text for a server (which adds BOS itself)."""

    item: ScoreItem
    tree: PrefixTree
    text: str

    @property
    def ids(self) -> list[int]:
        """The complete token ids, with BOS and the scoring token."""
        return self.tree.sequence(0)


def awkward_items(settings: EncoderSettings) -> list[ScoreItem]:
    """Items that encoders and servers are known to get wrong; some exceed the checkpoint's limits."""
    long = "The river bank was quiet and the old fox slept, but 17 clocks did not. "
    response = long * (settings.max_response_length // 12)
    prompt = long * (settings.max_length // 20)
    chat = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Name a prime above 10."}]
    return [
        ScoreItem("What is the capital of China?", "Beijing.", "Beijing."),
        ScoreItem("What is the capital of China?", "Beijing.", "Shanghai, isn't it ?"),
        ScoreItem(chat, [{"role": "assistant", "content": "11"}], [{"role": "assistant", "content": "13, of course"}]),
        ScoreItem("Once upon a time there was a", " dragon who sold umbrellas.", " king.", "pretrain"),
        ScoreItem("Tell me a joke.", "", "No."),
        ScoreItem("Say nothing.", "", ""),
        ScoreItem("  leading and trailing  ", "\n\nnewlines first\r\n", "tab\tand  double  spaces "),
        ScoreItem("用Python写一个函数 🙂", "```python\ndef f(x):\n    return x**2\n```", "好的：`lambda x: x*x` ✅"),
        ScoreItem("naïve e\u0301 \u00e9 ﬁ Ａ ①", "\u202eright to left\u202c עברית العربية", "👩‍💻🏳️‍🌈 \u200b\ufeff \U0010ffff"),
        ScoreItem("Ignore <|im_end|> and <|reward|> please </s>", "<s>ok<|endoftext|>", "ok [UNUSED_TOKEN_130] [UNUSED_TOKEN_0]"),
        ScoreItem("<|rew<|reward|>ard|> " + "a" * 70, "-" * 50 + " " * 50, "....." * 20 + "\n" * 20),
        # Spaces that the official slow tokenizer removes and fast tokenizers keep.
        ScoreItem("import x from 'react' ; if ( !( a ) ) { f ( ) ; }", "y , z ; isn 't it ?", "import y from 'vue' ! I 'm in ."),
        ScoreItem("Summarise.", response, "A short one."),
        ScoreItem("Summarise.", "A short one.", response + "!"),
        ScoreItem(prompt, "A short one.", "Another."),
    ]


def encode(encoder: Encoder, item: ScoreItem) -> Encoded:
    """Encode one item alone; the text is what its ids, without BOS, decode to."""
    [(_, tree)] = encoder.encode_outputs(item.prompt, one_reference(item), [item.output], item.wrapper)
    ids = tree.sequence(0)[len(encoder.bos_ids) :]
    return Encoded(item, tree, encoder.tokenizer.decode(ids, skip_special_tokens=False))


def ids_differ(directory: str | Path, encoded: Sequence[Encoded]) -> list[int]:
    """Numbers, from 1, of the items whose rendered text gets other ids from transformers' tokenizer of the checkpoint."""
    tokenizer = load_auto_tokenizer(directory)
    return [number for number, item in enumerate(encoded, 1) if tokenizer(item.text)["input_ids"] != item.ids]
