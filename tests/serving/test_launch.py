"""``polar serve`` as a process, and the command line that starts vLLM."""

import asyncio
import contextlib
import json
import logging
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
import uvicorn
from support import fakes
from support.commands import in_process, refused
from support.processes import Process, serve

from polar_rm.cli import main as cli
from polar_rm.client.blocking import RewardClient
from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem
from polar_rm.rewards.outcomes import rewards
from polar_rm.scoring.scorer import Scorer
from polar_rm.serving import address, launch, vllm
from polar_rm.serving.config import ServeConfig
from polar_rm.serving.guard import Limits
from polar_rm.serving.launch import DrainingServer

MODERN = vllm.Installed("0.33", frozenset({"--runner", "--convert", "--pooler-config"}), frozenset({"task", "use_activation"}))
OLDER = vllm.Installed("0.8", frozenset({"--task", "--override-pooler-config"}), frozenset({"normalize", "softmax"}))


def test_vllm_gets_the_options_of_its_version(checkpoint):
    folder, _ = checkpoint
    options = {"host": "127.0.0.1", "port": 5, "dtype": "float32"}
    modern = vllm.command(MODERN, folder, **options)
    assert modern[-7:] == [
        "pooling",
        "--convert",
        "classify",
        "--max-model-len",
        "200",
        "--pooler-config",
        '{"use_activation": false}',
    ]
    official = vllm.command(MODERN, folder, **options, flavour="vllm")
    assert json.loads(official[-1]) == {"use_activation": False, "task": "token_classify"}
    older = vllm.command(OLDER, folder, **options)
    assert older[-6:] == ["--task", "classify", "--max-model-len", "200", "--override-pooler-config", '{"softmax": false}']


@pytest.mark.parametrize(
    ("installed", "flavour", "reason"),
    [
        (MODERN, "lmdeploy", "--engine polar"),
        (OLDER, "vllm", "per-token"),
        (vllm.Installed("9", frozenset({"--pooler-config"}), frozenset({"use_activation"})), "vllm-classify", "--runner"),
        (vllm.Installed("9", MODERN.options, frozenset({"dimensions"})), "vllm-classify", "sigmoid"),
    ],
)
def test_a_vllm_that_would_score_otherwise_is_not_started(checkpoint, installed, flavour, reason):
    with pytest.raises(PolarError, match=reason):
        vllm.command(installed, checkpoint[0], host="h", port=1, dtype="float32", flavour=flavour)


@pytest.mark.parametrize("key", [None, "sesame"])
def test_vllm_is_started_with_the_options_of_the_command_and_the_key_in_its_environment(checkpoint, monkeypatch, key):
    """All users of a machine can read command lines, so the key is in none."""
    started = []
    monkeypatch.setattr(vllm, "probe", lambda: MODERN)
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("MY_KEY", key or "")
    options = ["--host", "127.0.0.9", "--port", "81", "--precision", "bf16", "--pooling-flavour", "vllm"]
    options += ["--api-key-env", "MY_KEY"] if key else []
    arguments = ["polar", "serve", "--model", str(checkpoint[0]), "--engine", "vllm", *options, "--", "--enforce-eager"]
    monkeypatch.setattr(sys, "argv", arguments)
    with contextlib.suppress(SystemExit):
        cli.main()
    [(program, command, environment)] = started
    expected = vllm.command(MODERN, checkpoint[0], host="127.0.0.9", port=81, dtype="bfloat16", flavour="vllm")
    assert (program, command) == (sys.executable, [*expected, "--enforce-eager"])
    assert environment.get("VLLM_API_KEY") == key and environment["PATH"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "0.0.0.0"], "lets other machines in"),
        (["--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--", "--enforce-eager"], "are for --engine vllm"),
        (["--model", "nowhere"], "nowhere: no such folder of a model"),
    ],
)
def test_mistakes_are_one_line(checkpoint, arguments, reason):
    model = [] if "--model" in arguments else ["--model", checkpoint[0]]
    refused(in_process("serve", "--port", "0", *model, *arguments), reason)


