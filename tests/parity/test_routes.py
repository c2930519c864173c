"""Routes agree, and every kind of deviation is found. The server is a stub with vLLM's or SGLang's protocol."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from support import fakes, tiny

from polar_rm import parity
from polar_rm.errors import PolarError
from polar_rm.parity.items import encode, ids_differ
from polar_rm.parity.report import Parity
from polar_rm.parity.routes import _route
from polar_rm.parity.servers import Answer
from polar_rm.records import ScoreItem
from polar_rm.scoring.scorer import Scorer

SETTINGS = tiny.EncoderSettings(max_length=160, max_response_length=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("rm")
    tiny.reward_model(target / "lm", settings=SETTINGS).save(target / "model")
    return target / "model"


@pytest.fixture(scope="module")
def score(folder):
    """A function from ids or text to the score, by transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def score_of(value):
        ids = tokenizer(value)["input_ids"] if isinstance(value, str) else value
        with torch.no_grad():
            return float(model(torch.tensor([ids])).logits)

    return score_of


@pytest.fixture
def serve():
    """Start a stub. answer(path, body): returns (status, reply)."""
    servers = []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"data": [{"id": "rm"}]})

            def do_POST(self):
                self.reply(*answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

            def reply(self, status, value):
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def vllm(score):
    def answer(path, body):
        if "input" not in body or path not in ("/classify", "/pooling"):
            return 404, {"detail": "Not Found"}
        assert body["model"] == "rm"
        value = score(body["input"][0])
        if body.get("use_activation", True):
            value = 1 / (1 + math.exp(-value))
        return 200, {"data": [{"probs": [value]} if path == "/classify" else {"data": [[9.0], [value]]}]}

    return answer


def sglang(score):
    def answer(path, body):
        if path == "/classify" and ("text" in body or "input_ids" in body):
            return 200, [{"embedding": [score((body.get("text") or body["input_ids"])[0])]}]
        if path == "/v1/embeddings":
            return 200, {"data": [{"embedding": [score(body["input"][0])]}]}
        return 422, {"error": "unknown"}

    return answer


def names(result):
    return [route.name for route in result.routes]


def test_routes_in_this_process_agree_on_awkward_texts(folder):
    result = parity.check(folder, against="transformers")
    assert result.ok and not result.ids_differ
    assert names(result) == ["transformers", "trainer, packed trees", "scorer"]
    assert result.n_items >= 12 and result.n_cut >= 3
    assert max(route.difference for route in result.routes) < 1e-4
    assert len({round(score, 3) for score in result.routes[0].scores}) > 8


def test_every_protocol_that_a_server_supports_is_tried(folder, score, serve):
    result = parity.check(folder, against=serve(vllm(score)))
    assert result.ok
    assert names(result)[3:] == ["vLLM /classify, ids", "vLLM /classify, text", "vLLM /pooling, ids", "vLLM /pooling, text"]
    result = parity.check(folder, against=serve(sglang(score)))
    assert result.ok
    assert names(result)[3:] == ["SGLang /classify, ids", "SGLang /classify, text", "/v1/embeddings, ids", "/v1/embeddings, text"]


def test_our_servers_structured_protocol(folder, serve):
    rewards = {}

    def answer(path, body):
        if path != "/v1/score":
            return 404, {}
        [group] = body["items"]
        return 200, {"results": [{"index": 0, "outputs": [{"index": 0, "reward": rewards[json.dumps(group["outputs"])]}]}]}

    items = [ScoreItem("p", "the fox", text) for text in ("a dog", "the quick fox")]
    for item, value in zip(items, parity.check(folder, items, against="transformers").routes[0].scores, strict=True):
        rewards[json.dumps([item.output])] = value
    result = parity.check(folder, items, against=serve(answer))
    assert result.ok and names(result)[3:] == ["/v1/score"]


def test_our_own_server_agrees_over_each_protocol(folder):
    result = parity.check(folder)
    assert result.ok
    shapes = [
        f"{engine} /pooling, {kind} ({flavour})"
        for engine, flavour in (("vLLM", "vllm"), ("LMDeploy", "lmdeploy"), ("vLLM", "vllm-classify"))
        for kind in ("ids", "text")
    ]
    engines = [f"{name}, {kind}" for name in ("vLLM /classify", "SGLang /classify", "/v1/embeddings") for kind in ("ids", "text")]
    assert names(result)[3:] == ["/v1/score", *engines, "OpenRLHF /get_reward", *shapes]
    scored = {route.name: len(route.scores) for route in result.routes}
    assert scored.pop("OpenRLHF /get_reward") == result.n_items - 1  # the protocol can't carry a continued prompt
    assert set(scored.values()) == {result.n_items}


def test_a_sigmoid_is_found(folder, score, serve):
    result = parity.check(folder, against=serve(vllm(lambda value: 1 / (1 + math.exp(-score(value))))))
    assert not result.ok
    assert [route.difference > 0.1 for route in result.routes] == [False, False, False, True, True, True, True]


def test_a_server_that_loses_the_scoring_token_is_found(folder, score, serve):
    truncating = vllm(lambda value: score(value[:50] if isinstance(value, list) else value))
    assert not parity.check(folder, against=serve(truncating)).ok


def test_refused_and_unscored_items_never_pass(folder, score, serve):
    def answer(path, body):
        value = (body.get("input") or [[0] * 999])[0]
        return (400, {"error": "too long"}) if len(value) > 100 else vllm(score)(path, body)

    result = parity.check(folder, against=serve(answer))
    assert not result.ok
    assert any("HTTP 400" in route.refused and "too long" in route.refused for route in result.routes)
    nan = parity.check(folder, against=serve(vllm(lambda _: math.nan)))
    assert not nan.ok


def test_missing_scores_are_null_in_json(folder, score, serve):
    def answer(path, body):
        return (400, {}) if len(body.get("input", [[]])[0]) > 100 else vllm(score)(path, body)

    result = parity.check(folder, against=serve(answer)).to_json()
    assert json.loads(json.dumps(result, allow_nan=False)) == result and not result["ok"]
    assert None in result["routes"][3]["scores"] and None not in result["routes"][0]["scores"]


def test_a_protocol_is_tried_with_an_item_that_it_can_carry(folder):
    continued, answered = ScoreItem("a", "b", "c", "pretrain"), ScoreItem("a longer prompt", "b longer", "c longer")
    scorer = Scorer(tiny.RewardModel.from_pretrained(folder))
    with fakes.running(fakes.make(scorer.score_trees, scorer.model.encoder)) as url:
        result = parity.check(folder, [continued, answered], against=url)
        assert result.ok and "OpenRLHF /get_reward" in names(result)
        result = parity.check(folder, [continued], against=url)
        assert result.ok and "OpenRLHF /get_reward" not in names(result)


def test_a_server_may_ask_for_a_key(folder):
    items = [ScoreItem("p", "r", "o")]
    scorer = Scorer(tiny.RewardModel.from_pretrained(folder))
    with fakes.running(fakes.make(scorer.score_trees, scorer.model.encoder, api_key="k")) as url:
        assert parity.check(folder, items, against=url, api_key="k\n").ok
        with pytest.raises(PolarError, match="HTTP 401: the server wants an API key"):
            parity.check(folder, items, against=url)
        with pytest.raises(PolarError, match="HTTP 401: the server wants another API key"):
            parity.check(folder, items, against=url, api_key="other")


def test_a_tokenizer_with_other_ids_is_found(folder, tmp_path):
    import shutil

    other = shutil.copytree(folder, tmp_path / "model")
    content = json.loads((other / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    items = [ScoreItem("lower", "case", "only"), ScoreItem("Upper", "case", "only")]
    encoded = [encode(tiny.RewardModel.from_pretrained(folder).encoder, item) for item in items]
    (other / "tokenizer.json").write_text(json.dumps(content))
    assert ids_differ(other, encoded) == [2]


def test_a_server_that_can_not_be_used_is_one_clear_line(folder, serve):
    with pytest.raises(PolarError, match="supports none of the known protocols"):
        parity.check(folder, against=serve(lambda *_: (404, {})))
    with pytest.raises(PolarError, match="no answer"):
        parity.check(folder, against="http://127.0.0.1:9")
    with pytest.raises(PolarError, match="expected serve, vllm, transformers or a server's URL"):
        parity.check(folder, against="localhost")
    with pytest.raises(PolarError, match="vLLM is not installed here"):
        parity.check(folder, against="vllm")


def test_a_score_that_is_no_number_never_agrees():
    """max() ignores a NaN after a number."""
    route = _route(Answer("x", {0: 0.5, 1: math.nan}), [0.5, 0.5])
    assert math.isnan(route.difference)
    assert not Parity("m", 2, 0, 9, 1e-3, [], [route]).ok
