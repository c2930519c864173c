"""Judges of held-out completions, none of which is the reward model: checkers, a function of the user, and a gold model."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, cast

from pydantic import Field, ValidationError, field_validator

from polar_rm.common.config import Config, PathText
from polar_rm.common.extras import needs, require
from polar_rm.common.http import key_from_environment
from polar_rm.common.limits import MAX_ROW_TOKENS
from polar_rm.common.sources import HUB, PACKAGE, is_model_id, model_folder
from polar_rm.common.text import first_line
from polar_rm.errors import ConfigError, PolarError, ScoreError
from polar_rm.records import Comparison, InvalidRecord, Reference, Text, Wrapper, flatten
from polar_rm.rft.checkers import Rules, final_answer, same_answer

if TYPE_CHECKING:
    from polar_rm.evaluation.contenders import Contender


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt with its reference or references. row: all columns of its row, for judges."""

    prompt: Text
    reference: Reference
    wrapper: Wrapper
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's value of a completion, and a few words on it, such as the rules that it breaks."""

    value: float
    note: str = ""


def listed(reference: Reference) -> Any:
    """The reference as rows and files have it: a text, or a list of several texts."""
    return list(reference) if isinstance(reference, tuple) else reference


class Judge(Protocol):
    """Something that judges completions."""

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check that a row has what the judge needs.

        Raises:
            InvalidRecord: it does not.
        """

    def judge(self, tasks: Sequence[Task], completions: Sequence[str]) -> list[Verdict]:
        """A verdict on each completion. Raises ScoreError if one has none."""
        ...


class _JudgeConfig(Config):
    """kind: what the judge is. name: in results and reports; the default is its kind."""

    name: str | None = Field(None, min_length=1, description="Name in results and reports; the default is the kind.")

    @property
    def title(self) -> str:
        """The judge's name."""
        return self.name or str(getattr(self, "kind", ""))

    def identity(self) -> str | None:
        """A hash of, or word for, what the judge depends on outside the config."""
        return None


class AnswerConfig(_JudgeConfig):
    """1 if the completion's final answer equals the expected one, else 0."""

    kind: Literal["answer"] = Field("answer", description="An exact answer.")
    column: str = Field("reference", description="Column with the expected answer.")

    def open(self) -> Judge:
        """The judge."""
        return _Answer(self.column, same_answer)


class MathConfig(_JudgeConfig):
    """1 if the completion's mathematical answer equals the expected one by the library math-verify, else 0."""

    kind: Literal["math"] = Field("math", description="A mathematical answer.")
    column: str = Field("reference", description="Column with the expected answer.")

    def open(self) -> Judge:
        """The judge.

        Raises:
            PolarError: math-verify is not installed.
        """
        require("rft", "the judge math", "math_verify")
        return _Answer(self.column, _same_mathematics, is_extracted=False)


class RulesConfig(_JudgeConfig):
    """1 if the completion keeps all rules, else 0."""

    kind: Literal["rules"] = Field("rules", description="Rules of form and length.")
    rules: Rules = Field(Rules(), description="Rules for all prompts.")
    column: str | None = Field(None, description="Column with rules of a single prompt, as an object of the same keys.")

    def open(self) -> Judge:
        """The judge.

        Raises:
            ConfigError: there is no rule.
        """
        if self.rules.is_empty and self.column is None:
            raise ConfigError(f"evaluate.judges: {self.title}: there are no rules; set rules, or a column with rules")
        return _Rules(self.rules, self.column)


