import json
from collections import Counter

import pytest

from polar_rm.errors import BadRow, PolarError
from polar_rm.evaluation.references import Referenced, apply_reference_protocol, prompt_key, swapped_candidate, with_others
from polar_rm.records import Comparison


def make(prompt, reference, **metadata):
    return Comparison(prompt, reference, ("a", "b"), (0, 1), "sft", metadata)


def test_given_changes_nothing():
    items = [make("p", "r"), make("q", "")]
    assert list(apply_reference_protocol(items, "given")) == items


def test_missing_reference_is_named_unless_empty():
    items = [make("p", "r"), make("q", None)]
    for mode in ("given", "shuffled"):
        with pytest.raises(PolarError, match="comparison 2 has no reference; --reference empty"):
            list(apply_reference_protocol(items, mode))
    assert [item.reference for item in apply_reference_protocol(items, "empty")] == ["", ""]


@pytest.mark.parametrize("window", [1, 2, 7, 1000])
def test_shuffled_gives_another_prompts_reference(monkeypatch, window):
    monkeypatch.setattr("polar_rm.evaluation.references._SHUFFLE_WINDOW", window)
    items = [make(f"p{i // 3}", f"r{i // 3}.{i % 3}") for i in range(31)]
    shuffled = list(apply_reference_protocol(items, "shuffled", seed=2))
    assert [item.prompt for item in shuffled] == [item.prompt for item in items]
    assert all(new.reference.split(".")[0] != old.reference.split(".")[0] for new, old in zip(shuffled, items, strict=True))
    assert shuffled == list(apply_reference_protocol(items, "shuffled", seed=2))


def test_a_last_window_of_one_prompt_uses_the_window_before(monkeypatch):
    monkeypatch.setattr("polar_rm.evaluation.references._SHUFFLE_WINDOW", 4)
    items = [make(f"p{i // 2}", f"r{i // 2}") for i in range(6)]
    last = list(apply_reference_protocol(items, "shuffled"))[-2:]
    assert {item.reference for item in last} <= {"r0", "r1"}


def test_shuffling_uses_all_donors():
    items = [make(f"p{i}", f"r{i}") for i in range(50)]
    assert Counter(item.reference for item in apply_reference_protocol(items, "shuffled")) == Counter(f"r{i}" for i in range(50))


def test_one_prompt_can_not_be_shuffled():
    with pytest.raises(PolarError, match="between at least two prompts"):
        list(apply_reference_protocol([make("p", "r1"), make("p", "r2")], "shuffled"))


def test_swapped_uses_a_candidate_of_the_worst_rank_and_needs_no_reference():
    pair = Comparison("p", None, ("good", "bad"), (0, 1))
    many = Comparison("p", "r", ("bad 0", "good", "bad 1", "middle", "bad 2"), (2, 0, 2, 1, 2))
    swapped = list(apply_reference_protocol([pair, *[many] * 60], "swapped"))
    assert swapped[0].reference == "bad"
    counts = Counter(item.reference for item in swapped[1:])
    assert set(counts) == {"bad 0", "bad 1", "bad 2"} and min(counts.values()) >= 10
    assert [item.candidates for item in swapped] == [pair.candidates, *[many.candidates] * 60]
    assert swapped == list(apply_reference_protocol([pair, *[many] * 60], "swapped"))
    assert swapped != list(apply_reference_protocol([pair, *[many] * 60], "swapped", seed=1))
    assert [many.candidates[swapped_candidate(many, number)] for number in range(2, 62)] == [
        each.reference for each in swapped[1:]
    ]


def test_others_have_another_prompt():
    items = [make(f"p{i // 2}", f"r{i}") for i in range(20)]
    couples = list(with_others(items))
    assert [item for item, _ in couples] == items
    assert all(item.prompt != other.prompt for item, other in couples)
    shuffled = list(apply_reference_protocol(items, "shuffled"))
    assert [other.reference for _, other in couples] == [item.reference for item in shuffled]


def test_references_of_a_file_keep_their_origin(tmp_path):
    rows = [{"id": "a", "reference": "x", "reference_protocol": "own"}, {"id": "b", "reference": "y"}]
    rows[1]["metadata"] = {"reference_protocol": "sibling"}
    rows.append({"id": "c", "reference": "z"})
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = [make(f"p{id}", "old", id=id, reference_protocol="gold") for id in "abc"]
    comparisons = list(Referenced(items, tmp_path / "r.jsonl"))
    assert [item.reference for item in comparisons] == ["x", "y", "z"]
    assert [item.metadata.get("reference_protocol") for item in comparisons] == ["own", "sibling", None]
    assert [item.metadata["id"] for item in comparisons] == ["a", "b", "c"]


def test_a_row_of_a_file_has_one_reference_or_several_never_both(tmp_path):
    path = tmp_path / "r.jsonl"
    items = [Comparison("p", None, ("a", "b"), (0, 1), metadata={"id": 1})]
    path.write_text('{"id": 1, "references": ["x", "y"]}\n')
    assert [each.reference for each in Referenced(items, path)] == [("x", "y")]
    for row, message in (
        ('{"id": 1, "reference": "x", "references": ["y"]}', "one of reference and references, but the row has both"),
        ('{"id": 1, "references": ["y", " "]}', r"field 'references\[1\]': expected a text, but it is empty"),
    ):
        path.write_text(row + "\n")
        with pytest.raises(BadRow, match=f"r.jsonl: row 1: .*{message}"):
            Referenced(items, path)


def test_unknown_mode():
    with pytest.raises(PolarError, match="unknown reference mode 'gold'"):
        apply_reference_protocol([], "gold")


def test_prompt_identity():
    assert prompt_key(make("p", "r", prompt_id=7)) == prompt_key(make("p", "s", prompt_id=8))
    assert prompt_key(make("p", "r", prompt_id=7)) != prompt_key(make("q", "r", prompt_id=7))  # of another file
    listed = [{"role": "user", "content": "p"}]
    assert prompt_key(make(listed, "r")) == prompt_key(make("p", "r")) != prompt_key(make("q", "r"))
