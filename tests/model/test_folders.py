"""F13, F12, H13, B8: whatever a model folder holds, it is loaded exactly or refused in one line that names the fault."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from polar_rm.conversion.convert import plan
from polar_rm.errors import PolarError, UnsupportedModel
from polar_rm.model import devices, exactness, weights
from polar_rm.model.blueprint import checkpoint_blueprint, language_model_blueprint
from polar_rm.model.language_models import load_auto_tokenizer, load_causal_lm
from polar_rm.model.reward_model import RewardModel


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    tiny.reward_model(folder / "lm").save(folder / "native")
    return folder


def config(**changes):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def rope(**values):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        written = json.loads(path.read_text())
        written["rope_parameters"] = {"rope_theta": 10000.0, **values}
        written["rope_scaling"] = values
        path.write_text(json.dumps(written))

    return change


def pickled(value=None, **changes):
    """Weights as a file of PyTorch in place of safetensors."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(tensors if value is None else value, folder / "pytorch_model.bin", **changes)

    return change


def hostile_pickle(folder: Path) -> None:
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(folder / "ran"),)

    pickled({"a": Runs()})(folder)


def index(value):
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(value))

    return change


def nested(depth: int):
    def change(folder: Path) -> None:
        text = (folder / "config.json").read_text().rstrip().removesuffix("}")
        (folder / "config.json").write_text(text + ', "x": ' + '{"a":' * depth + "1" + "}" * depth + "}")

    return change


def tokenizer_config(**changes):
    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def normalizer(*steps):
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        written = json.loads(path.read_text())
        path.write_text(json.dumps(written | {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}))

    return change


def compressed_pickle(folder: Path) -> None:
    pickled()(folder)
    path, compressed = folder / "pytorch_model.bin", folder / "compressed"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(compressed, "w") as target:
        for member in source.infolist():
            kind = zipfile.ZIP_DEFLATED if member.filename.endswith("data.pkl") else zipfile.ZIP_STORED
            content = source.read(member)
            target.writestr(member.filename, content + bytes(1 << 22) if kind == zipfile.ZIP_DEFLATED else content, kind)
    compressed.replace(path)


