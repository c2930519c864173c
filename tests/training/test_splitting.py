import json
import math
import random

import pytest
import torch
from support import tiny

from polar_rm.common.config import load_config
from polar_rm.encoding.tree import PrefixTree
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import World
from polar_rm.training.splitting import longer_than, parts_of
from polar_rm.training.trainer import Trainer


def tree(prefix, *branches):
    return PrefixTree([1] * prefix, [[number] * length for number, length in enumerate(branches, 2)], tuple(range(len(branches))))


def test_parts_fill_the_budget_in_order_and_scores_keep_their_places():
    trees = [tree(10, 5, 5, 5, 20, 1), tree(3, 4, 4)]
    parts = parts_of(trees, 20)
    assert [(part.scores.start, part.scores.stop) for part in parts] == [(0, 2), (2, 3), (3, 4), (4, 5), (5, 7)]
    assert [part.tree.n_tokens for part in parts] == [20, 15, 30, 11, 11]  # a candidate of 20 tokens can't be made shorter
    branches = [branch for part in parts for branch in part.tree.branches]
    assert branches == trees[0].branches + trees[1].branches
    assert sum((part.tree.ranks for part in parts), ()) == trees[0].ranks + trees[1].ranks


def test_only_trees_that_splitting_makes_shorter_are_split():
    trees = {3: tree(10, 5, 5), 5: tree(10, 5, 6), 7: tree(30, 5)}
    assert longer_than(20, trees) == {5: trees[5]}


def gradients(folder, row_tokens, scale):
    """(tokens of the comparison, gradients, loss) of one comparison of eight candidates, 32,768 tokens or more by ``scale`` 1."""
    model = folder / "lm"
    if not model.exists():
        changes = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
        tiny.causal_lm(model, max_position_embeddings=1 << 14, **changes)
    words, rng = [" the", " fox", " dog", " capital", " river"], random.Random(0)
    prompt, reference, *candidates = ("".join(rng.choices(words, k=int(n * scale))) for n in (1000, 2000, *[3700] * 8))
    texts = {"prompt": prompt, "reference": reference}
    data = folder / f"{scale}.jsonl"
    data.write_text(json.dumps({**texts, "candidates": candidates, "ranks": [0, *[1] * 7]}) + "\n")
    overrides = [f"model.init={model}", f"data.train=[{data}]", f"output={folder / f'{scale}-{row_tokens}'}"]
    overrides += [f"row_tokens={row_tokens}", "batch_size=1", "device=cpu", "precision=fp32", "optim.lr=1e-3"]
    trainer = Trainer(load_config(TrainConfig, [], overrides), World(0, 1, torch.device("cpu")))
    torch.nn.init.normal_(trainer.model.backbone.score.weight, generator=torch.Generator().manual_seed(0))
    values = trainer.accumulate([0])
    return trainer.train_set[0].n_tokens, {name: weight.grad for name, weight in trainer.weights.named.items()}, values["loss"]


@pytest.mark.slow
def test_a_comparison_of_32768_tokens_with_eight_candidates_is_trained_in_rows_of_8192(tmp_path):
    n_tokens, split, loss = gradients(tmp_path, 8192, 1)
    assert n_tokens >= 1 << 15
    assert math.isfinite(loss)
    assert all(gradient.isfinite().all() for gradient in split.values())
    assert float(split["model.layers.0.self_attn.q_proj.weight"].abs().max()) > 0


def test_a_comparison_has_the_gradients_of_the_whole_when_it_is_split(tmp_path):
    n_tokens, split, loss = gradients(tmp_path, 128, 1 / 64)
    assert n_tokens >= 1 << 9
    _, whole, expected = gradients(tmp_path, 1024, 1 / 64)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert split.keys() == whole.keys()
    for name, gradient in split.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-5 * float(whole[name].abs().max()), msg=name)
    assert float(whole["model.layers.0.self_attn.q_proj.weight"].abs().max()) > 0