def test_a_config_serves_as_flags_do_and_flags_take_precedence(tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr("polar_rm.serving.launch.serve", lambda config, listener, key: served.append(config))
    monkeypatch.setattr(address, "bind", lambda host, port: contextlib.nullcontext())
    monkeypatch.setattr("polar_rm.cli.options.native_folder", Path)
    (tmp_path / "serve.yaml").write_text("model: m\nport: 1\nhost: 127.0.0.2\nallowed_hosts: [a, b]\nprecision: bf16\n")
    for arguments in (
        [str(tmp_path / "serve.yaml"), "max_items=5", "--port", "7", "--log-texts"],
        ["--model", "m", "--port", "7", "--host", "127.0.0.2", "--allowed-host", "a", "--allowed-host", "b"]
        + ["--precision", "bf16", "--max-items", "5", "--log-texts"],
    ):
        monkeypatch.setattr(sys, "argv", ["polar", "serve", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    first, second = served
    assert first == second
    assert (str(first.model), first.port, first.max_items, first.log_texts) == ("m", 7, 5, True)
    assert (first.allowed_hosts, first.device, first.max_seconds) == (("a", "b"), "auto", 300.0)


def test_every_setting_reaches_the_application(checkpoint, monkeypatch):
    told = {}
    monkeypatch.setattr(launch, "create_app", lambda service, **options: told.update(options, service=service))
    monkeypatch.setattr(
        launch, "DrainingServer", lambda *_, **__: SimpleNamespace(run=lambda sockets: told.update(sockets=sockets))
    )
    monkeypatch.setattr(launch, "log_to_stderr", lambda: None)
    monkeypatch.setenv("MY_KEY", "sesame")
    settings = {
        "model": checkpoint[0],
        "port": 0,
        "api_key_env": "MY_KEY",
        "allowed_hosts": ("Rewards.example",),
        "device": "cpu",
    }
    settings |= {"pooling_flavour": "lmdeploy", "precision": "bf16", "log_texts": True}
    settings |= {"row_tokens": 64, "max_items": 5, "max_body_mib": 3, "max_queue_tokens": 99, "max_seconds": 7}
    settings |= {"prefix_memory_mib": 2}
    config = ServeConfig(**settings)
    with address.bind(config.host, config.port) as listener:
        launch.serve(config, listener, address.api_key(config.host, config.api_key_env, allow_open=False))
    assert told["limits"] == Limits(3 * 2**20, 5, 7.0) and told["sockets"] == [listener]
    assert (told["flavour"], told["api_key"], told["log_texts"]) == ("lmdeploy", "sesame", True)
    refusals = [
        told["hosts"].refusal("/v1/score", {b"host": name}) for name in (b"rewards.example", b"localhost", b"evil.example")
    ]
    assert [refusal is None for refusal in refusals] == [True, True, False]
    service = told["service"]
    assert (service.name, service.max_positions) == (
        checkpoint[0].parent.name,
        checkpoint[1].backbone.config.max_position_embeddings,
    )
    assert (service.batcher.batch_tokens, service.batcher.max_waiting_tokens) == (64, 99)
    assert service.encoder.hash == checkpoint[1].encoder.hash
    scorer = service.batcher._score.__self__
    assert scorer.prefixes is service.batcher.prefixes and scorer.prefixes.max_bytes == 2 << 20
    model = scorer.model
    assert next(model.backbone.model.parameters()).dtype == torch.bfloat16


def test_probes_and_refused_requests_do_not_keep_a_draining_server():
    guard = fakes.make()
    server = DrainingServer(guard, port=0)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.handle_exit(signal.SIGTERM, None)
    statuses = set()
    until = time.monotonic() + 30
    with httpx.Client() as client:
        while thread.is_alive() and time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                statuses |= {client.get(f"{url}/health").status_code, client.post(f"{url}/v1/score", json={}).status_code}
            time.sleep(0.02)
    assert not thread.is_alive() and statuses == {200, 503}


def test_a_draining_server_waits_half_a_second_after_the_last_request():
    guard = fakes.make()
    server = DrainingServer(guard)
    guard.draining = True

    async def ticks():
        exits = []
        for guard.active in (0, 0, 0, 0, 1, 0, 0, 0, 0, 0):
            exits.append(await server.on_tick(1))
        return exits

    assert asyncio.run(ticks()) == [False] * 9 + [True]


STUCK = """
import logging, threading
from support import fakes
from polar_rm.serving.address import bind
from polar_rm.serving.launch import DrainingServer
from polar_rm.serving.logs import log_to_stderr

def model(trees):
    logging.getLogger("polar_rm").info("called")
    threading.Event().wait()

log_to_stderr()
guard = fakes.make(model)
DrainingServer(guard).run(sockets=[bind("127.0.0.1", 0)])
"""


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path):
    server = Process(tmp_path / "log", "-c", STUCK)

    def logged(message):
        until = time.monotonic() + 60
        while not any(row["message"] == message for row in server.lines()):
            assert time.monotonic() < until
            time.sleep(0.05)

    with ThreadPoolExecutor(1) as threads:
        item = {"prompt": "the fox", "reference": "the dog", "outputs": ["jumps"]}
        request = threads.submit(httpx.post, f"{server.url}/v1/score", json={"items": [item]}, timeout=60)
        try:
            logged("called")
            server.process.send_signal(signal.SIGTERM)
            logged("draining")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 128 + signal.SIGTERM
        finally:
            server.process.kill()
        assert isinstance(request.exception(60), httpx.TransportError)
    last = server.lines()[-1]
    assert (last["message"], last["requests"]) == ("stopped at once", 1)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_a_signal_under_load_loses_no_accepted_request(checkpoint, tmp_path):
    folder, model = checkpoint
    server = serve(folder, tmp_path / "log")
    words = [" ".join([word] * 9) for word in fakes.WORDS]
    items = [ScoreItem(f"{word} {i}", "the dog", word) for i in range(4) for word in words]
    expected = [scored.reward for scored in Scorer(model).score(items)]

    async def load():
        results = {}

        async def one(client, index):
            item = items[index % len(items)]
            body = {"items": [{"prompt": item.prompt, "reference": item.reference, "outputs": [item.output]}]}
            try:
                results[index] = await client.post("/v1/score", json=body)
            except httpx.TransportError as error:
                results[index] = error

        limits = httpx.Limits(max_connections=500)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            tasks = [asyncio.create_task(one(client, index)) for index in range(400)]
            while len(results) < 30:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            while not any(row["message"] == "draining" for row in server.lines()):
                await asyncio.sleep(0.01)
            late = [asyncio.create_task(one(client, index)) for index in range(400, 420)]
            await asyncio.gather(*tasks, *late)
        return results

    results = asyncio.run(load())
    # Draining may take up to Limits.seconds; this test stays far below.
    assert server.process.wait(120) == 0
    answered = 0
    for index, reply in results.items():
        # Requests that are not accepted get 503 while the server drains, and no connection afterwards.
        if isinstance(reply, httpx.TransportError) or reply.status_code == 503:
            continue
        assert reply.status_code == 200, reply.text
        [output] = reply.json()["results"][0]["outputs"]
        assert output["reward"] == pytest.approx(expected[index % len(items)], abs=2e-5)
        assert index < 400  # late requests are refused
        answered += 1
    assert answered >= 30 and len(results) == 420
    with pytest.raises(httpx.ConnectError):
        fakes.HTTP.get(f"{server.url}/health")
    logged = [row["status"] for row in server.lines() if row["message"] == "request"]
    assert set(logged) <= {200, 503} and logged.count(200) == answered


@pytest.mark.slow
def test_the_served_model_scores_as_the_scorer(checkpoint, tmp_path):
    folder, model = checkpoint
    server = serve(folder, tmp_path / "log")
    try:
        items = [ScoreItem("the fox", "the dog", word) for word in fakes.WORDS]
        with RewardClient(server.url, model=folder) as client:
            assert rewards(client.score(items)) == pytest.approx([s.reward for s in Scorer(model).score(items)], abs=2e-5)
    finally:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(120) == 0


@pytest.mark.parametrize(("host", "url", "here"), [("0.0.0.0", "0.0.0.0", "127.0.0.1"), ("::1", "[::1]", "[::1]")])
def test_the_ready_line_has_addresses_that_a_browser_opens(monkeypatch, caplog, host, url, here):
    async def started(*_):
        return None

    monkeypatch.setattr(uvicorn.Server, "startup", started)
    listener = SimpleNamespace(listen=lambda queue: None, getsockname=lambda: (host, 30000, 0, 0))
    with caplog.at_level(logging.INFO, "polar_rm.serving"):
        asyncio.run(DrainingServer.startup(DrainingServer.__new__(DrainingServer), [listener]))
    fields = caplog.records[-1].fields
    assert fields["url"] == f"http://{url}:30000" and fields["page"] == f"http://{here}:30000/"
    assert fields["scores"] == f"http://{here}:30000/v1/score" and fields["routes"] == f"http://{here}:30000/openapi.json"
