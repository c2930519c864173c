import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import wraps
from unittest.mock import Mock

import pytest
import torch
from support import stub, tiny
from support.sampling_runs import TEMPLATE, config, rows, served, write_prompts
from transformers import AutoModelForCausalLM, BloomConfig, LlamaForCausalLM, MambaConfig, TopPLogitsWarper

from polar_rm.common.config import load_config, to_yaml
from polar_rm.errors import BadRow, ConfigError, PolarError
from polar_rm.model.language_models import load_auto_tokenizer
from polar_rm.records import read_trajectories
from polar_rm.sampling import runner
from polar_rm.sampling.backends import openai
from polar_rm.sampling.backends.generation import GumbelSampler
from polar_rm.sampling.backends.rendering import encode
from polar_rm.sampling.base import Decoding, Machine, Request, Sample
from polar_rm.sampling.config import SamplingConfig
from polar_rm.sampling.engines import PolicyStarted, SampleArrived
from polar_rm.sampling.estimate import describe, estimate
from polar_rm.sampling.plan import make_plan
from polar_rm.sampling.runner import run_sampling, sample
from polar_rm.sampling.store import Store


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tiny.causal_lm(tmp_path_factory.mktemp("lm"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def manifest(settings):
    return json.loads((settings.output / "manifest.json").read_text())


def test_a_sample_does_not_depend_on_what_it_was_batched_with(tmp_path, language_model):
    together = rows(sample(config(tmp_path, language_model, batch_size=10)))
    alone = rows(sample(config(tmp_path, language_model, batch_size=1, output=tmp_path / "alone")))
    assert together == alone
    assert len(together) == 2 * 5 * 2
    assert len(set(together.values())) > 10
    assert rows(sample(config(tmp_path, language_model, seed=1, output=tmp_path / "c"))) != together


def test_the_shared_prefix_of_all_prompts_is_computed_once(tmp_path, language_model, monkeypatch):
    shapes, forward = [], LlamaForCausalLM.forward

    @wraps(forward)
    def recorded(model, input_ids, **rest):
        shapes.append(tuple(input_ids.shape))
        return forward(model, input_ids, **rest)

    monkeypatch.setattr(LlamaForCausalLM, "forward", recorded)
    settings = config(tmp_path, language_model, batch_size=10)
    policy = settings.policies[1].model_copy(update={"template": "one two three four five six: {prompt}"})
    sample(settings.model_copy(update={"policies": [policy]}))
    (one, prefix_length), (batch, rest_length) = shapes[:2]
    assert (one, batch) == (1, 10)
    assert prefix_length > 6
    assert rest_length <= 5 * 2  # tokens of the longest prompt


@pytest.mark.parametrize("batch_size", [1, 20])
def test_a_stop_string_is_looked_for_in_new_text_alone(tmp_path, language_model, batch_size):
    base = config(tmp_path, language_model).policies[1].model_copy(update={"template": "{prompt}\n", "samples": 8})
    unstopped = sample(config(tmp_path, language_model, policies=[base], output=tmp_path / "unstopped"))
    texts = {(row.prompt_id, row.sample_id): row for row in read_trajectories(unstopped)}
    # across: a prompt's last character and the first new one. within: two characters inside a new text.
    across = ["\n" + row.text[0] for row in texts.values() if "\n" not in row.text[:1]]
    within = [row.text[2:4] for row in texts.values() if len(row.text) > 6][:2]
    stopping = base.model_copy(update={"stop": tuple(across + within)})
    settings = config(tmp_path, language_model, policies=[stopping], batch_size=batch_size)
    stopped = {(row.prompt_id, row.sample_id): row for row in read_trajectories(sample(settings))}
    n_stopped = 0
    for key, row in texts.items():
        positions = [row.text.index(stop) for stop in stopping.stop if stop in row.text]
        n_stopped += bool(positions)
        if positions and min(positions) > 0:
            assert (stopped[key].text, stopped[key].finish_reason) == (row.text[: min(positions)], "stop")
        elif not positions:
            assert (stopped[key].text, stopped[key].finish_reason) == (row.text, row.finish_reason)
            assert stopped[key].n_tokens == row.n_tokens
    assert 2 <= n_stopped < len(texts) / 2


def test_a_model_with_a_sliding_window_shares_nothing(tmp_path):
    folder = tiny.causal_lm(tmp_path / "lm", "mistral", sliding_window=4)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert len(rows(sample(config(tmp_path, folder)))) == 20


def of_family(folder, settings):
    """A random model of a family that ``tiny`` does not make."""
    tiny.causal_lm(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    return folder


BLOOM = BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1, pad_token_id=2)
MAMBA = MambaConfig(
    vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4, bos_token_id=0, eos_token_id=1, pad_token_id=2
)


@pytest.mark.parametrize("family", [BLOOM, MAMBA])
def test_models_without_a_longest_context(tmp_path, family):
    folder = of_family(tmp_path / "lm", family)
    base = config(tmp_path, folder).policies[1]
    together = rows(sample(config(tmp_path, folder, policies=[base])))
    assert together == rows(sample(config(tmp_path, folder, policies=[base], batch_size=1, output=tmp_path / "alone")))
    assert len(together) == 10


def test_without_an_end_token_id_0_is_a_token_like_others(tmp_path):
    """B29: a tokenizer with neither EOS nor padding."""
    folder = tiny.causal_lm(tmp_path / "lm")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            kept = {k: v for k, v in json.loads((folder / name).read_text()).items() if not k.startswith(("eos", "pad"))}
            (folder / name).write_text(json.dumps(kept))
    base = config(tmp_path, folder).policies[1]
    backend = base.open(Machine("fp32", "cpu", 4))
    assert backend.tokenizer.eos_token_id is None and backend.tokenizer.pad_token_id is None
    with_zero = [7, 0, 8, 9, 10, 11]
    sampled = backend._decode(with_zero)
    assert (sampled.n_tokens, sampled.finish_reason) == (6, "length")
    path = sample(config(tmp_path, folder, policies=[base]))
    assert {row.n_tokens for row in read_trajectories(path)} == {6}


def test_layers_that_are_not_there(tmp_path, language_model):
    machine, base = Machine("fp32"), config(tmp_path, language_model).policies[1]
    assert len(base.model_copy(update={"n_layers": 1}).open(machine).model.model.layers) == 1
    with pytest.raises(PolarError, match="n_layers must be 1 to 2, not 3"):
        base.model_copy(update={"n_layers": 3}).open(machine)
    folder = of_family(tmp_path / "bloom", BLOOM)
    with pytest.raises(PolarError, match="n_layers is not supported for a BloomForCausalLM: it has no list of layers"):
        base.model_copy(update={"n_layers": 1, "model": str(folder)}).open(machine)


def test_penalties_of_the_models_own_generation_config_are_no_part_of_the_decoding(tmp_path, language_model):
    before = rows(sample(config(tmp_path, language_model)))
    other = tiny.causal_lm(tmp_path / "other")
    (other / "chat_template.jinja").write_text(TEMPLATE)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.save_pretrained(other)
    assert rows(sample(config(tmp_path, other, output=tmp_path / "penalised"))) == before


def test_an_interrupted_run_loses_and_repeats_nothing(tmp_path, language_model):
    settings = config(tmp_path, language_model, batch_size=2)

    def interrupt(task, done, total, status=""):
        assert total == 10 and "tokens/s" in status
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(settings, interrupt)
    with Store.open(settings.output) as store:
        kept = store.counts().total()
    assert 4 <= kept < 20
    report = run_sampling(settings)
    assert sum(status.asked for status in report.policies) == 20 - kept
    whole = config(tmp_path, language_model, output=tmp_path / "whole")
    assert rows(report.path) == rows(sample(whole))
    assert manifest(settings)["n_trajectories"] == 20
    assert (settings.output / "trajectories.parquet").read_bytes() == (whole.output / "trajectories.parquet").read_bytes()


@pytest.mark.slow
def test_after_two_kills_the_same_command_continues(tmp_path, server):
    settings = served(tmp_path, server.url, server.url, prompts=20)
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    command = [sys.executable, "-m", "polar_rm", "sample", str(tmp_path / "config.yaml"), "--json", str(tmp_path / "result.json")]
    running = None
    due = threading.Event()

    def kill_twice(body, number):
        if number in (20, 45):
            due.set()
        return stub.good(body)

    server.respond = kill_twice
    for _ in range(2):
        running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        assert due.wait(120)
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        due.clear()
    assert subprocess.run(command, check=False).returncode == 0
    assert len(rows(settings.output / "trajectories.parquet")) == 2 * 20 * 2
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["complete"] and 0 < sum(policy["asked"] for policy in result["policies"]) < 80
    assert len(server.bodies) <= 80 + 2 * 2 * 2  # only the requests in progress at the two kills are sent twice


def test_more_policies_and_prompts_ask_only_for_what_is_missing(tmp_path, server):
    sample(served(tmp_path, server.url, prompts=3))
    assert len(server.bodies) == 6
    sample(served(tmp_path, server.url, server.url, prompts=4))
    assert len(server.bodies) == 6 + 2 + 8
    assert len(rows(tmp_path / "out/trajectories.parquet")) == 16
    moved = served(tmp_path, "http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", prompts=4)  # another address; nothing is missing
    assert run_sampling(moved).n_trajectories == 16
    report = run_sampling(served(tmp_path, server.url, prompts=4))
    assert (report.n_trajectories, report.unplanned) == (8, 8)
    assert "8 more samples that this config does not ask for" in report.describe()


def test_other_settings_or_prompts_in_the_same_folder_are_refused(tmp_path, server):
    sample(served(tmp_path, server.url))
    with pytest.raises(PolarError, match=r"policy 'a' with other settings \(seed: 0 there, 3 now\)"):
        sample(served(tmp_path, server.url, seed=3))
    with pytest.raises(PolarError, match=r"\(seed: 0 there, 3 now\)"):
        estimate(served(tmp_path, server.url, seed=3))
    with pytest.raises(PolarError, match=r"\(system: null there, \"Rhyme.\" now\)"):
        sample(served(tmp_path, server.url, changes={"system": "Rhyme."}))
    settings = served(tmp_path, server.url)
    settings.prompts[0].rows.write_text('{"prompt_id": "p0", "prompt": "wolf"}\n')
    with pytest.raises(PolarError, match="policy 'a' answered another prompt under the id 'p0'"):
        sample(settings)
    assert len(server.bodies) == 10


def test_a_policy_that_is_down_does_not_stop_the_others_and_is_asked_again(tmp_path, server, language_model):
    with stub.served() as broken:
        broken.respond = lambda *_: (200, {"Content-Type": "text/html"}, b"<html>maintenance</html>")
        settings = served(tmp_path, server.url, broken.url)
        lost = config(tmp_path, "/no/such/model").policies[1]
        settings = settings.model_copy(update={"policies": [*settings.policies, lost]})
        with pytest.raises(
            PolarError, match=r"b: 10 of 10 missing, .*<html>maintenance.*; base: 10 of 10 missing, /no/such/model"
        ):
            sample(settings)
        assert {policy for policy, _, _ in rows(tmp_path / "out/trajectories.parquet")} == {"a"}
        entries = {policy["policy"]: policy for policy in manifest(settings)["policies"]}
        assert (entries["a"]["sampled"], entries["b"]["sampled"], entries["b"]["missing"]) == (10, 0, 10)
        assert entries["b"]["failures"]["garbled"] >= 3 and "maintenance" in entries["b"]["error"]
        broken.respond = lambda body, _: stub.good(body)
        healthy = settings.model_copy(update={"policies": settings.policies[:2]})
        assert len(rows(sample(healthy))) == 20
    assert len(server.bodies) == 10
    assert manifest(healthy)["policies"][1]["failures"] == {}


def test_policies_that_are_down_are_told_while_the_others_go_on(tmp_path, server, monkeypatch, caplog):
    monkeypatch.setattr(openai, "START_PATIENCE_S", 0.1)
    told = []

    def respond(body, _):
        for _ in range(500):  # the other policy answers once it was told, or after five seconds
            if told or "policies that are down: b: " in caplog.text:
                told.append(True)
                break
            time.sleep(0.01)
        return stub.good(body)

    server.respond = respond
    with stub.served() as gone:
        url = gone.url
    with pytest.raises(PolarError, match="b: 10 of 10 missing, .*connection refused"):
        sample(served(tmp_path, server.url, url))
    assert told


def test_policies_that_are_down_for_one_reason_are_listed_together(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(openai, "START_PATIENCE_S", 0.1)
    with stub.served() as gone:
        url = gone.url
    with pytest.raises(PolarError) as error:
        sample(served(tmp_path, url, url, url, changes={"retries": 6}))
    assert str(error.value).startswith(
        f"a, b, c: 10 of 10 missing, {url}/chat/completions: no connection: connection refused (no"
    )
    assert "policies that are down" not in caplog.text  # the end of the run tells it


def test_failures_that_are_final_are_counted_and_asked_again_only_on_demand(tmp_path, server):
    def respond(body, _):
        text = body["messages"][-1]["content"]
        if text == "fox ":
            return stub.good(body, "")
        return stub.error(400, "maximum context length is 8") if text == "fox fox " else stub.good(body)

    server.respond = respond
    settings = served(tmp_path, server.url)
    assert len(rows(sample(settings))) == 6
    [entry] = manifest(settings)["policies"]
    assert (entry["failures"], entry["missing"]) == ({"empty": 2, "too_long": 2}, 0)
    again = run_sampling(settings)
    assert again.policies[0].asked == 0
    assert json.loads(json.dumps(again.to_json()))["policies"][0]["failures"] == {"empty": 2, "too_long": 2}
    server.respond = lambda body, _: stub.good(body)
    assert run_sampling(settings, retry_failed=True).n_trajectories == 10


def test_a_prompt_that_failed_is_asked_again_once_it_is_another(tmp_path, server):
    server.respond = lambda body, _: stub.error(413, "big") if body["messages"][-1]["content"] == "fox " else stub.good(body)
    settings = served(tmp_path, server.url, prompts=2)
    assert len(rows(sample(settings))) == 2
    path = settings.prompts[0].rows
    path.write_text(path.read_text().replace('"fox "', '"wolf"'))
    assert estimate(settings)[0].requests == 2
    assert {text.split()[0] for (_, prompt, _), text in rows(sample(settings)).items() if prompt == "p0"} == {"wolf"}
    assert manifest(settings)["policies"][0]["failures"] == {}


def test_a_policy_that_only_fails_is_not_complete(tmp_path, server):
    server.respond = lambda body, _: stub.good(body, "")
    settings = served(tmp_path, server.url)
    with pytest.raises(PolarError, match="a: 10 of 10 missing, 10 empty"):
        sample(settings)
    assert not (tmp_path / "out/trajectories.parquet").exists()
    server.respond = lambda body, _: stub.good(body)
    assert len(rows(sample(settings))) == 10


def test_a_prompt_that_the_chat_template_refuses_is_a_final_failure(tmp_path):
    folder = tiny.causal_lm(tmp_path / "lm")
    refusal = "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (folder / "chat_template.jinja").write_text("{% for m in messages %}" + refusal + "{{ m.content }}{% endfor %}")
    write_prompts(tmp_path, 2)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "fox"}]
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt_id": "system", "prompt": messages}) + "\n")
    with_system, base = config(tmp_path, folder).policies
    plain = with_system.model_copy(update={"system": None})
    settings = config(tmp_path, folder, policies=[plain, base])
    assert len(rows(sample(settings))) == 2 * 2 + 3 * 2
    assert [policy["failures"] for policy in manifest(settings)["policies"]] == [{"refused": 2}, {}]
    assert run_sampling(settings).policies[0].asked == 0
    with pytest.raises(PolarError, match="policy 'chat': the chat template refuses its system prompt: System role not supp"):
        with_system.open(Machine("fp32"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("chat_template.jinja", "{% for m in %}", r"policy 'chat': its chat template is damaged: "),
        ("chat_template.jinja", "{{ 1 + messages }}", r"policy 'chat': the chat template refuses any prompt: "),
        ("generation_config.json", '{"eos_token_id": "x"}', r"eos_token_id of its generation_config.json is 'x': expected an id"),
        (
            "generation_config.json",
            '{"bos_token_id": [null]}',
            r"bos_token_id of its .* is \[None\]: expected an id",
        ),
    ],
)
def test_a_folder_that_can_not_generate_is_one_line_before_the_first_prompt(tmp_path, file, content, message):
    """F13."""
    folder = tiny.causal_lm(tmp_path / "lm")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / file).write_text(content)
    chat = config(tmp_path, folder).policies[0].model_copy(update={"system": None})
    with pytest.raises(PolarError, match=message) as caught:
        chat.open(Machine("fp32"))
    assert "\n" not in str(caught.value)


