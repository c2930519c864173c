"""Conversion of official checkpoints and back. Rewards and ids are compared with re-implementations that share no code with
ours."""

import json
import os
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import official, tiny
from support.owners import owned_elsewhere
from transformers import AutoModelForSequenceClassification

from polar_rm.conversion.convert import convert, plan
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import InUse, PolarError, UnsupportedModel
from polar_rm.model import native, weights
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import ScoreItem
from polar_rm.scoring.scorer import Scorer

ITEMS = [
    ScoreItem("What is the capital of China?", "Beijing.", "Beijing."),
    ScoreItem("What is the capital of China?", "Beijing.", "Shanghai is larger , isn't it ?"),
    ScoreItem("The quick brown", " fox jumps", " turtle", "pretrain"),
    ScoreItem("  spaces  ", "\n\nnewlines\n", "tab\tand  double  spaces "),
    ScoreItem("中文 naïve 🙂", "def f(x):\n    return x ** 2", "日本 👩‍💻 \U0010ffff"),
    ScoreItem("Ignore <|im_end|> and <|reward|> please </s>", "ok", "ok [UNUSED_TOKEN_0] fox"),
    ScoreItem("the dog 's bank " * 20, "measured it twice " * 30, "a river bank " * 5),
    ScoreItem("the lazy dog " * 60, "fox", "turtle"),
]


def ids(encoder, item):
    [(_, tree)] = encoder.encode_outputs(item.prompt, item.reference, [item.output], item.wrapper)
    return tree.sequence(0)


@pytest.mark.parametrize("item", ITEMS, ids=range(len(ITEMS)))
@pytest.mark.parametrize("limits", [{}, {"max_length": 200, "max_response_length": 40}, {"response_cut_side": "left"}], ids=str)
def test_ids_equal_the_official_clients(converted, item, limits):
    if "response_cut_side" in limits:
        limits = limits | {"max_length": 150, "max_response_length": 30}
    encoder = Encoder.from_pretrained(converted)
    encoder = Encoder(encoder.source, replace(encoder.settings, **limits))
    assert ids(encoder, item) == official.client_ids(item, **limits)


def test_rewards_equal_the_official_models(source, converted):
    model = RewardModel.from_pretrained(converted)
    rewards = [scored.reward for scored in Scorer(model).score(ITEMS)]
    tensors = load_file(source / "model.safetensors")
    expected = [official.reward(official.config(), tensors, ids(model.encoder, item)) for item in ITEMS]
    assert rewards == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 1
    plain = AutoModelForSequenceClassification.from_pretrained(converted, dtype=torch.float32)
    separate = [plain(torch.tensor([ids(model.encoder, item)])).logits.item() for item in ITEMS]
    assert separate == pytest.approx(expected, abs=1e-4)


def test_intended_differences_from_the_official_client(converted):
    encoder = Encoder.from_pretrained(converted)
    # An empty response gets no newline, as in the official training code; the client's condition for it is never true.
    item = ScoreItem("fox", "", "dog")
    assert ids(encoder, item) != official.client_ids(item)
    assert ids(encoder, item) == [1, *ids_of("fox"), encoder.separator_id, *ids_of("fox\ndog"), encoder.reward_id]
    # A literal scoring token is dropped; the client lets it become a second one.
    item = ScoreItem("fox", "dog", "a[UNUSED_TOKEN_130] b")
    assert official.client_ids(item).count(encoder.reward_id) == 2
    assert ids(encoder, item) == ids(encoder, replace(item, output="a b"))
    # A separator that appears only after another special token is dropped is dropped, too.
    item = ScoreItem("fox", "dog", "a<|rew<|im_end|>ard|> b")
    assert official.client_ids(item).count(encoder.separator_id) == 2
    assert ids(encoder, item).count(encoder.separator_id) == 1
    # Truncation never leaves half of a character (the client decodes it to U+FFFD).
    short = Encoder(encoder.source, replace(encoder.settings, max_length=100, max_response_length=6))
    assert "\ufffd" not in short.tokenizer.decode(ids(short, ScoreItem("fox", "\U0010ffff" * 9, "dog")))


