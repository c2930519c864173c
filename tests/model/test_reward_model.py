import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BloomConfig, BloomForCausalLM, LlamaForCausalLM

from polar_rm.encoding.settings import EncoderSettings
from polar_rm.errors import EncoderMismatch, PolarError, UnsupportedModel
from polar_rm.model import exactness, skipping
from polar_rm.model.packing import pack
from polar_rm.model.presets import preset_config
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import Comparison
from polar_rm.scoring.scorer import Scorer

OUTPUTS = ["the quick brown fox", "a slow green turtle", "", "the quick brown dog", "7 and 8"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    tiny.reward_model(folder / "lm").save(folder / "model")
    return folder / "model"


def copy(saved, target, **config):
    shutil.copytree(saved, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_the_saved_folder_scores_equally_in_plain_transformers(tmp_path, family):
    model = tiny.reward_model(tmp_path / "lm", family)
    model.save(tmp_path / "model")
    scorer = Scorer(RewardModel.from_pretrained(tmp_path / "model"))
    ours = scorer.score_outputs(prompt="What?", reference="a fox", outputs=OUTPUTS)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert type(plain).__name__.lower() == f"{family}forsequenceclassification"
    encoder = model.encoder
    trees = encoder.encode_outputs("What?", "a fox", OUTPUTS, "sft")
    sequences = {i: tree.sequence(branch) for part, tree in trees for branch, i in enumerate(part)}
    with torch.no_grad():
        theirs = [float(plain(torch.tensor([sequences[i]])).logits) for i in range(len(OUTPUTS))]
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert len({round(score, 4) for score in ours}) == len(OUTPUTS)
    # The tokenizer in the folder gives the same ids as our encoder.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "What?\na fox<|reward|>What?\n" + OUTPUTS[0] + encoder.settings.reward_token
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == sequences[0]


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_the_last_layer_computes_only_keys_and_values_outside_score_positions(tmp_path, family):
    model = tiny.reward_model(tmp_path, family)
    first, *_, last = model.backbone.model.layers
    n_inputs = {layer: [] for layer in (first, last)}
    for layer, sizes in n_inputs.items():
        for part in ("self_attn.k_proj", "self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj"):
            layer.get_submodule(part).register_forward_pre_hook(lambda module, args, sizes=sizes: sizes.append(args[0].shape[1]))
    comparisons = [Comparison("What?", "a fox", tuple(OUTPUTS[:k]), tuple(range(k))) for k in (3, 2)]
    row = pack(model.encoder.encode_many(comparisons))
    scores = model(row)
    n_tokens = row.layout.n_tokens
    assert {layer: sorted(sizes) for layer, sizes in n_inputs.items()} == {first: [n_tokens] * 5, last: [5, 5, 5, 5, n_tokens]}
    model.backbone.set_attn_implementation("eager")
    sequence = row.ids[:, : row.layout.spans[0].prefix + row.layout.spans[0].branches[0]]
    assert float(model.backbone(sequence, use_cache=False).logits) == pytest.approx(scores[0].item(), rel=1e-5, abs=1e-6)
    assert n_inputs[last][5:] == [sequence.shape[1]] * 5  # transformers without a tree is unchanged


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_in_inference_an_mlp_takes_a_row_in_chunks_and_scores_stay_the_same(tmp_path, family, monkeypatch):
    model = deepcopy(tiny.reward_model(tmp_path, family))
    row = pack(model.encoder.encode_many([Comparison("What?", "a fox", tuple(OUTPUTS), tuple(range(5)))]))
    expected = model(row).detach()
    monkeypatch.setattr(skipping.Chunked, "TOKENS", 7)
    sizes = []
    model.backbone.model.layers[0].mlp.gate_proj.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    with torch.inference_mode():
        torch.testing.assert_close(model(row), expected, rtol=1e-5, atol=1e-6)
    assert len(sizes) > 1
    assert max(sizes) == 7
    assert sum(sizes) == row.layout.n_tokens


def test_a_new_model_scores_zero_everywhere(tmp_path):
    model = tiny.reward_model(tmp_path / "lm", head=False)
    assert Scorer(model).score_outputs(prompt="p", reference="r", outputs=["a", "b"]) == [0.0, 0.0]
    assert model.backbone.score.weight.dtype == torch.float32
    assert model.backbone.score.bias is None


def test_bf16_backbones_keep_a_float32_head(saved):
    model = RewardModel.from_pretrained(saved, dtype="bfloat16")
    assert model.backbone.score.weight.dtype == torch.float32
    assert next(model.backbone.model.parameters()).dtype == torch.bfloat16
    full = Scorer(RewardModel.from_pretrained(saved)).score_outputs(prompt="p", reference="r", outputs=OUTPUTS)
    assert Scorer(model).score_outputs(prompt="p", reference="r", outputs=OUTPUTS) == pytest.approx(full, rel=0.05, abs=0.1)


def test_only_the_first_layers_are_kept(tmp_path):
    folder = tiny.causal_lm(tmp_path / "lm")
    assert len(RewardModel.from_causal_lm(folder, n_layers=1).backbone.model.layers) == 1
    with pytest.raises(PolarError, match="1 to 2, not 3"):
        RewardModel.from_causal_lm(folder, n_layers=3)


def test_presets_need_only_a_tokenizer(tmp_path):
    folder = tiny.causal_lm(tmp_path / "lm")
    first, again = (RewardModel.from_preset("1m", folder, seed=3) for _ in range(2))
    weights = sum(p.numel() for name, p in first.backbone.named_parameters() if "embed" not in name)
    assert 0.5e6 < weights < 1.5e6
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    with pytest.raises(PolarError, match="unknown preset 'huge'; known: 1m"):
        RewardModel.from_preset("huge", folder)


@pytest.mark.parametrize(("preset", "millions"), [("7B", 7738), ("1.8b", 1889)])
def test_the_published_sizes_are_those_of_internlm2_5(preset, millions):
    """Parameters of the language models as published, with both embeddings of 92,544 tokens."""
    config = preset_config(preset, vocab_size=92544)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert round(sum(each.numel() for each in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize(("preset", "heads", "shared"), [("3x96", 3, 3), ("2x128", 4, 2), ("1x384", 6, 3)])
def test_a_preset_may_be_layers_and_width(tmp_path, preset, heads, shared):
    config = RewardModel.from_preset(preset, tiny.causal_lm(tmp_path / "lm")).backbone.config
    assert f"{config.num_hidden_layers}x{config.hidden_size}" == preset
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, shared)
    assert config.intermediate_size == 3 * config.hidden_size
    for wrong, message in (("0x64", "unknown preset '0x64'.*8x384"), ("2x40", "multiple of 32")):
        with pytest.raises(PolarError, match=message):
            RewardModel.from_preset(wrong, tmp_path / "lm")


def test_weights_that_are_nan_or_missing_are_refused(saved, tmp_path):
    broken = copy(saved, tmp_path / "nan")
    change_weights(broken, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(UnsupportedModel, match=r"'model.norm.weight' holds NaN"):
        RewardModel.from_pretrained(broken)
    headless = copy(saved, tmp_path / "headless")
    change_weights(headless, lambda weights: weights.pop("score.weight"))
    with pytest.raises(UnsupportedModel, match=r"1 tensors are missing, first 'score.weight'"):
        RewardModel.from_pretrained(headless)


def test_another_encoder_is_refused(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    config["polar"]["encoder"]["settings"]["max_length"] = 9999
    with pytest.raises(EncoderMismatch, match="hash"):
        RewardModel.from_pretrained(copy(saved, tmp_path / "settings", polar=config["polar"]))
    other = copy(saved, tmp_path / "tokenizer")
    changed = json.loads((other / "tokenizer.json").read_text())
    changed["model"]["merges"] = changed["model"]["merges"][:-5]
    (other / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(EncoderMismatch):
        RewardModel.from_pretrained(other)


def test_folders_without_a_reward_model_are_refused(tmp_path):
    lm = tiny.causal_lm(tmp_path / "lm")
    with pytest.raises(UnsupportedModel, match=r"LlamaForCausalLM.*use model.init"):
        RewardModel.from_pretrained(lm)
    with pytest.raises(PolarError, match="nowhere"):
        RewardModel.from_pretrained(tmp_path / "nowhere")
    windowed = tiny.causal_lm(tmp_path / "windowed", "mistral", sliding_window=16)
    with pytest.raises(UnsupportedModel, match="sliding window"):
        RewardModel.from_causal_lm(windowed)


def test_weights_that_are_truncated_or_of_another_shape_are_refused(saved, tmp_path):
    truncated = copy(saved, tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PolarError, match="truncated/model.safetensors: not a complete safetensors file"):
        RewardModel.from_pretrained(truncated)
    narrow = copy(saved, tmp_path / "narrow")
    change_weights(narrow, lambda weights: weights.update({"model.norm.weight": torch.ones(63)}))
    shapes = (
        r"the shape \[63\], but config.json says \[64\]"
        if transformers.__version__ >= "5"
        else "another shape than config.json says"
    )
    with pytest.raises(UnsupportedModel, match=f"tensor 'model.norm.weight' has {shapes}$"):
        RewardModel.from_pretrained(narrow)


@pytest.mark.parametrize("section", [{}, "x", {"settings": {"max_length": "x"}, "tokenizer": "", "hash": ""}])
def test_invalid_encoder_settings_are_refused(saved, tmp_path, section):
    with pytest.raises(PolarError, match=r"config.json: .*encoder settings"):
        RewardModel.from_pretrained(copy(saved, tmp_path / "model", polar={"encoder": section}))


def test_a_backbone_may_be_wrapped_again(tmp_path):
    model = tiny.reward_model(tmp_path / "lm")
    again = RewardModel(model.backbone, model.encoder, model.specials)
    case = {"prompt": "the", "reference": "quick", "outputs": ["fox", "lazy dog"]}
    assert Scorer(again).score_outputs(**case) == Scorer(model).score_outputs(**case)


def test_threads_may_share_a_model(tmp_path):
    model = tiny.reward_model(tmp_path / "lm")
    cases = [
        {"prompt": "the", "reference": "quick", "outputs": ["fox"]},
        {"prompt": "a", "reference": "b", "outputs": ["c d", "e"]},
    ]
    alone = [Scorer(model).score_outputs(**case) for case in cases]
    both = threading.Barrier(2, timeout=60)

    def wait(*_):
        both.wait()  # both threads are in the model before either runs its last layer

    model.backbone.model.layers[-1].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda case: Scorer(model).score_outputs(**case), cases)) == alone


def test_families_that_do_not_pass_the_equality_check_are_refused_by_name(tmp_path):
    lm = tiny.causal_lm(tmp_path / "bloom")
    BloomForCausalLM(BloomConfig(vocab_size=400, hidden_size=32, n_layer=1, n_head=2)).save_pretrained(lm)
    with pytest.raises(UnsupportedModel, match="bloom"):
        RewardModel.from_causal_lm(lm)


def test_the_equality_check_admits_exact_families_and_refuses_wrong_ones(tmp_path, monkeypatch):
    model = tiny.reward_model(tmp_path / "lm")
    assert exactness.equality_error(model.backbone, model.encoder) < 1e-5
    monkeypatch.setattr(exactness, "SUPPORTED", ())
    with pytest.warns(UserWarning, match="passed the equality check"):
        RewardModel.from_causal_lm(tmp_path / "lm")
    from polar_rm.attention.layout import TreeLayout

    tensors = TreeLayout.tensors

    def wrong(self, padding=0):
        right = tensors(self, padding)
        return right._replace(positions=right.positions.clamp(max=12))

    monkeypatch.setattr(TreeLayout, "tensors", wrong)
    with pytest.raises(UnsupportedModel, match="differs from separate sequences"):
        RewardModel.from_causal_lm(tmp_path / "lm")


def test_the_equality_check_fails_with_nan(tmp_path, monkeypatch):
    monkeypatch.setattr(exactness, "SUPPORTED", ())
    monkeypatch.setattr(exactness, "equality_error", lambda backbone, encoder: float("nan"))
    with pytest.raises(UnsupportedModel, match="differs from separate sequences by nan"):
        RewardModel.from_causal_lm(tiny.causal_lm(tmp_path / "lm"))


def test_settings_are_saved_in_the_checkpoint(tmp_path):
    settings = EncoderSettings(template="polar-chat", max_length=300, max_response_length=50)
    tiny.reward_model(tmp_path / "lm", settings=settings).save(tmp_path / "model")
    assert RewardModel.from_pretrained(tmp_path / "model").encoder.settings == settings
