import json
from dataclasses import replace

import pytest

from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders.baselines import make_baselines
from polar_rm.evaluation.groups import NO_GROUP, group_of
from polar_rm.evaluation.survey import survey
from polar_rm.records import Comparison, is_copy


def make(reference="r", candidates=("a", "b"), ranks=(0, 1), **metadata):
    return Comparison("p", reference, candidates, ranks, "sft", metadata)


def look(comparisons, by=None, reference="given", baselines=()):
    return survey(comparisons, by=by, reference=reference, contenders=list(make_baselines(baselines).values()))


def test_counts():
    seen = look(
        [make(), make("a b", ("x", "A  b\n", "y"), (0, 1, 1), subset="s"), make(ranks=(0, 0))],
        by="subset",
        baselines=["tfidf"],
    )
    assert (seen.pairs.n_comparisons, len(seen.pairs), seen.without_pairs) == (3, 3, 1)
    assert (seen.reference_equals_candidate, seen.without_group) == (1, 2)


def test_missing_references_are_counted_and_the_first_named():
    items = [make(), make(None), make(), make(None)]
    with pytest.raises(PolarError, match="2 of 4 comparisons have no reference, the first is comparison 2; --reference empty"):
        look(items)
    items[1] = replace(items[1], metadata={"subset": "s", "refrence": "r"})
    with pytest.raises(PolarError, match=r"the first is comparison 2 \(it has 'refrence': did you mean 'reference'\?\); --ref"):
        look(items)
    items[1] = replace(items[1], metadata={"subset": "s", "answer": "r"})
    with pytest.raises(PolarError, match=r"is comparison 2 \(its further columns: 'subset', 'answer'\); --reference empty"):
        look(items)
    assert look(items, reference="empty").pairs.n_comparisons == 4
    assert look([make(""), make("")]).pairs.n_comparisons == 2  # an empty reference is a reference


def test_nothing_to_evaluate():
    with pytest.raises(PolarError, match="no comparisons"):
        look([])
    with pytest.raises(PolarError, match="none of 1 comparisons has two candidates of different rank"):
        look([make(ranks=(1, 1))])


def test_unknown_group_key():
    items = [make(subset="s", meta={"language": "en"})]
    with pytest.raises(PolarError, match="'subest': did you mean 'subset'"):
        look(items, by="subest")
    with pytest.raises(PolarError, match=r"'meta.lang': did you mean 'meta.language'"):
        look(items, by="meta.lang")
    with pytest.raises(PolarError, match=r"'zzz'; there is: meta, meta.language, subset"):
        look(items, by="zzz")
    with pytest.raises(PolarError, match="no metadata at all"):
        look([make()], by="subset")


def test_group_values():
    nested = {"language": "en", "turns": 2}
    for meta in (nested, json.dumps(nested)):
        assert group_of(make(meta=meta), "meta.language") == "en"
        assert group_of(make(meta=meta), "meta.turns") == "2"
        assert group_of(make(meta=meta), "meta.other") == NO_GROUP
    assert group_of(make(**{"a.b": "flat"}), "a.b") == "flat"
    assert group_of(make(meta="{not json"), "meta.language") == NO_GROUP
    assert group_of(make(meta=3), "meta.language") == NO_GROUP
    assert group_of(make(subset=None), "subset") == NO_GROUP


def test_copies():
    text = " ".join(str(2**i) for i in range(40))
    assert is_copy(text, text.replace(" ", "\n\n"))
    assert is_copy("Four ÉTÉ\n", " four été")
    assert is_copy(text, text.replace("1048576", "1O48576"))
    assert not is_copy(text, text + " and quite a lot more of other text")
    assert not is_copy(text, " ".join(str(3**i) for i in range(32)))
    assert not is_copy("The answer is 41.", "The answer is 42.")
    assert is_copy("42", "42") and not is_copy("42", "43")
    assert not is_copy("", "") and not is_copy("", "a") and not is_copy("a", "")


def test_fingerprint_is_about_the_pairs_only():
    base = look([make(), make("s")]).fingerprint
    assert base == look([make("other"), make(None)], reference="empty").fingerprint
    assert base != look([make(ranks=(1, 0)), make("s")]).fingerprint
    assert base != look([make(candidates=("a", "c")), make("s")]).fingerprint
