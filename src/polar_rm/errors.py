"""What can go wrong for a user. The command line prints any of these as one line and exits with code 2."""

from __future__ import annotations


class PolarError(Exception):
    """Bad input, a bad option, or a machine that refuses (a full disk).

    problems: one line for each problem, where several were found before the work began; usually the message alone.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class BadRow(PolarError):
    """A row of a data file is not what it should be.

    path: the file, or the kind of the object that rows came from. row: counted from 1; in JSONL it is the line.
    field: the column at fault, ``""`` when the row as a whole can't be read.
    """

    def __init__(self, path: str, row: int, field: str, expected: str) -> None:
        where = f"{path}: row {row}: field {field!r}" if field else f"{path}: row {row}"
        super().__init__(f"{where}: expected {expected}")
        self.path, self.row, self.field, self.expected = path, row, field, expected

    def __reduce__(self) -> tuple[type[BadRow], tuple[str, int, str, str]]:
        return type(self), (self.path, self.row, self.field, self.expected)  # by default pickle passes the message alone


class ConfigError(PolarError):
    """A configuration has an unknown key, a wrong type or settings that contradict each other."""


class SeveralProblems(PolarError):
    """What is wrong with the inputs of a command, all of it."""


class InUse(PolarError):
    """Another process owns an output."""


class EncoderMismatch(PolarError):
    """A checkpoint's tokenizer or encoder settings are not those it was trained with."""


class UnsupportedModel(PolarError):
    """A model folder that can't be used exactly: another architecture, missing or non-finite weights."""


class ScoreError(PolarError):
    """An item has no score, for example because it came out non-finite."""


class NoTemperature(PolarError):
    """Pairs from which no temperature follows: all tied, all won, or won no more often than by chance."""


class NonFinite(PolarError):
    """A loss or gradient is NaN or infinite."""


class MachineFailure(PolarError):
    """The machine failed, not the input: a worker was killed, the memory or the disk ran out. The same command can continue."""


class Damaged(PolarError):
    """A file that we wrote is not as it was written: missing, of another size or with another content."""
