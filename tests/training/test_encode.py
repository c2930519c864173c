"""What ``polar encode --dry-run`` foretells."""

from __future__ import annotations

import json

import pytest
from support import runs, tiny

from polar_rm.training.encode import encode, plan_encoding
from polar_rm.training.encode_config import EncodeConfig


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_the_plan_foretells_the_tokens(tmp_path, suffix):
    """Metadata and names of fields are no tokens."""
    tiny.causal_lm(tmp_path / "lm")
    rows = [json.loads(line) for line in runs.comparisons(tmp_path / "rows.jsonl", 50).read_text().splitlines()]
    rows = [row | {"metadata": {"note": "x" * 2000}} for row in rows]
    file = tmp_path / f"rows.{suffix}"
    file.write_text(json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    model = {"init": str(tmp_path / "lm"), "encoder": {"max_length": 256, "max_response_length": 64}}
    config = EncodeConfig(inputs=[str(file)], output=tmp_path / "encoded", model=model, workers=1)
    planned, made = plan_encoding(config).tokens, encode(config).stats["tokens"]
    assert planned == made if suffix == "jsonl" else planned >= made  # of other formats only the size is known
