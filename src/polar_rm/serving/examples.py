"""Texts of the OpenAPI document: the description, and an example of every request body."""

from __future__ import annotations

import json
from typing import Any

DESCRIPTION = """\
Scores how much a candidate looks as if the reference's author had written it. Scores are raw and unbounded: only differences
for the same prompt and reference are meaningful. `/v1/score` takes unrendered texts. The other routes follow the protocols of
other engines and take rendered text (`prompt`, newline, `reference`, `<|reward|>`, `prompt`, newline, `candidate`,
`[UNUSED_TOKEN_130]`) or its token ids.
"""

_RENDERED = "What is the capital of China?\nBeijing.<|reward|>What is the capital of China?\nIt is Beijing.[UNUSED_TOKEN_130]"


def _example(summary: str, value: dict[str, Any]) -> Any:
    return {"summary": summary, "value": value}


_INPUTS = {"texts": _example("Rendered texts", {"model": "rm", "input": [_RENDERED]})}
BODIES: dict[str, Any] = {
    "/classify": {
        "sglang": _example("SGLang, texts", {"text": [_RENDERED]}),
        "vllm": _example("vLLM, texts", {"model": "rm", "input": [_RENDERED], "use_activation": False}),
    },
    "/pooling": _INPUTS,
    "/v1/embeddings": _INPUTS,
    "/get_reward": {
        "openrlhf": _example(
            "Templated prompts and answers",
            {
                "query": ["<|im_start|>user\nWhat is the capital of China?<|im_end|>\n<|im_start|>assistant\nBeijing.<|im_end|>"],
                "prompts": ["<|im_start|>user\nWhat is the capital of China?<|im_end|>\n<|im_start|>assistant\n"],
                "labels": [{"reference": "It is Beijing.", "prompt": "What is the capital of China?"}],
            },
        )
    },
    "/v1/score": {
        "texts": _example(
            "Two candidates",
            {
                "items": [
                    {
                        "prompt": "What is the capital of China?",
                        "reference": "Beijing.",
                        "outputs": ["It is Beijing.", "Shanghai."],
                    }
                ],
                "transform": "group_zscore",
            },
        ),
        "anchored": _example(
            "Beside the reference itself",
            {
                "items": [{"prompt": "What is the capital of China?", "reference": "Beijing.", "outputs": ["It is Beijing."]}],
                "transform": "anchored",
            },
        ),
        "references": _example(
            "Several references",
            {
                "items": [
                    {
                        "prompt": "Name a colour.",
                        "references": ["Blue.", "Dark red."],
                        "outputs": ["Green.", "Seven."],
                    }
                ],
                "combine": "best",
            },
        ),
        "turns": _example(
            "A reward after every turn",
            {
                "items": [
                    {
                        "prompt": "What is the capital of China?",
                        "reference": "Beijing.",
                        "outputs": [
                            [
                                {"role": "assistant", "content": "Shanghai."},
                                {"role": "user", "content": "Are you sure?"},
                                {"role": "assistant", "content": "No, it is Beijing."},
                            ]
                        ],
                    }
                ],
                "each_turn": True,
            },
        ),
        "messages": _example(
            "Messages",
            {
                "items": [
                    {
                        "prompt": [{"role": "user", "content": "What is the capital of China?"}],
                        "reference": [{"role": "assistant", "content": "Beijing."}],
                        "outputs": [[{"role": "assistant", "content": "Shanghai."}]],
                    }
                ]
            },
        ),
    },
}


def hint(path: str) -> str:
    """The end of a message about a body of the wrong shape: the first example of the path's bodies; empty for other paths."""
    bodies = BODIES.get(path)
    if not bodies:
        return ""
    example = json.dumps(next(iter(bodies.values()))["value"], ensure_ascii=False)
    return f"; a body of {path} is, for example, {example}; /openapi.json describes all"


DESCRIPTIONS = {
    "/classify": "SGLang's body (`text` or `input_ids`) gets SGLang's reply; vLLM's body (`input`) gets vLLM's reply.",
    "/pooling": "vLLM and LMDeploy have the same body; the server's `--pooling-flavour` sets the shape of the reply.",
    "/v1/embeddings": "One embedding of length one per input: the raw score.",
}
"""Descriptions of the routes of other engines."""
