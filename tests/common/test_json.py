import json
import math

import pytest

from polar_rm.common.json import dump_json


@pytest.mark.parametrize("indent", [None, 2])
def test_what_is_written_is_standard_json(indent):
    """B4, B23: a strict reader accepts the text, whatever the value contains."""
    value = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf],
        "numpy": 1.5,
        3: "key",
        "bytes": b"\xff",
        "half": "a\ud800b",
        "ü": "ü",
    }

    def refuse(name):
        raise AssertionError(name)

    read = json.loads(dump_json(value, indent=indent).encode(), parse_constant=refuse)
    expected = {"nan": None, "inf": ["inf", "-inf"], "numpy": 1.5, "3": "key", "bytes": "\\xff", "half": "a\ud800b", "ü": "ü"}
    assert read == expected
    assert "ü" in dump_json(value, indent=indent)
    assert ("\n" in dump_json(value, indent=indent)) == (indent is not None)


def test_a_value_that_contains_itself_is_an_error():
    endless = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        dump_json(endless)
