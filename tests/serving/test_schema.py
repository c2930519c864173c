"""The OpenAPI document and the running server: requests are generated from the document, and replies validated against it."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from support import fakes

from polar_rm.scoring.scorer import Scorer

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "12"))  # per route, for valid and for invalid requests

# Two checks are left out: the server may refuse bodies that the schema allows, for reasons that a schema can't express (text that
# is no rendered item), and it accepts some bodies that the schema does not allow, with the same value in another JSON type.
CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.unsupported_method,
]


@pytest.fixture(scope="module")
def operations(checkpoint):
    _, model = checkpoint
    with fakes.running(fakes.make(Scorer(model).score_trees, model.encoder)) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        yield {f"{operation.method.upper()} {operation.path}": operation for operation in operations}


def test_replies_are_as_documented(operations):
    assert set(operations) == {
        *("GET /health", "GET /ready", "GET /metrics", "GET /v1/models"),
        *("POST /classify", "POST /pooling", "POST /v1/embeddings", "POST /get_reward", "POST /v1/score"),
    }
    for operation in operations.values():
        # A GET without parameters can't be invalid.
        modes = schemathesis.GenerationMode if operation.method == "post" else [schemathesis.GenerationMode.POSITIVE]
        for mode in modes:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
            def send_and_validate(case):
                case.call_and_validate(checks=CHECKS, timeout=60)

            send_and_validate()