def test_prompts_longer_than_the_context(tmp_path, language_model):
    write_prompts(tmp_path, 3)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt_id": "long", "prompt": "fox " * 3000}) + "\n")
    settings = config(tmp_path, language_model)
    assert len(rows(sample(settings))) == 12
    assert [policy["failures"] for policy in manifest(settings)["policies"]] == [{"too_long": 2}] * 2


def test_buckets_hold_whole_prompts_and_the_same_rows(tmp_path, server):
    one = rows(sample(served(tmp_path, server.url, prompts=20)))
    folder = sample(served(tmp_path, server.url, prompts=20, buckets=4))
    assert not (tmp_path / "out/trajectories.parquet").exists()
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"0000{i}-of-00004.parquet" for i in range(4)]
    prompts = [{row.prompt_id for row in read_trajectories(file)} for file in files]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 20
    assert rows(folder) == one
    assert len(list(sample(served(tmp_path, server.url, prompts=20, buckets=2)).iterdir())) == 2
    assert len(server.bodies) == 40


def test_rows_say_what_a_corpus_needs_to_know(tmp_path, server):
    checkpoint = {"checkpoint_of": "m-run", "step": 100, "licence": "Apache-2.0"}
    settings = served(tmp_path, server.url, prompts=1, changes=checkpoint)
    row = next(iter(read_trajectories(sample(settings))))
    assert row.metadata == {"family": "fa", "wrapper": "sft", "checkpoint_of": "m-run", "step": 100}
    assert (row.temperature, row.top_p, row.top_k, row.n_tokens, row.finish_reason) == (1.0, 0.9, 50, 3, "stop")
    assert manifest(settings)["policies"][0]["licence"] == "Apache-2.0"


