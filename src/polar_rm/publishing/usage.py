"""The part of a card that says how the model is loaded, by engine and trainer."""

from __future__ import annotations

from typing import Any

_QWEN = """
SGLang's classes of this family have a bias in the head that the checkpoint lacks and that stays random: serve it with
`polar serve` or vLLM.
"""


def usage(name: str, config: dict[str, Any], max_length: int) -> str:
    """How to load the model. name: an id of the Hub or a folder. max_length: of the encoder, in tokens."""
    length = min(max_length, int(config.get("max_position_embeddings") or max_length))
    is_qwen = str(config.get("model_type", "")).startswith("qwen")
    sglang = (
        _QWEN
        if is_qwen
        else f"\n```sh\npython -m sglang.launch_server --model-path {name} --is-embedding --context-length {length}\n```\n"
    )
    return f"""## How to use it

```python
import polar_rm

scorer = polar_rm.load("{name}")
scorer.score_outputs(prompt="2 + 2?", reference="4", outputs=["4", "5"])
```

In transformers, with the ids of polar's encoder (it loads no torch):

```python
import torch
from transformers import AutoModelForSequenceClassification

from polar_rm.encoding.encoder import Encoder

model = AutoModelForSequenceClassification.from_pretrained("{name}", dtype=torch.float32)
[(_, tree)] = Encoder.from_pretrained("{name}").encode_outputs("2 + 2?", "4", ["5"])
reward = model(torch.tensor([tree.sequence(0)])).logits[0, 0]
```

As a server, for rewards over HTTP (`polar_rm.client`, `curl`, the official client):

```sh
polar serve --model {name}
```

vLLM, whose sigmoid on scores must be off:

```sh
vllm serve {name} --runner pooling --convert classify --max-model-len {length} --pooler-config '{{"use_activation": false}}'
```

SGLang, at `/classify`:
{sglang}
TRL's GRPO and RLOO, beside a server or in process:

```python
from polar_rm.rft.trl import PolarReward

reward = PolarReward("{name}")  # reward_funcs=reward; rows need a column `reference`
```

verl: `reward.custom_reward_function.path=pkg://polar_rm.rft.verl`; the reference is `reward_model.ground_truth` of a row."""
