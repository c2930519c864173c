from __future__ import annotations

import pytest
import torch
from support import tiny
from transformers import AutoModelForSequenceClassification

from polar_rm import attention
from polar_rm.attention import TreeLayout, TreeSpan
from polar_rm.attention.dense import dense_mask
from polar_rm.attention.flex import block_mask
from polar_rm.errors import PolarError, UnsupportedModel

attention.register()
LAYOUT = TreeLayout((TreeSpan(0, 3, (2, 1)), TreeSpan(6, 1, (2,))))


def test_positions_and_counts():
    assert LAYOUT.n_tokens == 9
    assert LAYOUT.position_ids().tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2]
    assert LAYOUT.score_positions().tolist() == [4, 5, 8]
    assert LAYOUT.attention_pairs == int(dense_mask(LAYOUT).sum())
    assert LAYOUT.last.attention_pairs == int(dense_mask(LAYOUT)[LAYOUT.score_positions()].sum())


@pytest.mark.parametrize(("prefix", "branches"), [(0, (1,)), (2, ()), (2, (1, 0))])
def test_empty_parts_are_refused(prefix, branches):
    with pytest.raises(ValueError, match="at least one token"):
        TreeSpan(0, prefix, branches)


def test_what_an_implementation_derives_is_made_once_for_all_layers():
    layout = TreeLayout(LAYOUT.spans)
    made = layout.once(lambda row, device: object(), torch.device("cpu"))
    masks = [row.once(block_mask, torch.device("cpu")) for row in (layout, layout, layout.last)]
    assert masks[0] is masks[1] is masks[2] is not made


def test_gaps_are_refused():
    with pytest.raises(ValueError, match="should start at 6"):
        TreeLayout((TreeSpan(0, 3, (2, 1)), TreeSpan(7, 1, (2,))))


def run(family="llama", ids=None, tree=LAYOUT, training=False, **changes):
    config = tiny.config(family, num_labels=1, attn_implementation="tree_cpu", **changes)
    model = AutoModelForSequenceClassification.from_config(config).train(training).model
    ids = torch.ones(1, 9, dtype=torch.long) if ids is None else ids
    return model(ids, use_cache=False, **({"tree": tree} if tree else {}))


def test_misuse_is_refused_instead_of_scored():
    with pytest.raises(PolarError, match="without a tree"):
        run(tree=None)
    with pytest.raises(PolarError, match=r"is \[1, 9\]"):
        run(ids=torch.ones(2, 9, dtype=torch.long))
    with pytest.raises(PolarError, match=r"given \[1, 8\]"):
        run(ids=torch.ones(1, 8, dtype=torch.long))
    with pytest.raises(UnsupportedModel, match="dropout"):
        run(training=True, attention_dropout=0.1)
    with pytest.raises(UnsupportedModel, match="sliding window"):
        run("mistral", sliding_window=4)


def test_flex_has_no_backward_on_a_cpu():
    query = torch.ones(1, 2, 9, 4, requires_grad=True)
    with pytest.raises(PolarError, match="use tree_cpu"):
        attention.IMPLEMENTATIONS["tree_flex"](query, query, query, LAYOUT, 0.5)