def test_every_second_of_a_policy_is_counted_once(monkeypatch):
    clock = iter([10.0, 12.0, 15.0])
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
    events = [[PolicyStarted("a")], *([SampleArrived("a", Request("p", "x", i, 0), Sample("t", "stop", 6))] for i in range(2))]
    store, status = Mock(), runner.PolicyStatus("a", 2, 0)
    runner._collect(events, store, {"p": "hash"}, {"a": status}, lambda *_: None, Mock())
    assert [call.args[1] for call in store.add.call_args_list] == [{}, {"a": (6, 2.0)}, {"a": (6, 3.0)}]
    assert (status.tokens, status.seconds, status.tokens_per_s) == (12, 5.0, 2.4)


def test_a_seed_that_the_server_does_not_take_is_in_no_row(tmp_path, server):
    seeds = {row.seed for row in read_trajectories(sample(served(tmp_path, server.url, changes={"unsupported": ["seed"]})))}
    assert seeds == {None}
    other = served(tmp_path, server.url, output=tmp_path / "other")
    assert None not in {row.seed for row in read_trajectories(sample(other))}


def test_every_input_is_in_the_manifest_and_bad_rows_are_told_by_each_run(tmp_path, server):
    tokenizer = tiny.causal_lm(tmp_path / "lm")
    (tmp_path / "texts.jsonl").write_text('{"text": "The quick brown fox"}\n{"text": 5}\n{"x": 1}\n')
    (tmp_path / "many").mkdir()
    for number in range(2):
        row = {"prompt_id": str(number), "prompt": "fox"}
        (tmp_path / f"many/{number}.jsonl").write_text(json.dumps(row) + "\n[]\n")
    prompts = [{"texts": str(tmp_path / "texts.jsonl"), "tokenizer": str(tokenizer), "pool": "any"}]
    prompts += [{"rows": tmp_path / "many/[0-9].jsonl"}]
    settings = served(tmp_path, server.url, prompts=1, on_bad_row="skip")
    settings = SamplingConfig.model_validate(settings.model_dump() | {"prompts": prompts})
    assert estimate(settings)[0].requests == 6
    assert not settings.output.exists()
    for _ in range(2):
        sample(settings)
        assert manifest(settings)["bad_rows"] == 4
        assert len((settings.output / "prompts.rejected").read_text().splitlines()) == 4
    names = [tmp_path / "texts.jsonl", tmp_path / "many/0.jsonl", tmp_path / "many/1.jsonl"]
    assert manifest(settings)["inputs"] == {str(name): hashlib.sha256(name.read_bytes()).hexdigest() for name in names}


