"""Records and their files: comparisons, trajectories and items to score, in JSON, CSV, Parquet, Arrow or ``datasets`` objects.

Other packages import from here: :func:`check` for one record, ``to_...`` for one row, ``read_...`` for files.
"""

from polar_rm.common.json import dump_json
from polar_rm.records.bad_rows import SIDE_SUFFIX, OnBadRow, side_file
from polar_rm.records.cells import from_cell, parsed, to_cell
from polar_rm.records.copies import is_copy, near_copies
from polar_rm.records.fields import reference_hint
from polar_rm.records.finding import PLAIN_SUFFIXES, SUFFIXES, DataFiles, check_not_output, find_file, find_files, survey_files
from polar_rm.records.parts import FilePart, divide_file
from polar_rm.records.prompts import is_held_out, prompt_key
from polar_rm.records.reading import (
    Source,
    count_rows,
    read_comparisons,
    read_items,
    read_numbered_comparisons,
    read_numbered_items,
    read_numbered_trajectories,
    read_prompt_texts,
    read_prompts,
    read_referenced_prompts,
    read_rows,
    read_texts,
    read_trajectories,
)
from polar_rm.records.rows import RowRules, check, to_comparison, to_item, to_prompt_text, to_row, to_samples, to_trajectory
from polar_rm.records.types import (
    PROTOCOL_FIELD,
    Comparison,
    Message,
    Record,
    Reference,
    ReferencedPrompt,
    Samples,
    ScoreItem,
    Text,
    Trajectory,
    Wrapper,
    as_reference,
    flatten,
    group_items,
    items_of,
    one_reference,
    references_of,
)
from polar_rm.records.values import InvalidRecord
from polar_rm.records.words import folded, words
from polar_rm.records.writing import write_records

__all__ = [
    "PLAIN_SUFFIXES",
    "PROTOCOL_FIELD",
    "SIDE_SUFFIX",
    "SUFFIXES",
    "Comparison",
    "DataFiles",
    "FilePart",
    "InvalidRecord",
    "Message",
    "OnBadRow",
    "Record",
    "Reference",
    "ReferencedPrompt",
    "RowRules",
    "Samples",
    "ScoreItem",
    "Source",
    "Text",
    "Trajectory",
    "Wrapper",
    "as_reference",
    "check",
    "check_not_output",
    "count_rows",
    "divide_file",
    "dump_json",
    "find_file",
    "find_files",
    "flatten",
    "folded",
    "from_cell",
    "group_items",
    "is_copy",
    "is_held_out",
    "items_of",
    "near_copies",
    "one_reference",
    "parsed",
    "prompt_key",
    "read_comparisons",
    "read_items",
    "read_numbered_comparisons",
    "read_numbered_items",
    "read_numbered_trajectories",
    "read_prompt_texts",
    "read_prompts",
    "read_referenced_prompts",
    "read_rows",
    "read_texts",
    "read_trajectories",
    "reference_hint",
    "references_of",
    "side_file",
    "survey_files",
    "to_cell",
    "to_comparison",
    "to_item",
    "to_prompt_text",
    "to_row",
    "to_samples",
    "to_trajectory",
    "words",
    "write_records",
]
