"""Scores one set of items by every route by which a reward is computed, and compares ids and scores.

The routes share the encoder's token ids and nothing else: packed prefix trees as in training, the Scorer with its own grouping,
stock transformers on each sequence alone, our server over each protocol, vLLM in this process, and each protocol of a running
server. Stock transformers is the baseline. Besides, transformers' tokenizer of the checkpoint must give the same ids for the
rendered text, as it does in a server that receives text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from polar_rm.common.extras import needs
from polar_rm.common.http import is_address, server_url
from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.model.bars import without_bars
from polar_rm.model.packing import first_fit, pack
from polar_rm.model.reward_model import RewardModel
from polar_rm.parity.items import Encoded, awkward_items, encode, ids_differ
from polar_rm.parity.report import BASELINE, Parity, Route
from polar_rm.parity.servers import Answer, ask_server
from polar_rm.protocols import PROTOCOLS, lmdeploy, vllm
from polar_rm.protocols.base import PoolingFlavour
from polar_rm.records import ScoreItem, group_items, one_reference
from polar_rm.scoring.scorer import Scorer

SERVE = "serve"
_ROW_TOKENS = 16384


def check(
    directory: str | Path,
    items: Sequence[ScoreItem] = (),
    *,
    against: str = SERVE,
    api_key: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    tolerance: float = 1e-3,
    progress: Progress = silent,
) -> Parity:
    """Score ``items`` (default: :func:`awkward_items`) by every route.

    against: further routes besides trainer and scorer: ``serve``, our server in this process; a server's URL; ``vllm``, in this
    process; ``transformers``, none. api_key: of the server at the URL. progress: a task for each route, in items.

    Raises:
        PolarError: the server does not answer, wants another key or supports no known protocol, or the packages for ``against``
            are not installed.
    """
    if against not in (BASELINE, SERVE, "vllm"):
        if not is_address(against):
            raise PolarError(f"{against}: expected serve, vllm, transformers or a server's URL such as http://127.0.0.1:8000")
        against = server_url(against)
    progress("loading", 0, 1)
    model = RewardModel.from_pretrained(directory, dtype=dtype, device=device)
    progress("loading", 1, 1)
    items = items or awkward_items(model.encoder.settings)
    encoded = [encode(model.encoder, item) for item in items]
    scorer, n_items = Scorer(model), len(items)
    progress("trainer, packed trees", 0, n_items)
    answers = [Answer("trainer, packed trees", _all(_trainer(model, items)))]
    progress("trainer, packed trees", n_items, n_items)
    progress("scorer", 0, n_items)
    answers.append(Answer("scorer", _all([scored.reward for scored in scorer.score(items)])))
    progress("scorer", n_items, n_items)
    if against == SERVE:
        answers += _server_in_process(scorer, encoded, progress)
    del model, scorer  # the other routes load the weights again
    if against == "vllm":
        progress("vllm", 0, n_items)
        answers.append(Answer("vllm", _all(_vllm(directory, encoded, dtype))))
    elif is_address(against):
        answers += ask_server(against, encoded, api_key=api_key, progress=progress)
    baseline = _transformers(directory, encoded, dtype, device, progress)
    routes = [Route(BASELINE, baseline, 0.0)] + [_route(answer, baseline) for answer in answers]
    return Parity(
        str(directory),
        len(encoded),
        sum(bool(item.tree.truncation) for item in encoded),
        sum(len(item.ids) for item in encoded),
        tolerance,
        ids_differ(directory, encoded),
        routes,
    )


@torch.inference_mode()
def _trainer(model: RewardModel, items: Sequence[ScoreItem]) -> list[float]:
    """Scores of rows of several trees, each with all outputs of one prompt and reference, as in a training step."""
    trees, items_of_tree = [], []
    for indices in group_items(items):
        first, outputs = items[indices[0]], [items[i].output for i in indices]
        for part, tree in model.encoder.encode_outputs(first.prompt, one_reference(first), outputs, first.wrapper):
            trees.append(tree)
            items_of_tree.append([indices[i] for i in part])
    scores = [math.nan] * len(items)
    for row in first_fit([tree.n_tokens for tree in trees], _ROW_TOKENS):
        values = iter(model.eval()(pack([trees[i] for i in row]).to(model.device)).tolist())
        for index in (index for i in row for index in items_of_tree[i]):
            scores[index] = next(values)
    return scores


@torch.inference_mode()
@without_bars()
def _transformers(directory: str | Path, encoded: Sequence[Encoded], dtype: str, device: str, progress: Progress) -> list[float]:
    from transformers import AutoModelForSequenceClassification

    progress(BASELINE, 0, len(encoded), "loading")
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=getattr(torch, dtype), trust_remote_code=False)
    model = model.to(device).eval()
    scores: list[float] = []
    for item in encoded:
        progress(BASELINE, len(scores), len(encoded), f"now {len(item.ids):,} tokens")
        scores.append(float(model(torch.tensor([item.ids], device=device), use_cache=False).logits))
    progress(BASELINE, len(scores), len(encoded))
    return scores


def _vllm(directory: str | Path, encoded: Sequence[Encoded], dtype: str) -> list[float]:
    try:
        from vllm import LLM, PoolingParams
    except ImportError as error:
        raise PolarError(f"vLLM is not installed here ({error}): run this in its environment, or use a server's URL") from error
    max_length = max(len(item.ids) for item in encoded)
    engine = LLM(str(directory), runner="pooling", convert="classify", dtype=dtype, max_model_len=max_length, enforce_eager=True)
    prompts = [{"prompt_token_ids": item.ids} for item in encoded]
    outputs = engine.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    return [float(output.outputs.probs[0]) for output in outputs]


def _all(scores: Sequence[float]) -> dict[int, float]:
    return dict(enumerate(scores))


def _server_in_process(scorer: Scorer, encoded: Sequence[Encoded], progress: Progress) -> list[Answer]:
    """Answers of `polar serve`'s application on a free port; `/pooling` is tested once for every shape of its replies."""
    with needs("serve", f"the server (to leave it out: --against {BASELINE})"):
        from polar_rm.serving.app import create_app
        from polar_rm.serving.batching import Batcher
        from polar_rm.serving.launch import in_thread
        from polar_rm.serving.service import Service
    answers: list[Answer] = []
    for flavour in get_args(PoolingFlavour):
        pooling = lmdeploy.POOLING if flavour == "lmdeploy" else vllm.POOLING
        others = [] if answers else [protocol for protocol in PROTOCOLS if protocol.path != pooling.path]
        service = Service("rm", scorer.model.encoder, Batcher(scorer.score_trees, batch_tokens=scorer.row_tokens))
        with in_thread(create_app(service, flavour=flavour)) as url:
            for answer in ask_server(url, encoded, protocols=[*others, pooling], progress=progress):
                is_pooling = answer.name.startswith(pooling.name)
                answers.append(replace(answer, name=f"{answer.name} ({flavour})") if is_pooling else answer)
    return answers


def _route(answer: Answer, baseline: Sequence[float]) -> Route:
    pairs = [(score, baseline[index]) for index, score in answer.scores.items() if not (answer.refused and math.isnan(score))]
    differences = [abs(score - other) for score, other in pairs]
    # max() may ignore a NaN, which must never count as agreement.
    largest = math.nan if any(map(math.isnan, differences)) else max(differences, default=math.nan)
    return Route(answer.name, list(answer.scores.values()), largest, answer.refused)
