from __future__ import annotations

import pytest
import torch
from support import tiny
from transformers import AttentionInterface, AutoModelForSequenceClassification

from polar_rm import attention
from polar_rm.attention import TreeLayout, TreeSpan, cpu, flex
from polar_rm.attention.dense import dense_mask
from polar_rm.errors import PolarError, UnsupportedModel

attention.register()
LAYOUT = TreeLayout((TreeSpan(0, 3, (2, 1)), TreeSpan(6, 1, (2,))))
TREE = LAYOUT.tensors()


def test_positions_and_counts():
    assert LAYOUT.n_tokens == 9
    assert TREE.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2]
    assert TREE.scores.tolist() == [4, 5, 8]
    assert LAYOUT.attention_pairs == int(dense_mask(TREE).sum())
    assert LAYOUT.score_pairs == int(dense_mask(TREE)[TREE.scores].sum())


@pytest.mark.parametrize("padding", [0, 3])
def test_tensors_say_what_the_layout_does(padding):
    tree = LAYOUT.tensors(padding)
    pad = [[9, 3, 9, 0]] if padding else []
    assert tree.segments.tolist() == [[0, 3, 0, 0], [3, 2, 0, 3], [5, 1, 0, 3], [6, 1, 6, 0], [7, 2, 6, 1], *pad]
    assert tree.trees.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1] + [2] * padding
    assert tree.branches.tolist() == [0, 0, 0, 1, 1, 2, 0, 1, 1] + [0] * padding
    assert tree.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, *range(padding)]
    assert tree.scores.tolist() == [4, 5, 8]


@pytest.mark.parametrize("padding", [0, 3])
def test_sequences_for_the_kernels_of_accelerators(padding):
    """Only CUDA reads these tensors, so that no score on a CPU would show an error in them."""
    tree = LAYOUT.tensors(padding)
    assert tree.cu_seqlens.tolist() == [0, 3, 5, 6, 7, 9] + [9 + padding] * bool(padding)
    assert tree.prefix_indices.tolist() == [0, 1, 2, 6]
    assert tree.prefix_cu_seqlens_q.tolist() == [0, 3, 6, 7, 9] + [9 + padding] * bool(padding)
    assert tree.prefix_cu_seqlens_k.tolist() == [0, 0, 3, 3, 4] + [4] * bool(padding)
    assert tree.score_keys.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8]
    assert tree.score_cu_seqlens_q.tolist() == [0, 1, 2, 3] and tree.score_cu_seqlens_k.tolist() == [0, 5, 9, 12]
    assert (tree.max_seqlens.tolist(), tree.prefix_max_seqlens.tolist(), tree.score_max_seqlens.tolist()) == (
        [3, 3],
        [3, 3],
        [2, 5],
    )


def test_pairs_are_counted_as_the_kernel_processes_them():
    """The buffer for probabilities has the size that all blocks need, or a little more in bfloat16."""
    tree = TreeLayout((TreeSpan(0, 150, (300, 1, 128)), TreeSpan(579, 1, (129,)))).tensors(5)
    for multiple, counted in ((1, tree.block_pairs), (cpu.PAD_MULTIPLE, tree.padded_block_pairs)):
        blocks = [block for segment in cpu._segments(tree.segments, False, multiple) for block in segment.blocks()]
        needed = sum(block.size * block.n_keys for block in blocks)
        assert needed == counted if multiple == 1 else needed <= counted < 1.2 * needed


@pytest.mark.parametrize(("prefix", "branches"), [(0, (1,)), (2, ()), (2, (1, 0))])
def test_empty_parts_are_refused(prefix, branches):
    with pytest.raises(ValueError, match="at least one token"):
        TreeSpan(0, prefix, branches)


def test_a_block_mask_is_built_once_for_all_layers_and_freed_with_its_row():
    tree, other = LAYOUT.tensors(), LAYOUT.tensors()
    before = len(flex._MASKS)
    assert flex.block_mask(tree) is flex.block_mask(tree) is not flex.block_mask(other)
    assert len(flex._MASKS) == before + 2
    del tree, other
    assert len(flex._MASKS) == before


