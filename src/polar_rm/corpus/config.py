"""The settings of ``polar corpus``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from polar_rm.common.config import Config, Names, PathText, Seed
from polar_rm.common.limits import MAX_ACTORS, MAX_FILES
from polar_rm.records import Wrapper

Distance = Literal["same_model", "same_family", "other_family"]
"""The distance between the policy of a negative and the reference's policy: the same model in another form (a checkpoint, another
system prompt, another decoding), another model of the same family, or another family."""


class Cleaning(Config):
    """The rules that clean texts (paper, App. D.1.1)."""

    repeated_lines: bool = Field(True, description="Shorten loops of up to 16 lines.")
    repeated_words: bool = Field(True, description="Shorten loops of up to 64 words.")
    repeated_characters: bool = Field(True, description="Shorten loops of up to 64 characters.")
    unfinished_endings: bool = Field(True, description="Trim the unfinished end of texts that the limit on tokens ended.")
    guess_unfinished: bool = Field(
        True, description="Trim endings that look unfinished also in texts without a recorded finish_reason."
    )


class Pairing(Config):
    """Comparisons of policies: texts of the reference's policy are better than those of other policies."""

    kind: Literal["triples", "k_way"] = Field(
        "k_way",
        description="triples (as published): two policies each, with reference and positive of one and the negative of the "
        "other. k_way: every policy with two different texts is the reference once, with further texts of its own "
        "and of others.",
    )
    positives: PositiveInt = Field(1, description="Maximum number of further texts of the reference's policy.")
    negatives: PositiveInt = Field(1, description="Maximum number of other policies, with one text each.")
    both_directions: bool = Field(
        True,
        description="If A was the reference with a negative of B, B may be the reference with a negative of A; in triples B "
        "always is.",
    )
    per_prompt: PositiveInt | None = Field(None, description="Maximum number of comparisons of a prompt; default: no limit.")
    per_policy: PositiveInt | None = Field(
        None, description="Maximum number of comparisons with references of one policy, in each split; default: no limit."
    )
    distance: tuple[Distance, ...] | None = Field(
        None, min_length=1, description="Use only negatives at these distances: same_model, same_family, other_family."
    )
    near_length: float | None = Field(
        None, gt=1, description="Use only negatives whose length, in characters, is within this factor of a positive's."
    )

    @model_validator(mode="after")
    def _triples_have_three(self) -> Pairing:
        if self.kind == "triples" and (self.positives, self.negatives) != (1, 1):
            raise ValueError("triples have one positive and one negative; more need kind: k_way")
        return self


