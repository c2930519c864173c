"""Exact answers, rules of form, and the judges that use them."""

import sys
from dataclasses import replace

import pytest
from pydantic import ValidationError
from support import tiny

from polar_rm.errors import ConfigError, PolarError, ScoreError
from polar_rm.evaluation.contenders.native import Native
from polar_rm.records import Comparison, InvalidRecord
from polar_rm.rft.checkers import Rules, final_answer, same_answer
from polar_rm.rft.judges import AnswerConfig, FunctionConfig, GoldConfig, MathConfig, RulesConfig, Task


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So \\boxed{1} or rather \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{7 and \\fbox{8}", "8"),  # the first brace is never closed
        ("4 + 3 = 7\n#### 7", "7"),
        ("First the answer is 3.\nNo: the Answer is: 4\nbecause of this.", "4"),
        ("  Beijing ", "Beijing"),
        ("answers: 5", "answers: 5"),
    ],
)
def test_the_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("1,200", "$1200.00$", True),
        ("1,20", "120", False),  # no thousands
        ("0.5", "1/2", True),
        ("-3", "3", False),
        ("1/0", "1/0", True),  # as texts
        ("1e3", "1000", False),
        (" **The  Capital**. ", "the capital", True),
        ("7", "seven", False),
        ("9" * 200, "9" * 200, True),
        ("", "", True),
    ],
)
def test_answers_are_compared_as_numbers_or_texts(first, second, is_same):
    assert same_answer(first, second) is is_same and same_answer(second, first) is is_same


def test_rules_name_what_is_broken():
    rules = Rules(min_words=2, max_words=3, contains=["cat"], excludes=["dog"], matches=[r"^\w+ \d$"])
    assert rules.broken("cat 7") == []
    assert rules.broken("dog") == [
        "min_words: 1 of 2",
        "contains: no 'cat'",
        "excludes: 'dog' occurs",
        r"matches: no '^\\w+ \\d$'",
    ]
    assert rules.broken("a cat and no 7")[0] == "max_words: 5, not 3"
    json = Rules(is_json=True)
    assert [bool(json.broken(text)) for text in ('{"a": [1]}', '```json\n{"a": 1}\n```', "{'a': 1}", "", "[" * 100_000)] == [
        False,
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("rules", "message"), [({"matches": ["("]}, "no regular expression"), ({"min_words": 3, "max_words": 2}, "is more than")]
)
def test_impossible_rules_are_refused(rules, message):
    with pytest.raises(ValidationError, match=message):
        Rules(**rules)


def task(**row):
    return Task(row.get("prompt", "p"), row.get("reference", "r"), "sft", {"prompt": "p", "reference": "r", **row})


def test_expected_answers_come_from_a_column():
    judge = AnswerConfig(column="gold").open()
    judge.check_row({"gold": 7})
    for row in ({}, {"gold": None}, {"gold": " "}, {"gold": True}):
        with pytest.raises(InvalidRecord, match="the right answer"):
            judge.check_row(row)
    verdicts = judge.judge([task(gold=7), task(gold="7"), task(gold=7.5)], ["so \\boxed{7.0}", "the answer is 8", "#### 7.50"])
    assert [(v.value, v.note) for v in verdicts] == [(1, ""), (0, "expected '7'"), (1, "")]
    assert AnswerConfig().open().judge([task(reference="2+2\n#### 4")], ["4"])[0].value == 1


def test_rules_of_a_prompt_come_before_those_of_all():
    judge = RulesConfig(rules=Rules(max_words=2, contains=["a"]), column="rules").open()
    rows = [task(), task(rules={"max_words": 5, "contains": None}), task(rules='{"contains": ["b"]}')]
    assert [v.value for v in judge.judge(rows, ["a b c"] * 3)] == [0, 1, 0]
    assert judge.judge(rows, ["a b c"] * 3)[2].note == "max_words: 3, not 2"
    with pytest.raises(InvalidRecord, match="an object of rules") as error:
        judge.check_row({"rules": "short"})
    assert error.value.field == "rules"
    with pytest.raises(InvalidRecord, match="a rule") as error:
        judge.check_row({"rules": {"max_word": 5}})
    assert error.value.field == "rules.max_word"
    with pytest.raises(InvalidRecord, match="at least one rule"):
        RulesConfig(column="rules").open().check_row({})
    with pytest.raises(ConfigError, match="there are no rules"):
        RulesConfig().open()


def test_a_users_function(tmp_path, monkeypatch):
    name = f"judge_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        "def share(prompt, completion, reference, row):\n    return len(completion) / row['limit']\n"
        "def bad(*_):\n    return 'good'\ndef nan(*_):\n    return float('nan')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = FunctionConfig(function=f"{name}:share")
    identity = settings.identity()
    assert [v.value for v in settings.open().judge([task(limit=4)], ["ab"])] == [0.5]
    for function, row, message in [
        ("share", task(limit=0), "judge function: prompt 'p': ZeroDivisionError"),
        ("bad", task(), "a finite number or a bool, but the function returned \"'good'\""),
        ("nan", task(), "returned 'nan'"),
    ]:
        with pytest.raises(ScoreError, match=message):
            FunctionConfig(function=f"{name}:{function}").open().judge([row], ["ab"])
    with pytest.raises(PolarError, match="no function 'none'"):
        FunctionConfig(function=f"{name}:none").open()
    with pytest.raises(PolarError, match=r"no_such_module:f: it could not be imported: .*; set PYTHONPATH"):
        FunctionConfig(function="no_such_module:f").open()
    (tmp_path / f"{name}.py").write_text("def share(*_):\n    return 1\n")
    assert identity and settings.identity() not in (None, identity)
    sys.modules.pop(name)


def test_a_gold_model_scores_each_text_alone(tmp_path):
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "rm")
    judge = GoldConfig(model=str(tmp_path / "rm")).open()
    tasks, texts = [task(), replace(task(prompt="q"), reference="s"), task()], ["a b", "a b", "c"]
    [contender] = [Native("rm", tmp_path / "rm", judge._contender._options)]
    comparisons = [Comparison(t.prompt, t.reference, (text, "x"), (0, 1)) for t, text in zip(tasks, texts, strict=True)]
    expected = [scores[0] for scores in contender.load().score_comparisons(comparisons)]
    assert [v.value for v in judge.judge(tasks, texts)] == pytest.approx(expected, abs=1e-5)
    assert len({v.value for v in judge.judge(tasks, texts)}) == 3
    assert GoldConfig(model=str(tmp_path / "rm")).identity() and not GoldConfig(model="length").identity()
    assert [v.value for v in GoldConfig(model="length").open().judge([task(reference="four")], ["five"])] == [0]


def test_contenders_that_need_to_know_the_texts_before_are_no_gold_model(tmp_path):
    (tmp_path / "scores.jsonl").write_text('{"id": "1", "scores": [1]}\n')
    for model in ("tfidf", f"scores:{tmp_path}/scores.jsonl"):
        with pytest.raises(ConfigError, match="can't score texts that are not known before"):
            GoldConfig(model=model).open()


def test_mathematics(monkeypatch):
    pytest.importorskip("math_verify")
    judge = MathConfig(column="gold").open()
    verdicts = judge.judge([task(gold="\\frac{1}{2}")] * 3, ["It is $0.5$.", "\\boxed{\\frac{2}{4}}", "I don't know."])
    assert [v.value for v in verdicts] == [1, 1, 0]


def test_without_math_verify_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(PolarError, match=r"the judge math needs the package math_verify: pip install \S"):
        MathConfig().open()
