"""Records and their files: comparisons, trajectories and items to score, as JSONL, Parquet or ``datasets`` objects."""

from polar_rm.common.json import dump_json
from polar_rm.records.reading import (
    OnBadRow,
    Source,
    find_files,
    read_comparisons,
    read_items,
    read_numbered_comparisons,
    read_numbered_items,
    read_numbered_trajectories,
    read_prompt_texts,
    read_prompts,
    read_referenced_prompts,
    read_texts,
    read_trajectories,
)
from polar_rm.records.types import (
    Comparison,
    Message,
    Record,
    ScoreItem,
    Text,
    Trajectory,
    Wrapper,
    flatten,
    group_items,
)
from polar_rm.records.writing import write_records

__all__ = [
    "Comparison",
    "Message",
    "OnBadRow",
    "Record",
    "ScoreItem",
    "Source",
    "Text",
    "Trajectory",
    "Wrapper",
    "dump_json",
    "find_files",
    "flatten",
    "group_items",
    "read_comparisons",
    "read_items",
    "read_numbered_comparisons",
    "read_numbered_items",
    "read_numbered_trajectories",
    "read_prompt_texts",
    "read_prompts",
    "read_referenced_prompts",
    "read_texts",
    "read_trajectories",
    "write_records",
]