def test_draws_follow_the_softmax_of_the_nucleus():
    torch.manual_seed(0)
    logits = torch.randn(30) * 2
    decoding = Decoding(temperature=0.7, top_p=0.9, top_k=8)
    count = 20_000
    drawn = GumbelSampler(decoding, range(count))(None, logits.expand(count, -1)).argmax(-1)
    kept = (logits / 0.7).topk(8)
    nucleus = TopPLogitsWarper(0.9)(None, kept.values[None])[0].softmax(-1)
    expected = torch.zeros(30).scatter(0, kept.indices, nucleus)
    observed = torch.bincount(drawn, minlength=30) / count
    assert (observed - expected).abs().max() < 0.012
    assert observed[expected == 0].sum() == 0


def test_prompts_are_rendered_by_kind(tmp_path, language_model):
    chat, base = config(tmp_path, language_model).policies
    tokenizer = load_auto_tokenizer(str(language_model))
    request = Request("p", "fox", 0, 0)
    text = tokenizer.decode(encode(chat, tokenizer, request))
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant"
    assert tokenizer.decode(encode(base, tokenizer, request)) == "Q: fox\nA:"


def test_a_dry_run_writes_nothing_and_uses_measured_speed(tmp_path, server):
    settings = served(tmp_path, server.url, server.url)
    first, second = estimate(settings, tokens_per_s=20)
    assert (first.requests, first.new_tokens, first.seconds, first.basis) == (10, 60, 3.0, "assumed")
    assert "all: 20 samples, 120 new tokens, about 0:00:06 one after another" in describe([first, second])
    assert estimate(settings)[0].seconds is None
    assert not settings.output.exists() and not server.bodies
    sample(served(tmp_path, server.url))
    done, other = estimate(served(tmp_path, server.url, server.url, prompts=6))
    assert (done.planned, done.requests, done.new_tokens, done.basis) == (12, 2, 2 * 3, "measured")
    assert (other.requests, other.basis) == (12, "unknown")
    assert describe([done, other]).endswith("all: 14 samples, 78 new tokens")