class Beginning(Config):
    """The length of a beginning. It is drawn by seed within this range and ends at a word border; Chinese and Japanese characters
    count as words."""

    unit: Literal["fraction", "characters", "tokens"] = Field(
        "fraction", description="fraction: of the text's characters. characters, tokens: a number of them."
    )
    low: float = Field(0.2, gt=0, description="Shortest beginning, in this unit.")
    high: float = Field(0.8, gt=0, description="Longest beginning, in this unit.")
    tokenizer: Annotated[Path, Names("tokenizer")] | None = Field(
        None, description="Folder with the tokenizer.json that counts tokens."
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> Beginning:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is more than high {self.high:g}")
        if self.unit == "fraction" and self.high >= 1:
            raise ValueError(f"high {self.high:g} must be less than 1, because nothing would continue a whole text")
        if self.unit != "fraction" and (self.low % 1 or self.high % 1):
            raise ValueError(f"low and high must be whole numbers of {self.unit}")
        if (self.unit == "tokens") != (self.tokenizer is not None):
            raise ValueError("unit: tokens and a tokenizer go together")
        return self


class Continuations(Config):
    """Comparisons without policies and references, of plain text: the true continuation of a beginning is better than the
    continuations of other texts (arXiv 2603.02225)."""

    kind: Literal["continuations"] = Field("continuations", description="True continuations and those of other texts.")
    rows: Literal["texts", "trajectories"] = Field(
        "texts",
        description="texts: rows with a text and perhaps a source, or .txt and .md files, whose passages (paragraphs, together "
        "at least max_characters, or 4,000) are texts. trajectories: the rows of the other kinds; their prompts only decide "
        "what is held out.",
    )
    column: str = Field("text", min_length=1, description="The column with the text; trajectories have theirs in text.")
    negatives: PositiveInt = Field(3, description="Maximum number of continuations of other texts in a comparison.")
    beginning: Beginning = Field(Beginning(), description="Where a text is divided.")
    min_beginning: PositiveInt = Field(50, description="Minimum length of a beginning, in characters.")
    min_continuation: PositiveInt = Field(50, description="Minimum length of a continuation, in characters.")
    max_characters: PositiveInt | None = Field(
        None, description="Use only this many characters of a text, up to a word border; default: all."
    )
    hard: Literal["same_source"] | None = Field(
        None, description="same_source: use only negatives of the same source, which are harder. Default: of any source."
    )
    near_length: float | None = Field(
        None,
        gt=1,
        description="Use only negatives whose length, in characters, is within this factor of the true continuation's.",
    )
    uses: PositiveInt | None = Field(
        None,
        description="Maximum number of comparisons in which a continuation is a negative; default: the number of negatives, so "
        "that all are used equally.",
    )

    @model_validator(mode="after")
    def _can_be_filled(self) -> Continuations:
        if self.uses is not None and self.uses < self.negatives:
            raise ValueError(
                f"uses {self.uses} is less than negatives {self.negatives}: every text has one comparison, so with {self.uses} "
                f"uses of each there are no more than {self.uses} negatives for each"
            )
        if self.rows == "trajectories" and self.column != "text":
            raise ValueError("column can't be set with rows: trajectories, which have their text in text")
        least = self.min_beginning + self.min_continuation
        if self.max_characters is not None and self.max_characters < least:
            raise ValueError(f"max_characters {self.max_characters} is less than min_beginning and min_continuation, {least}")
        return self


def _kind(value: Any) -> str:
    """The tag of a pairing's kind. Tags contain a space, so that no tag equals a key of a user's config."""
    name = value.get("kind", "k_way") if isinstance(value, dict) else getattr(value, "kind", None)
    return "pairing of policies" if name in ("k_way", "triples") else f"pairing {name}"


AnyPairing = Annotated[
    Annotated[Pairing, Tag("pairing of policies")] | Annotated[Continuations, Tag("pairing continuations")],
    Discriminator(_kind, custom_error_type="kind", custom_error_message="kind must be k_way, triples or continuations"),
]


class Splits(Config):
    """Prompts and policies that are held out from training."""

    prompts: float = Field(
        0.0, ge=0, lt=1, description="Fraction of the prompts that is held out; of the texts, where continuations are compared."
    )
    policies: tuple[str, ...] | int = Field(0, description="Names of the policies that are held out, or their number.")

    @model_validator(mode="after")
    def _not_negative(self) -> Splits:
        if isinstance(self.policies, int) and self.policies < 0:
            raise ValueError("policies: the number of policies must not be negative")
        return self


class Decontamination(Config):
    """Evaluation data whose prompts are dropped from the corpus."""

    files: tuple[Annotated[PathText, Names("data")], ...] = Field(
        (), description="Evaluation data with a column prompt: files, folders or patterns."
    )
    n: PositiveInt = Field(
        13,
        description="Number of consecutive words that a dropped prompt shares with an evaluation prompt. A text is dropped by "
        "the same rule, also if it shares them with a held-out text.",
    )


class Reporting(Config):
    """The measurements of the report."""

    pairs: PositiveInt = Field(2000, description="Number of pairs for the baselines.")
    tokenizer: Annotated[Path, Names("tokenizer")] | None = Field(
        None, description="Folder with tokenizer.json, to count tokens; by default only characters and words are counted."
    )


class CorpusConfig(Config):
    """The configuration of one run of ``polar corpus``."""

    output: Path = Field(description="Folder of the corpus.")
    inputs: tuple[Annotated[PathText, Names("data")], ...] = Field(
        min_length=1, description="Files, folders or patterns of trajectories, or of texts (pairing.kind: continuations)."
    )
    verify: bool = Field(
        False, description="Compare the contents of files that polar wrote with their checksums, not only names, sizes and rows."
    )
    policies: tuple[str, ...] = Field(("*",), min_length=1, description="Names or patterns of the policies to use.")
    families: dict[str, str] = Field(
        {},
        description="Policy, or a pattern such as qwen*, to the name of its family. Other families come from the rows (family, a "
        "column or a key in the metadata) or from the manifest of polar sample.",
    )
    models: dict[str, str] = Field(
        {},
        description="Policy, or a pattern, to the name of its model. Other models come from checkpoint_of in the rows or the "
        "manifest.",
    )
    wrapper: Wrapper | None = Field(
        None,
        description="pretrain: policies continue the prompt's text. sft: they answer it. "
        "Default: the wrapper in the trajectories, else sft.",
    )
    licences: dict[str, str] = Field({}, description="Source to licence, copied into the manifest.")
    cleaning: Cleaning = Field(Cleaning(), description="The rules that clean texts.")
    pairing: AnyPairing = Field(Pairing(), description="The contents of a comparison.")
    splits: Splits = Field(Splits(), description="Prompts and policies that are held out from training.")
    decontamination: Decontamination = Field(
        Decontamination(), description="Evaluation data whose prompts are dropped from the corpus."
    )
    report: Reporting = Field(Reporting(), description="The measurements of the report.")
    seed: Seed = Field(0, description="Seed of all random choices.")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="error: stop at a bad row of the inputs. skip: write it to refused.jsonl, count it and continue."
    )
    buckets: PositiveInt | None = Field(
        None,
        le=MAX_FILES,
        description="Number of groups of prompts, each of which gives a shard; default: one for every 16 MiB.",
    )
    engine: Literal["local", "ray"] = Field("local", description="local: processes of this machine. ray: a Ray cluster.")
    workers: PositiveInt | None = Field(None, le=MAX_ACTORS, description="Number of processes; default: one for each core.")

    @model_validator(mode="after")
    def _asks_texts_for_no_policies(self) -> CorpusConfig:
        """Refuse settings that continuations have no use for; ignoring them would be silent."""
        if not isinstance(self.pairing, Continuations):
            return self
        unused = {
            "families": self.families,
            "models": self.models,
            "wrapper": self.wrapper,
            "splits.policies": self.splits.policies,
        }
        if self.pairing.rows == "texts":
            unused["policies"] = self.policies != ("*",)
        for name, value in unused.items():
            if value:
                raise ValueError(f"{name} can't be set with pairing.kind: continuations, which compares texts and no policies")
        return self

    @property
    def of_policies(self) -> Pairing:
        """The pairing, where it compares policies.

        Raises:
            TypeError: it compares continuations.
        """
        if not isinstance(self.pairing, Pairing):
            raise TypeError(f"a pairing of policies was expected, not {self.pairing.kind}")
        return self.pairing

    @property
    def of_continuations(self) -> Continuations:
        """The pairing, where it compares continuations.

        Raises:
            TypeError: it compares policies.
        """
        if not isinstance(self.pairing, Continuations):
            raise TypeError(f"continuations were expected, not {self.pairing.kind}")
        return self.pairing