def test_branches_may_leave_the_prefix_before_its_end():
    """As the turns of one conversation do. The keys of each are gathered for accelerators; on a CPU they are one range."""
    layout = TreeLayout((TreeSpan(0, 4, (1, 2, 1), (2, 4, 1)), TreeSpan(8, 1, (1,))))
    tree = layout.tensors(2)
    assert tree.segments.tolist() == [
        [0, 4, 0, 0],
        [4, 1, 0, 2],
        [5, 2, 0, 4],
        [7, 1, 0, 1],
        [8, 1, 8, 0],
        [9, 1, 8, 1],
        [10, 2, 10, 0],
    ]
    assert tree.positions.tolist() == [0, 1, 2, 3, 2, 4, 5, 1, 0, 1, 0, 1]
    assert tree.visible.tolist()[4:8] == [2, 4, 4, 1] and tree.visible[9] == 1
    assert tree.prefix_indices.tolist() == [0, 1, 0, 1, 2, 3, 0, 8]
    assert tree.prefix_cu_seqlens_q.tolist() == [0, 4, 5, 7, 8, 9, 10, 12]
    assert tree.prefix_cu_seqlens_k.tolist() == [0, 0, 2, 6, 7, 7, 8, 8]
    assert tree.score_keys.tolist() == [0, 1, 4, 0, 1, 2, 3, 5, 6, 0, 7, 8, 9]
    mask = dense_mask(layout.tensors())
    assert layout.attention_pairs == int(mask.sum()) and layout.score_pairs == int(mask[tree.scores].sum())


@pytest.mark.parametrize("shared", [(1, 2), (0, 1, 1), (1, 1, 5)])
def test_a_branch_that_continues_no_token_of_its_prefix_is_refused(shared):
    with pytest.raises(ValueError, match="at least one token of its prefix, and at most all"):
        TreeSpan(0, 4, (1, 2, 1), shared)


def test_gaps_are_refused():
    with pytest.raises(ValueError, match="should start at 6"):
        TreeLayout((TreeSpan(0, 3, (2, 1)), TreeSpan(7, 1, (2,))))


def run(family="llama", ids=None, tree=TREE, training=False, **changes):
    config = tiny.config(family, num_labels=1, attn_implementation="tree_cpu", **changes)
    model = AutoModelForSequenceClassification.from_config(config).train(training).model
    ids = torch.ones(1, 9, dtype=torch.long) if ids is None else ids
    return model(ids, use_cache=False, **({"tree": tree} if tree else {}))


def test_misuse_is_refused_instead_of_scored():
    with pytest.raises(PolarError, match="without a tree"):
        run(tree=None)
    with pytest.raises(PolarError, match=r"is \[1, 9\]"):
        run(ids=torch.ones(2, 9, dtype=torch.long))
    with pytest.raises(PolarError, match=r"got \[1, 8\]"):
        run(ids=torch.ones(1, 8, dtype=torch.long))
    with pytest.raises(UnsupportedModel, match="dropout"):
        run(training=True, attention_dropout=0.1)
    with pytest.raises(UnsupportedModel, match="sliding window"):
        run("mistral", sliding_window=4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"softcap": 30.0}, "caps its logits or adds sinks"),
        ({"s_aux": torch.zeros(2)}, "caps its logits or adds sinks"),
        ({"sliding_window": 4}, "sliding window"),
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "not causal"),
    ],
)
def test_attention_that_is_not_plain_is_refused(options, reason):
    attention.register()
    module, query = torch.nn.Module(), torch.ones(1, 2, 9, 4)
    attend = AttentionInterface()["tree_cpu"]
    assert attend(module, query, query, query, None, tree=TREE)[0].shape == (1, 9, 2, 4)
    module.is_causal = options.pop("is_causal", True)
    with pytest.raises(UnsupportedModel, match=reason):
        attend(module, query, query, query, None, tree=TREE, **options)


def test_flex_has_no_backward_on_a_cpu():
    query = torch.ones(1, 2, 9, 4, requires_grad=True)
    with pytest.raises(PolarError, match="use tree_cpu"):
        attention.IMPLEMENTATIONS["tree_flex"](query, query, query, TREE, 0.5)