def test_errors(tmp_path, language_model):
    with pytest.raises(PolarError, match=r"x: 10 of 10 missing, 10 too_long"):
        policies = [{"name": "x", "family": "t", "kind": "base", "model": str(language_model)}]
        sample(config(tmp_path, language_model, policies=policies))
    bare = tiny.causal_lm(tmp_path / "bare")
    with pytest.raises(PolarError, match="no chat template"):
        policies = [{"name": "x", "family": "t", "kind": "chat", "model": str(bare)}]
        sample(config(tmp_path, language_model, policies=policies, output=tmp_path / "other"))
    with pytest.raises(PolarError, match="package no_such_weights is not installed"):
        policies = [{"name": "x", "family": "t", "kind": "base", "model": "package:no_such_weights"}]
        sample(config(tmp_path, language_model, policies=policies, output=tmp_path / "third"))
    with pytest.raises(PolarError, match="backend vllm needs the package vllm: pip install"):
        policies = [{"name": "x", "family": "t", "kind": "base", "model": str(language_model), "backend": "vllm"}]
        sample(config(tmp_path, language_model, policies=policies, output=tmp_path / "fourth"))
    (tmp_path / "twice.jsonl").write_text('{"prompt_id": "a", "prompt": "x"}\n' * 2)
    with pytest.raises(BadRow, match="row 2: field 'prompt_id'"):
        make_plan(config(tmp_path, language_model, prompts=str(tmp_path / "twice.jsonl")))