BOMB = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
CASES = {
    "hidden size 0": (config(hidden_size=0), r"config.json: hidden_size is 0: expected a positive integer"),
    "hidden size as text": (config(hidden_size="64"), r"hidden_size is '64': expected a positive integer"),
    "not an integer": (config(num_attention_heads=True), "num_attention_heads is True"),
    "negative positions": (config(max_position_embeddings=-5), "max_position_embeddings is -5"),
    "NaN": (config(rms_norm_eps=float("nan")), "rms_norm_eps is nan: expected a positive number"),
    "layers": (config(num_hidden_layers=10**7), "num_hidden_layers is 10,000,000: more than 10,000"),
    "labels": (config(num_labels=10**9), "num_labels is 1,000,000,000: more than 65,536"),
    "vocabulary": (config(vocab_size=10**11), "vocab_size is 100,000,000,000: more than 16,777,216"),
    "hidden size": (config(hidden_size=10**9), "hidden_size is 1,000,000,000: more than 262,144"),
    "heads": (config(num_attention_heads=10**9), "num_attention_heads is 1,000,000,000: more than 65,536"),
    "positions": (config(max_position_embeddings=10**12), "max_position_embeddings is 1,000,000,000,000: more than"),
    "a size in a part": (config(vision_config={"hidden_size": 10**9}), "vision_config.hidden_size is 1,000,000,000: more than"),
    "infinite": (config(num_local_experts=float("inf")), "num_local_experts is inf: more than 16,384"),
    "more layers than weights": (config(num_hidden_layers=3000), "says 3,000 layers, but the weights have 2"),
    "rope x": (rope(rope_type="x"), "unknown type 'x'; known: default, "),
    "rope is a list": (config(rope_parameters=[1], rope_scaling=[1]), "expected an object"),
    "dynamic": (rope(rope_type="dynamic", factor=2.0), "'dynamic', whose frequencies depend on the longest sequence of a row"),
    "longrope": (
        rope(rope_type="longrope", factor=2.0, short_factor=[1.0] * 8, long_factor=[2.0] * 8),
        "'longrope', whose frequencies depend",
    ),
    "longrope under its old name": (config(rope_scaling={"type": "su"}, rope_parameters=None), "'su', whose frequencies"),
    "by layer type": (
        rope(full_attention={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        "'dynamic', whose frequencies",
    ),
    "factor": (rope(rope_type="linear", factor=float("nan")), "factor is nan: expected a positive number"),
    **{
        method: (config(quantization_config={"quant_method": method, "bits": 4}), rf"quantised \('{method}'\)")
        for method in ("gptq", "awq", "bitsandbytes", "compressed-tensors", "unheard-of")
    },
    "unknown quantisation": (config(quantization_config="int4"), "quantised"),
    "nested": (nested(100_000), "config.json: not JSON"),
    "nested less": (nested(500), "config.json: nested deeper than 50 levels"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json: not a JSON object"),
    "model type": (config(model_type="no-such-model"), "no-such-model"),
    "model type is a number": (config(model_type=5), "folder: "),
    "index that leaves the folder": (
        index({"weight_map": {"a": "../outside.safetensors"}}),
        r"index.json: it names the shard '../outside.safetensors', which is not in the folder",
    ),
    "index of a list": (index([]), "index.json: not a JSON object"),
    "index of lists": (index({"weight_map": {"a": ["b"]}}), "has no 'weight_map'"),
    "index of nothing": (index({"weight_map": {"a": "gone.safetensors"}}), "names the shard 'gone.safetensors'"),
    "code in a pickle": (hostile_pickle, "not a file of weights only"),
    "old pickle": (pickled(_use_new_zipfile_serialization=False), "not a file of weights only"),
    "a list in a pickle": (pickled([torch.ones(2)]), "it holds no tensors by name"),
    "integer keys": (pickled({1: torch.ones(2)}), "it holds no tensors by name"),
    "a compressed pickle": (compressed_pickle, "is compressed, .* for 4,[0-9,]+; torch does not compress"),
    "padding is an object": (tokenizer_config(pad_token={"x": 1}), r"tokenizer_config.json: pad_token: expected a token's text"),
    "padding is a number": (tokenizer_config(pad_token=5), r"tokenizer_config.json: pad_token: expected a token's text, not 5"),
    "a replacement bomb": (normalizer(BOMB, BOMB, BOMB), "can make a text 1,000,000,000 times as long; the limit is 100"),
    "tokenizer is a list": (lambda folder: (folder / "tokenizer.json").write_text("[]"), "tokenizer.json: not a JSON object"),
    "tokenizer is nested": (
        lambda folder: (folder / "tokenizer.json").write_text('{"normalizer":' * 50_000 + "1" + "}" * 50_000),
        "tokenizer.json: not JSON",
    ),
    "odd normaliser": (normalizer({"type": "Replace", "pattern": 3, "content": "a"}), "tokenizer.json: not a tokenizer"),
}


ASKS_FOR_MORE = {
    "intermediate_size": (10**6, r"'model.layers.1.mlp.up_proj.weight' has the shape \[96, 64\], by its config \[1000000, 64\]"),
    "vocab_size": (10**7, r"'model.embed_tokens.weight' has the shape \[40\d, 64\], by its config \[10000000, 64\]"),
    "head_dim": (50_000, r"'model.layers.1.self_attn.q_proj.weight' has the shape \[64, 64\], by its config \[200000, 64\]"),
}


@pytest.mark.parametrize("key", ASKS_FOR_MORE)
@pytest.mark.parametrize("load", [language_model_blueprint, checkpoint_blueprint])
def test_what_a_config_asks_for_is_held_against_the_weights_before_it_is_built(folders, tmp_path, key, load):
    """F12. A small folder asked for any amount of memory."""
    folder = tmp_path / "folder"
    shutil.copytree(folders / ("lm" if load is language_model_blueprint else "native"), folder)
    value, message = ASKS_FOR_MORE[key]
    config(**{key: value})(folder)
    with pytest.raises(UnsupportedModel, match=rf"config asks for [\d,]+ parameters, its weights hold [\d,]+: tensor {message}"):
        load(folder)


def test_weights_that_this_machine_has_no_memory_for_are_not_begun_with(folders, monkeypatch):
    """F12."""
    blueprint = checkpoint_blueprint(folders / "native")
    tensors = [*blueprint.on_meta.parameters(), *blueprint.on_meta.buffers()]
    needed = 4 * sum(tensor.numel() for tensor in tensors)
    monkeypatch.setattr(devices, "machine_memory", lambda: needed - 1)
    with pytest.raises(PolarError, match=r"native: weights in float32 need 0.0 GiB of memory, this machine has 0.0 GiB"):
        RewardModel.from_blueprint(blueprint)
    RewardModel.from_blueprint(blueprint, dtype="bfloat16")
    monkeypatch.setattr(devices, "machine_memory", lambda: needed)
    RewardModel.from_blueprint(blueprint)


def policy(folder: Path):
    """A policy's language model, as ``polar sample`` and ``polar rft`` load it."""
    return load_causal_lm(folder, None, torch.float32)


def test_a_policys_folder_is_judged_before_transformers_reads_it(tmp_path):
    """F12. Language models of policies are read elsewhere, and their configs with the tokenizer."""
    folder = tiny.causal_lm(tmp_path / "lm")
    config(num_labels=10**9)(folder)
    for load in (load_auto_tokenizer, policy):
        with pytest.raises(UnsupportedModel, match="num_labels is 1,000,000,000: more than 65,536"):
            load(folder)


TOKENIZER_CASES = {
    "config is a list": (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "config.json: not a JSON object"),
    "end is a list": (tokenizer_config(eos_token=["</s>"]), r"tokenizer_config.json: eos_token: expected a token's text, not \["),
    "class is a number": (tokenizer_config(tokenizer_class=5), "folder: no tokenizer could be loaded: 'int' object"),
    "tokens are nothing": (tokenizer_config(added_tokens_decoder=None), "folder: no tokenizer could be loaded: "),
    "length is a text": (tokenizer_config(model_max_length="x"), "folder: no tokenizer could be loaded: '>' not supported"),
    "template is a number": (tokenizer_config(chat_template=5), "folder: its chat template is 5: expected a text"),
    "template of numbers": (
        tokenizer_config(chat_template={"default": 1}),
        "template is {'default': 1}: expected a text",
    ),
    "map is a list": (
        lambda folder: (folder / "special_tokens_map.json").write_text("[]"),
        "folder: no tokenizer could be loaded: 'list' object",
    ),
    "a replacement bomb": (normalizer(BOMB, BOMB, BOMB), "can make a text 1,000,000,000 times as long; the limit is 100"),
    "the model's config": (config(rms_norm_eps="x"), "config.json: rms_norm_eps is 'x': expected a positive number"),
}


@pytest.mark.parametrize("name", TOKENIZER_CASES)
@pytest.mark.parametrize("load", [load_auto_tokenizer, policy])
def test_a_policys_tokenizer_is_one_clear_line(folders, tmp_path, name, load):
    """F13, F12: TypeErrors, AttributeErrors and KeyErrors of transformers escaped."""
    change, message = TOKENIZER_CASES[name]
    folder = tmp_path / "folder"
    shutil.copytree(folders / "lm", folder)
    change(folder)
    with pytest.raises(PolarError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ASKS_FOR_MORE)
def test_what_a_policys_config_asks_for_is_held_against_its_weights(folders, tmp_path, key):
    """F12."""
    folder = tmp_path / "folder"
    shutil.copytree(folders / "lm", folder)
    value, message = ASKS_FOR_MORE[key]
    config(**{key: value})(folder)
    with pytest.raises(UnsupportedModel, match=rf"config asks for [\d,]+ parameters, its weights hold [\d,]+: tensor {message}"):
        policy(folder)


def test_sizes_of_an_official_folder_are_judged_first(folders, tmp_path):
    """F12. Names of all tensors are made of its number of layers."""
    shutil.copytree(folders / "native", tmp_path / "native")
    config(num_hidden_layers=10**8)(tmp_path / "native")
    with pytest.raises(UnsupportedModel, match="num_hidden_layers is 100,000,000: more than 10,000"):
        plan(tmp_path / "native", to="internlm2")
    config(architectures=["InternLM2ForRewardModel"], polar=None)(tmp_path / "native")
    with pytest.raises(UnsupportedModel, match="num_hidden_layers is 100,000,000: more than 10,000"):
        plan(tmp_path / "native")


def small_gguf(folder: Path, **changes: int) -> Path:
    """A GGUF of one tensor that says what it is told to."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(folder / "small.gguf", "llama")
    sizes = {"block_count": 2, "embedding_length": 64, "feed_forward_length": 96, "context_length": 2048}
    sizes |= {"attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": 400}
    for key, value in (sizes | changes).items():
        writer.add_uint64(f"llama.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((400, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_sizes_of_a_gguf_are_judged_before_transformers_reads_it(tmp_path):
    """F12."""
    small_gguf(tmp_path, block_count=10**9)
    with pytest.raises(UnsupportedModel, match="small.gguf: num_hidden_layers is 1,000,000,000: more than 10,000"):
        RewardModel.from_causal_lm(tmp_path)
    (tmp_path / "small.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(PolarError, match="small.gguf: not a complete GGUF file"):
        RewardModel.from_causal_lm(tmp_path)


@pytest.fixture
def small_description(monkeypatch):
    monkeypatch.setattr(weights, "MAX_DESCRIPTION", 1 << 20)


# What prefix trees and training can't have, but a policy may.
OF_REWARD_MODELS = {name for name in CASES if "rope" in name or "quantis" in name}
OF_REWARD_MODELS |= {"dynamic", "by layer type", "factor", "gptq", "awq", "bitsandbytes", "compressed-tensors", "unheard-of"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in CASES
        for kind in ("lm", "policy", "native", "stock")
        if kind != "policy" or name not in OF_REWARD_MODELS
    ],
)
def test_each_is_one_clear_line(folders, tmp_path, name, kind, small_description):
    change, message = CASES[name]
    folder = tmp_path / "folder"
    shutil.copytree(folders / ("lm" if kind in ("lm", "policy") else "native"), folder)
    if kind == "stock":
        written = json.loads((folder / "config.json").read_text())
        del written["polar"]
        (folder / "config.json").write_text(json.dumps(written))
    load = {"lm": RewardModel.from_causal_lm, "policy": policy, "native": RewardModel.from_pretrained, "stock": plan}[kind]
    change(folder)
    with pytest.raises(PolarError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not (folder / "ran").exists()


def test_pytorch_files_that_hold_only_weights_are_read(folders, tmp_path):
    shutil.copytree(folders / "lm", tmp_path / "lm")
    pickled()(tmp_path / "lm")
    assert policy(tmp_path / "lm")[1].num_parameters() == policy(folders / "lm")[1].num_parameters()
    expected, read = (RewardModel.from_causal_lm(folder).state_dict() for folder in (folders / "lm", tmp_path / "lm"))
    assert all(torch.equal(expected[name], read[name]) for name in expected)


def test_a_missing_package_that_weights_need_is_reported_in_one_line(monkeypatch, folders):
    from transformers import AutoModelForSequenceClassification

    def missing(*_, **__):
        raise ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes\n\nand more")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", missing)
    with pytest.raises(UnsupportedModel, match="lm: Using `bitsandbytes` 4-bit quantization requires bitsandbytes$"):
        RewardModel.from_causal_lm(folders / "lm")


def test_the_equality_check_detects_frequencies_that_depend_on_the_longest_position(tmp_path, monkeypatch):
    """B8."""
    from polar_rm.model import backbones

    folder = tiny.gpt_neox(tmp_path / "lm", rope_scaling={"rope_type": "dynamic", "factor": 8.0}, rotary_pct=1.0)
    with pytest.raises(UnsupportedModel, match="'dynamic', whose frequencies"):
        RewardModel.from_causal_lm(folder)
    monkeypatch.setattr(backbones, "check_config_file", lambda folder: None)
    monkeypatch.setattr(backbones, "rope_refusals", lambda values: [])
    with pytest.raises(UnsupportedModel, match="differs from separate sequences"):
        RewardModel.from_causal_lm(folder)
    monkeypatch.setattr(exactness, "_first_long_position", lambda config, n_tokens: 0)
    with pytest.warns(UserWarning, match="passed"):  # without long positions the check does not detect it
        RewardModel.from_causal_lm(folder)


def test_a_bomb_takes_no_memory(tmp_path):
    """F12. The process has a memory limit, because the tokenizer's library aborts where memory runs out."""
    tiny.causal_lm(tmp_path / "lm")
    normalizer(BOMB, BOMB, BOMB)(tmp_path / "lm")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32));"
        "from polar_rm.encoding.tokenizers import load_tokenizer\n"
        "try: load_tokenizer(sys.argv[1])\nexcept Exception as error: print(type(error).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lm")], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "PolarError"


def test_a_buffer_of_old_checkpoints_is_ignored(folders, tmp_path):
    shutil.copytree(folders / "native", tmp_path / "old")
    path = tmp_path / "old/model.safetensors"
    written = load_file(path)
    save_file(written | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, path, metadata={"format": "pt"})
    assert weights.read_weights(tmp_path / "old").keys() == written.keys()