def ids_of(text):
    return official.SlowTokenizer().encode(text)[1:]


def test_the_guides_code_switches_the_clean_up_off(converted, tmp_path):
    """C1: two candidates that differ in cleaned spaces are tied under an official model, and then are not."""
    guide = (Path(__file__).parents[2] / "docs/rewards.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "clean_up=False" in block]
    folder = tmp_path / "polar-7b-with-spaces"
    shutil.copytree(converted, folder)
    both = {"prompt": "if", "reference": "if ( !( a )", "outputs": ["if ( !( a )", "if (!( a )"]}
    before = Scorer(RewardModel.from_pretrained(folder)).score_outputs(**both)
    exec(code.replace('"polar-7b-with-spaces"', repr(str(folder))), {})
    after = Scorer(RewardModel.from_pretrained(folder)).score_outputs(**both)
    assert before[0] == before[1] and after[0] != after[1]
    assert Encoder.from_pretrained(folder).hash != Encoder.from_pretrained(converted).hash


def test_config_is_explicit_for_every_loader(converted):
    config = json.loads((converted / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForSequenceClassification"],
        "model_type": "llama",
        "problem_type": "regression",
        "head_dim": 8,
        "pad_token_id": 2,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e7},
        "rope_theta": 5e7,
        "rope_scaling": None,
        "dtype": "float16",
        "torch_dtype": "float16",
        "id2label": {"0": "LABEL_0"},
    }
    assert {key: config[key] for key in expected} == expected
    encoder = config["polar"]["encoder"]["settings"]
    assert (encoder["max_length"], encoder["max_response_length"], encoder["clean_up"]) == (16384, 4096, True)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in converted.rglob("*") if path.is_file())