def test_a_bug_is_no_policy_that_is_down(tmp_path, server, monkeypatch):
    monkeypatch.setattr("polar_rm.sampling.backends.openai.read_answer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(served(tmp_path, server.url))


def test_the_machine_decides_about_policies_in_process_only(tmp_path, language_model):
    local, remote = config(tmp_path, language_model).policies[0], served(tmp_path, "http://h/v1").policies[0]
    assert local.settings(Machine("fp32")) != local.settings(Machine("bf16"))
    assert remote.settings(Machine("fp32")) == remote.settings(Machine("bf16"))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("{name: x, family: f, kind: base, model: m, system: s}", "has no system prompt"),
        ("{name: x, family: f, kind: base, model: m, weight: 2}", "a weight has no effect"),
        ("{name: x, famly: f, kind: base, model: m}", r"unknown key 'policies.0.famly'; did you mean 'family'"),
        ("{name: x, family: f, kind: base, model: m, backend: vlm}", "unknown backend 'vlm'; known: transformers, openai, vllm"),
        ("{name: x, family: f, kind: base, model: m, base_url: u}", "base_url is a key of backend openai, but .* transformers"),
    ],
)
def test_settings_that_are_refused(tmp_path, policy, message):
    (tmp_path / "c.yaml").write_text(f"{{output: o, prompts: p, source: s, policies: [{policy}]}}")
    with pytest.raises(ConfigError, match=message):
        load_config(SamplingConfig, [tmp_path / "c.yaml"])