class FunctionConfig(_JudgeConfig):
    """The value of a function ``function(prompt, completion, reference, row)`` that can be imported here."""

    kind: Literal["function"] = Field("function", description="A function of yours.")
    function: str = Field(description="module:function, which returns a finite number or a bool; higher is better.")

    @field_validator("function")
    @classmethod
    def _is_dotted(cls, value: str) -> str:
        module, _, name = value.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), name]):
            raise ValueError("expected module:function")
        return value

    def open(self) -> Judge:
        """The judge, with its module imported.

        Raises:
            PolarError: the module can't be imported, or has no such function.
        """
        return _Function(self.title, _imported(self.function))

    def identity(self) -> str | None:
        """The hash of the module's file."""
        from polar_rm.common.files import sha256

        module = self.function.partition(":")[0]
        try:
            spec = find_spec(module)
        except (ImportError, ValueError):
            spec = None
        return sha256(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


class GoldConfig(_JudgeConfig):
    """The score of another reward model: any contender of ``polar evaluate`` that scores texts one by one."""

    kind: Literal["gold"] = Field("gold", description="Another reward model.")
    model: PathText = Field(description="A reward model's folder, hf:FOLDER, a server's address, embedding:FOLDER, or length.")
    precision: str = Field("fp32", description="fp32, bf16 or fp16, for models in this process.")
    device: str = Field("auto", description="auto, cpu, cuda or mps, for models in this process.")
    row_tokens: int = Field(
        8192, gt=0, le=MAX_ROW_TOKENS, description="Maximum number of tokens of one batch, which determines memory."
    )
    api_key_env: str | None = Field(None, description="NAME of the environment variable with the server's key.")

    def open(self) -> Judge:
        """The judge, whose weights are loaded when it judges.

        Raises:
            PolarError: the model can't be used, or no server answers.
        """
        with needs("rft", "a gold model"):
            from polar_rm.evaluation.contenders import Contender, ModelOptions, find_contenders
        key = key_from_environment(self.api_key_env, "api_key_env of a judge") if self.api_key_env else None
        options = ModelOptions(self.precision, self.device, self.row_tokens, key)
        [contender] = find_contenders([self.model], options)
        if contender.kind == "stored" or type(contender).fit is not Contender.fit:
            raise ConfigError(f"evaluate.judges: {self.model}: it can't score texts that are not known before")
        contender.check()
        return _Gold(self.title, contender)

    def identity(self) -> str | None:
        """The hash of the model's folder; a server is known by its address alone."""
        from polar_rm.common.files import sha256

        name = self.model.removeprefix(HUB).removeprefix("embedding:")
        folder = model_folder(name) if name.startswith((HUB, PACKAGE)) or is_model_id(name) else Path(name)
        return sha256(folder) if folder.is_dir() else None


JudgeConfig = Annotated[
    AnswerConfig | MathConfig | RulesConfig | FunctionConfig | GoldConfig,
    Field(discriminator="kind"),
]
"""The settings of any judge."""


class _Answer:
    def __init__(self, column: str, same: Callable[[str, str], bool], *, is_extracted: bool = True) -> None:
        self._column, self._same, self._is_extracted = column, same, is_extracted

    def check_row(self, row: Mapping[str, Any]) -> None:
        expected = self._expected(row)
        if not expected or not all(text.strip() for text in expected):
            raise InvalidRecord(self._column, "the right answer, a string or a number, or a list of several")

    def judge(self, tasks: Sequence[Task], completions: Sequence[str]) -> list[Verdict]:
        return [self._verdict(task, text) for task, text in zip(tasks, completions, strict=True)]

    def _verdict(self, task: Task, completion: str) -> Verdict:
        expected = self._expected(task.row)
        if self._is_extracted:
            expected, completion = [final_answer(text) for text in expected], final_answer(completion)
        is_same = any(self._same(text, completion) for text in expected)
        return Verdict(float(is_same), "" if is_same else f"expected {' or '.join(map(_short, expected))}")

    def _expected(self, row: Mapping[str, Any]) -> list[str]:
        """The right answers: one, or those of several references, any of which is right."""
        value = row.get(self._column)
        several = isinstance(value, list) and value and not isinstance(value[0], Mapping)
        return [_text_of(each) for each in (value if several else [value])]  # type: ignore[union-attr]


class _Rules:
    def __init__(self, rules: Rules, column: str | None) -> None:
        self._rules, self._column = rules, column

    def check_row(self, row: Mapping[str, Any]) -> None:
        if self._of(row).is_empty:
            raise InvalidRecord(self._column or "", "at least one rule, as evaluate.judges has none for all prompts")

    def judge(self, tasks: Sequence[Task], completions: Sequence[str]) -> list[Verdict]:
        broken = [self._of(task.row).broken(text) for task, text in zip(tasks, completions, strict=True)]
        return [Verdict(float(not each), "; ".join(each)) for each in broken]

    def _of(self, row: Mapping[str, Any]) -> Rules:
        own = row.get(self._column) if self._column else None
        if own is None:
            return self._rules
        if isinstance(own, str):  # a cell of CSV
            with suppress(ValueError):
                own = json.loads(own)
        if not isinstance(own, Mapping):
            raise InvalidRecord(self._column or "", f"an object of rules, such as {{'max_words': 50}}, not {_short(repr(own))}")
        # In tables an object has the keys of all other rows, too, with null.
        given = {name: value for name, value in own.items() if value is not None}
        try:
            return Rules(**{**self._rules.model_dump(exclude_unset=True), **given})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InvalidRecord(f"{self._column}.{place}".rstrip("."), f"a rule ({first['msg'].lower()})") from None


class _Function:
    def __init__(self, title: str, function: Callable[..., Any]) -> None:
        self._title, self._function = title, function

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Nothing: the function says what it needs."""

    def judge(self, tasks: Sequence[Task], completions: Sequence[str]) -> list[Verdict]:
        return [self._verdict(*each) for each in zip(tasks, completions, strict=True)]

    def _verdict(self, task: Task, completion: str) -> Verdict:
        where = f"judge {self._title}: prompt {_short(flatten(task.prompt))}"
        try:
            value = self._function(task.prompt, completion, listed(task.reference), dict(task.row))
        except Exception as error:  # the user's own code may raise anything
            raise ScoreError(f"{where}: {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ScoreError(f"{where}: expected a finite number or a bool, but the function returned {_short(repr(value))}")
        return Verdict(float(value))


class _Gold:
    def __init__(self, title: str, contender: Contender) -> None:
        self._title, self._contender = title, contender

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Nothing: every row has a prompt and a reference."""

    def judge(self, tasks: Sequence[Task], completions: Sequence[str]) -> list[Verdict]:
        from polar_rm.evaluation.pairs import collect_scores
        from polar_rm.evaluation.several import CombinedScorer

        pairs = zip(tasks, completions, strict=True)
        comparisons = [Comparison(task.prompt, task.reference, (text,), (0,), task.wrapper) for task, text in pairs]
        try:
            scorer = CombinedScorer(self._contender.load(), reads_references=self._contender.reads_references)
            values = collect_scores({self._title: scorer}, comparisons)[self._title].values
        finally:
            self._contender.release()
        return [Verdict(float(value)) for value in values]


def _text_of(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    return flatten(value) if isinstance(value, (str, list)) else ""


def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a module may raise anything when it is imported
        hint = "; set PYTHONPATH to its folder" if isinstance(error, ModuleNotFoundError) else ""
        raise PolarError(f"{path}: it could not be imported: {type(error).__name__}: {first_line(error)}{hint}") from error
    if not callable(function):
        raise PolarError(f"{path}: the module has no function {name!r}")
    return cast(Callable[..., Any], function)


def _same_mathematics(expected: str, completion: str) -> bool:
    with needs("rft", "the judge math"):
        from math_verify import parse, verify
    # An expected answer without delimiters is a formula as a whole. A text without an answer parses to an empty list.
    gold = parse(expected) or parse(f"${expected}$")
    if not gold:
        raise ScoreError(f"judge math: no mathematical answer can be read from the expected {_short(expected)}")
    return bool(verify(gold, parse(completion)))


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else f"{text[: limit - 1]}…")