def test_there_and_back_is_bit_exact(source, converted, tmp_path):
    convert(converted, tmp_path / "back", to="internlm2")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert (tmp_path / "back/tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back"))
    assert new == {key: value for key, value in old.items() if key != "auto_map"}
    convert(tmp_path / "back", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (converted / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads((converted / "config.json").read_text())


def test_a_fine_tuned_model_can_be_converted_back(converted, tmp_path):
    model = RewardModel.from_pretrained(converted)
    model.save(tmp_path / "tuned")
    conversion = convert(tmp_path / "tuned", tmp_path / "back", to="internlm2")
    assert "copy that folder" in " ".join(conversion.notes)
    tensors = load_file(tmp_path / "back/model.safetensors")
    expected = Scorer(model).score_outputs(prompt="p", reference="fox", outputs=["a dog"])[0]
    assert official.reward(official.config(), tensors, ids(model.encoder, ScoreItem("p", "fox", "a dog"))) == pytest.approx(
        expected, abs=1e-4
    )
    rope = json.loads((tmp_path / "tuned/config.json").read_text())
    assert (rope["rope_theta"], rope["rope_scaling"]) == (5e7, None)  # transformers 4 reads these two


def test_shards_and_pickled_files_are_read_like_one_file(source, converted, tmp_path, monkeypatch):
    tensors = load_file(source / "model.safetensors")
    for name in ("sharded", "pickled"):
        official.checkpoint(tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, tmp_path / "sharded" / shard)
    (tmp_path / "sharded/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.save(tensors, tmp_path / "pickled/pytorch_model.bin")
    monkeypatch.setattr(weights, "SHARD_BYTES", 20_000)
    for name in ("sharded", "pickled"):
        convert(tmp_path / name, tmp_path / f"{name}-native")
        assert len(list((tmp_path / f"{name}-native").glob("model-*-of-*.safetensors"))) > 2
        ours = RewardModel.from_pretrained(tmp_path / f"{name}-native").backbone.state_dict()
        expected = RewardModel.from_pretrained(converted).backbone.state_dict()
        assert all(torch.equal(ours[key], expected[key]) for key in expected)


def test_a_pickle_with_code_is_refused_and_the_code_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    official.checkpoint(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save({"model.norm.weight": Trap()}, tmp_path / "model/pytorch_model.bin")
    with pytest.raises(PolarError, match="save it as safetensors"):
        plan(tmp_path / "model")
    assert not (tmp_path / "ran").exists()


def test_dtype_is_cast_by_the_conversion(source, tmp_path):
    convert(source, tmp_path / "wide", dtype="float32")
    assert {t.dtype for t in load_file(tmp_path / "wide/model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "wide/config.json").read_text())["dtype"] == "float32"
    assert any("rounded" in note for note in plan(source, dtype="bfloat16").notes)
    assert not any("rounded" in note for note in plan(tmp_path / "wide", to="internlm2", dtype="float32").notes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bias": True}, "biases"),
        ({"tie_word_embeddings": True}, "tied to the embedding"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is 'linear'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"reward_token_id": None}, "has no number 'reward_token_id'"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5': expected a positive number"),
        ({"hidden_act": None}, "hidden_act is None"),
        ({"vocab_size": 704}, "vocabulary mismatch: 700 pieces, but vocab_size is 704"),
        ({"reward_token_id": 3}, "takes no references"),
        ({"pad_token_id": 7, "reward_token_id": 7}, "pad_token_id is the scoring token"),
        ({"architectures": ["InternLM2ForCausalLM"]}, "has the type 'dynamic'"),
    ],
)
def test_configs_that_can_not_be_converted_exactly_are_refused(tmp_path, changes, reason):
    official.checkpoint(tmp_path / "model", **changes)
    with pytest.raises(UnsupportedModel, match=reason):
        convert(tmp_path / "model", tmp_path / "native")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_config_without_the_key_bias_is_refused(tmp_path):
    """Without the key the official class has biases."""
    official.checkpoint(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    del config["bias"]
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="its attention has biases"):
        plan(tmp_path / "model")


def test_the_disk_must_hold_the_result(source, tmp_path, monkeypatch):
    needed = plan(source).nbytes
    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(PolarError, match=r"native: it needs .* GB, but only .* GB are free"):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()
    free.free = needed
    convert(source, tmp_path / "native")


def test_leftovers_of_a_killed_conversion_are_removed_before_room_is_asked_for(source, tmp_path, monkeypatch):
    """F7: they are as large as the model."""
    left = tmp_path / ".native.0123abcd.partial"
    left.mkdir()
    (left / "model.safetensors").touch()
    needed = plan(source).nbytes
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0 if left.exists() else needed))
    convert(source, tmp_path / "native")
    assert [path.name for path in tmp_path.iterdir()] == ["native"]


def test_a_conversion_in_progress_is_refused_by_name(source, tmp_path):
    """F1."""
    with owned_elsewhere(tmp_path / "native", "convert"), pytest.raises(InUse, match="native: in use by polar convert on "):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config", {"rope_scaling": [1]}, r"rope_scaling is \[1\]: expected an object"),
        ("config", {"architectures": 5}, "architectures is 5: expected a list of names"),
        ("config", {"reward_token_id": 1.5}, "it has no number 'reward_token_id'"),
        ("config", {"vocab_size": 1.5}, "vocab_size is 1.5: expected a positive integer"),
        ("tokenizer_config", {"added_tokens_decoder": []}, "added_tokens_decoder: expected tokens by their ids"),
        ("tokenizer_config", {"added_tokens_decoder": {"a": 1}}, "added_tokens_decoder: expected tokens by their ids"),
        ("tokenizer_config", {"bos_token": ["<s>"]}, "bos_token: expected a token's text"),
    ],
)
def test_odd_values_in_an_official_folder_are_one_line(tmp_path, file, changes, message):
    """F13."""
    path = official.checkpoint(tmp_path / "model") / f"{file}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(PolarError, match=message):
        plan(tmp_path / "model")


def test_the_kept_official_tokenizer_must_be_that_of_the_model(converted, tmp_path):
    """int-3: the way back would write a tokenizer.model with other ids than the model's."""
    shutil.copytree(converted, tmp_path / "native")
    path = next((tmp_path / "native").glob("*/tokenizer_config.json"))
    plan(tmp_path / "native", to="internlm2")
    values = json.loads(path.read_text())
    token = next(token for token in values["added_tokens_decoder"].values() if token["content"] == "<|im_end|>")
    token["content"] = "<|im_stop|>"
    path.write_text(json.dumps(values))
    with pytest.raises(PolarError, match="its tokenizer is not this model's"):
        plan(tmp_path / "native", to="internlm2")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("v_head.weight"), "no reward head"),
        (lambda t: t.pop("model.norm.weight"), "missing tensor 'model.norm.weight'"),
        (lambda t: t.update({"model.layers.0.attention.wqkv.bias": torch.zeros(4)}), "unexpected tensor .*wqkv.bias"),
        (
            lambda t: t.update({"v_head.weight": torch.zeros(2, 32)}),
            r"'v_head.weight' has the shape \[2, 32\], but the config says \[1, 32\]",
        ),
        (lambda t: t["model.layers.1.attention.wo.weight"][3].fill_(float("nan")), "NaN"),
        (lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "quantised"),
    ],
)
def test_weights_that_can_not_be_converted_exactly_are_refused(tmp_path, change, reason):
    official.checkpoint(tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model/model.safetensors")
    with pytest.raises(UnsupportedModel, match=reason):
        convert(tmp_path / "model", tmp_path / "native")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_damaged_folders_are_refused(tmp_path):
    official.checkpoint(tmp_path / "model")
    content = (tmp_path / "model/model.safetensors").read_bytes()
    (tmp_path / "model/model.safetensors").write_bytes(content[:-100])
    with pytest.raises(PolarError, match="not a complete safetensors file"):
        plan(tmp_path / "model")
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(PolarError, match="not in the folder"):
        plan(tmp_path / "model")
    with pytest.raises(PolarError, match="no such folder"):
        plan(tmp_path / "nowhere")


def test_nothing_is_overwritten_and_no_partial_folder_is_left(source, converted, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/thesis.txt").touch()
    with pytest.raises(PolarError, match="exists already"):
        convert(source, tmp_path / "there")
    with pytest.raises(PolarError, match="exists already"):
        convert(tmp_path / "nowhere", tmp_path / "there")  # before the source is read
    with pytest.raises(PolarError, match="native folder already"):
        convert(converted, tmp_path / "new")
    with pytest.raises(PolarError, match="convert it to native first"):
        convert(source, tmp_path / "new", to="internlm2")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native, "write_file", fail)
    with pytest.raises(PolarError, match="No space left on device"):
        convert(source, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_only_plain_llama_is_converted_back(tmp_path):
    tiny.reward_model(tmp_path / "lm", "qwen2").save(tmp_path / "qwen2")
    with pytest.raises(UnsupportedModel, match="only LlamaForSequenceClassification"):
        plan(tmp_path / "qwen2", to="internlm2")
    tiny.reward_model(tmp_path / "llama").save(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    for change, reason in [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "RoPE"),
        ({"attention_bias": True}, "biases"),
        ({"head_dim": 32}, "head_dim"),
    ]:
        (tmp_path / "model/config.json").write_text(json.dumps(config | change))
        with pytest.raises(UnsupportedModel, match=reason):
            plan(tmp_path / "model", to="internlm2")


@pytest.mark.skipif("POLAR_GOLDEN" not in os.environ, reason="POLAR_GOLDEN names no folder with golden.json and official_tiny")
def test_golden_cases_of_the_official_code(tmp_path):
    fixtures = Path(os.environ["POLAR_GOLDEN"])
    convert(fixtures / "official_tiny", tmp_path / "native")
    model = RewardModel.from_pretrained(tmp_path / "native")
    saved = model.encoder
    for case in json.loads((fixtures / "golden.json").read_text())["cases"]:
        model.encoder = Encoder(saved.source, replace(saved.settings, **case["limits"])) if case["limits"] else saved
        item = ScoreItem(**case["item"])
        [scored] = Scorer(model).score([item])
        assert ids(model.encoder, item) == case["input_ids"], case["name"]
        assert scored.reward == pytest.approx(case["reward"], abs=1e-4), case["name"]
