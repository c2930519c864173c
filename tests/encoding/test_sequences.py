import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from transformers import PreTrainedTokenizerFast

from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.sequences import TokenSequence, join, render, tokenize
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.errors import PolarError
from polar_rm.model.native import add_role_tokens

ENCODER = Encoder(add_role_tokens(tiny.tokenizer(bos=True)), EncoderSettings(max_length=200, max_response_length=60))


def ids_of(prompt, reference, output, wrapper="sft", encoder=ENCODER):
    [(_, tree)] = encoder.encode_outputs(prompt, reference, [output], wrapper)
    return tree.sequence(0)


def test_rendered_text_has_the_ids_that_transformers_gives_it():
    engine = PreTrainedTokenizerFast(tokenizer_object=ENCODER.source)
    for texts in (("the fox", "a dog", "the river"), ("", "", ""), ("naïve 中文 🙂", "x\n\n", " y ")):
        text = f"{texts[0]}\n{texts[1]}<|reward|>{texts[0]}\n{texts[2]}[UNUSED_TOKEN_130]"
        ids = tokenize(text, ENCODER)
        assert ids == engine(text).input_ids
        assert ids[0] == 0 and ids[-1] == ENCODER.reward_id and ids.count(ENCODER.separator_id) == 1


def test_bos_comes_once_or_not_at_all():
    text = "a<|reward|>b[UNUSED_TOKEN_130]"
    once = tokenize(text, ENCODER)
    assert tokenize("<s>" + text, ENCODER) == once
    assert tokenize(text, ENCODER, add_bos=False) == once[1:]
    plain = Encoder(add_role_tokens(tiny.tokenizer()))
    assert tokenize(text, plain) == plain.ids(text)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=100)
def test_items_can_be_sent_as_text(prompt, reference, output):
    ids = ids_of(prompt, reference, output)
    assert tokenize(render(ids, ENCODER), ENCODER) == ids


def test_a_tree_returns_the_sequences_that_it_was_made_of():
    group = [ids_of("the quick fox", "lazy", output) for output in ("the dog", "the river", "", "the dog")]
    sequences = [TokenSequence.from_ids(ids, ENCODER) for ids in group]
    assert len({sequence.head for sequence in sequences}) == 1
    tree = join(sequences)
    assert [tree.sequence(i) for i in range(4)] == group
    assert tree.n_tokens < sum(map(len, group)) * 0.6
    assert all(tree.branches)
    alone = join(sequences[:1])
    assert alone.sequence(0) == group[0]
    assert alone.prefix == [*tree.prefix, *ENCODER.ids("\n")]  # where the next candidate leaves it, unless it is empty
    whole = len(ids_of("the quick fox", "lazy", "")) - 1
    with_prompt = [TokenSequence.from_ids(ids, ENCODER, shared=whole) for ids in group]
    assert [join([sequence]).prefix for sequence in with_prompt] == [join(with_prompt).prefix] * 4 == [group[2][:-1]] * 4
    assert {sequence.group for sequence in with_prompt} & {sequence.group for sequence in sequences} == set()
    same = join([sequences[0], sequences[3]])
    assert same.branches == [[ENCODER.reward_id]] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda ids: [], "the last token must be"),
        (lambda ids: ids[:-1], "the last token must be"),
        (lambda ids: [*ids, 5], "the last token must be"),
        (lambda ids: [ENCODER.vocabulary_size, *ids], "not in the vocabulary"),
        (lambda ids: [-1, *ids], "not in the vocabulary"),
        (lambda ids: [i for i in ids if i != ENCODER.separator_id], "found 0"),
        (lambda ids: [ENCODER.separator_id, *ids], "found 2"),
        (lambda ids: [5] * 200 + ids, "more than max_length 200"),
    ],
)
def test_ids_that_are_not_an_item_are_refused(change, reason):
    with pytest.raises(PolarError, match=reason):
        TokenSequence.from_ids(change(ids_of("p", "r", "o")), ENCODER)
