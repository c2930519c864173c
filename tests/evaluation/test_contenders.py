"""Who can be compared, and that each kind gives the numbers of what it stands for."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import fakes, tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from polar_rm.errors import PolarError, ScoreError
from polar_rm.evaluation import ModelOptions, evaluate_files, find_contenders
from polar_rm.evaluation.contenders.embedding import pooling_of
from polar_rm.evaluation.contenders.native import Native
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import Comparison, ScoreItem, write_records
from polar_rm.rewards.outcomes import Cut
from polar_rm.scoring.scorer import Scorer

TEMPLATE = "<s>{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
BERT = {
    "vocab_size": tiny.tokenizer().get_vocab_size(),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}
CPU = ModelOptions(device="cpu", row_tokens=256)

ITEMS = [
    Comparison("What is the capital?", "Beijing.", ("Beijing.", "Shanghai is larger, " * 5), (0, 1)),
    Comparison("over", "the dog", ("the fox jumps over " * 9, "a", "dog " * 20), (1, 0, 2)),
    Comparison([{"role": "system", "content": "Be slow."}, {"role": "user", "content": "Why?"}], "So.", ("1", "22"), (0, 1)),
    Comparison("What is it?", "", ([{"role": "assistant", "content": "a turtle"}], "12,345.6"), (0, 1)),
]


def classifier(folder, family="llama", *, pad="config", template=TEMPLATE, labels=1, **changes):
    """An ordinary reward model with a tokenizer that puts a BOS before every text. pad: where a padding token is named."""
    torch.manual_seed(0)
    config = tiny.config(family, num_labels=labels, **changes)
    if pad != "config":
        config.pad_token_id = None
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny.tokenizer(bos=True).save(str(folder / "tokenizer.json"))
    specials = {"bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad == "config" else {})
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **specials}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | ({"chat_template": template} if template else {})))
    return folder


def plain_scores(folder, items):
    """Scores of one sequence at a time, as in a model card: no padding, no batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    results = []
    for item in items:
        prompt = [{"role": "user", "content": item.prompt}] if isinstance(item.prompt, str) else item.prompt
        scores = []
        for candidate in item.candidates:
            answer = [{"role": "assistant", "content": candidate}] if isinstance(candidate, str) else candidate
            text = tokenizer.apply_chat_template([*prompt, *answer], tokenize=False)
            ids = torch.tensor([tiny.tokenizer().encode(text, add_special_tokens=False).ids])
            with torch.no_grad():
                scores.append(float(model(ids).logits[0, 0]))
        results.append(scores)
    return results


@pytest.mark.parametrize(("family", "pad"), [("llama", "config"), ("qwen2", "none"), ("qwen2", "config")])
def test_an_ordinary_model_scores_a_batch_as_single_sequences_without_padding(tmp_path, family, pad):
    """B4: in its own chat template, whatever stands beside it in a batch."""
    folder = classifier(tmp_path / "bt", family, pad=pad)
    [contender] = find_contenders([f"hf:{folder}"], CPU)
    contender.check()
    together = list(contender.load().score_comparisons(ITEMS))
    assert [list(scores) for scores in together] == [pytest.approx(scores, abs=1e-5) for scores in plain_scores(folder, ITEMS)]
    alone = [scores for item in ITEMS for scores in contender.load().score_comparisons([item])]
    assert alone == [pytest.approx(scores, abs=1e-4) for scores in together]
    deviation = torch.tensor([score for scores in together for score in scores]).std()
    assert deviation > 0.05  # a wrong position, mask or pooling would show


def test_a_config_without_padding_reads_the_score_at_the_last_token(tmp_path):
    """Token 0 would be the next best padding; here every text ends in it."""
    folder = classifier(tmp_path / "bt", pad="none", template=TEMPLATE.replace("<|im_end|>", "<s>"))
    [contender] = find_contenders([f"hf:{folder}"], CPU)
    together = list(contender.load().score_comparisons(ITEMS))
    assert [list(scores) for scores in together] == [pytest.approx(scores, abs=1e-5) for scores in plain_scores(folder, ITEMS)]


def test_padding_does_not_change_scores_of_a_bidirectional_model(tmp_path):
    folder = classifier(tmp_path / "bt")
    torch.manual_seed(1)
    config = BertConfig(**BERT, pad_token_id=2, num_labels=1, max_position_embeddings=512)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    [contender] = find_contenders([f"hf:{folder}"], CPU)
    together = list(contender.load().score_comparisons(ITEMS))
    assert [list(scores) for scores in together] == [pytest.approx(scores, abs=1e-5) for scores in plain_scores(folder, ITEMS)]


def test_no_bos_is_doubled_and_references_change_nothing(tmp_path):
    folder = classifier(tmp_path / "bt")
    [contender] = find_contenders([f"hf:{folder}"], CPU)
    ids = contender.load()._template.ids(ITEMS[0], 1)
    assert [each.count(0) for each in ids] == [1, 1]  # <s>, of the template alone
    assert all(each[-1] == 4 for each in ids)
    assert not contender.reads_references
    others = [replace(item, reference="another") for item in ITEMS]
    assert list(contender.load().score_comparisons(others)) == list(contender.load().score_comparisons(ITEMS))


def test_an_ordinary_model_whose_texts_end_in_the_padding_token(tmp_path):
    """transformers reads such a sequence one token earlier, alone as in a batch; so does the contender."""
    folder = classifier(tmp_path / "bt", "qwen2", template=TEMPLATE.replace("<|im_end|>", "<pad>"))
    [contender] = find_contenders([f"hf:{folder}"], CPU)
    together = list(contender.load().score_comparisons(ITEMS))
    assert [list(scores) for scores in together] == [pytest.approx(scores, abs=1e-5) for scores in plain_scores(folder, ITEMS)]


def test_equal_sequences_have_one_score_and_long_ones_are_noted(tmp_path):
    folder = classifier(tmp_path / "bt", max_position_embeddings=64)
    [contender] = find_contenders([f"hf:{folder}"], CPU)
    item = Comparison("p", "", ("fox", "fox", "the quick fox " * 40), (0, 1, 2))
    [scores] = contender.load().score_comparisons([item])
    assert scores[0] == scores[1]
    assert scores.notes == [("tied",), ("tied",), ("beyond_positions",)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: classifier(folder, template=None), "no chat template"),
        (lambda folder: classifier(folder, labels=2), "one label, this has 2"),
        (lambda folder: tiny.causal_lm(folder), r"takes a \*ForSequenceClassification model, this is LlamaForCausalLM"),
        (lambda folder: tiny.reward_model(folder / "lm").save(folder / "rm") or folder / "rm", "without hf:"),
    ],
)
def test_a_folder_of_another_kind_is_refused_in_one_line(tmp_path, change, message):
    folder = change(tmp_path)
    [contender] = find_contenders([f"hf:{folder}"], CPU)
    with pytest.raises(PolarError, match=message):
        contender.check()


def test_ordinary_models_without_weights_or_that_would_run_code(tmp_path):
    folder = classifier(tmp_path / "bt")
    weights = load_file(folder / "model.safetensors")
    without = {name: tensor for name, tensor in weights.items() if name != "score.weight"}
    save_file(without, folder / "model.safetensors", metadata={"format": "pt"})
    [contender] = find_contenders([f"hf:{folder}"], CPU)
    contender.check()
    with pytest.raises(PolarError, match=r"1 tensors are missing, first 'score.weight'"):
        contender.load()
    config = json.loads((folder / "config.json").read_text())
    code = {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config | code))
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(PolarError, match="never run"):
        contender.check()


def test_texts_that_a_template_has_no_form_for(tmp_path):
    folder = classifier(tmp_path / "bt", template="{{ raise_exception('roles must alternate') }}")
    [contender] = find_contenders([f"hf:{folder}"], CPU)
    scorer = contender.load()
    with pytest.raises(PolarError, match="comparison 1: the chat template refuses it: roles must alternate"):
        list(scorer.score_comparisons(ITEMS))
    [good] = find_contenders([f"hf:{classifier(tmp_path / 'good')}"], CPU)
    with pytest.raises(PolarError, match="comparison 2 continues a text"):
        list(good.load().score_comparisons([ITEMS[0], replace(ITEMS[0], wrapper="pretrain")]))


def test_a_native_model_has_the_scores_and_notes_of_its_scorer(checkpoint):
    folder, model = checkpoint
    contender = Native("rm", folder, CPU)
    contender.check()
    long = Comparison("p", "r", ("fox " * 90 + "a", "fox " * 90 + "b"), (0, 1))
    results = list(contender.load().score_comparisons([*ITEMS, long]))
    assert [list(scores) for scores in results] == list(Scorer(model, row_tokens=256).score_comparisons([*ITEMS, long]))
    assert results[-1].notes == [("truncated", "tied")] * 2
    assert contender.facts == {"encoder_hash": model.encoder.hash, "dtype": "float32", "device": "cpu"}
    assert contender.warnings == []


def test_scores_come_window_by_window_so_that_progress_shows(checkpoint, tmp_path):
    folder, _ = checkpoint
    names = [str(folder), f"hf:{classifier(tmp_path / 'bt')}", f"embedding:{encoder(tmp_path / 'st')}"]
    for contender in find_contenders(names, CPU):
        taken = 0

        def stream():
            nonlocal taken
            for _ in range(300):
                taken += 1
                yield ITEMS[0]

        next(iter(contender.load().score_comparisons(stream())))
        assert 1 <= taken <= 200, contender.name


def test_an_untrained_model_has_a_warning(tmp_path):
    """B4: also after it was saved and loaded."""
    model = RewardModel.from_causal_lm(tiny.causal_lm(tmp_path / "lm"))
    model.save(tmp_path / "new")
    assert json.loads((tmp_path / "new/config.json").read_text())["polar"]["untrained"] == [
        "head",
        "<|reward|>",
        "[UNUSED_TOKEN_130]",
    ]
    warning = r"its head and its tokens <\|reward\|> and \[UNUSED_TOKEN_130\] were never trained, so its scores mean nothing"
    with pytest.warns(UserWarning, match=warning):
        RewardModel.from_pretrained(tmp_path / "new")
    contender = Native("new", tmp_path / "new", CPU)
    contender.load()
    assert len(contender.warnings) == 1 and "never trained" in contender.warnings[0]


def test_servers_are_contenders(tmp_path):
    encode = fakes.encoder(max_length=200, max_response_length=60)
    items = [item for item in ITEMS if isinstance(item.prompt, str)]
    with fakes.running(fakes.make(encode=encode)) as url:
        [contender] = find_contenders([url], CPU)
        contender.check()
        results = list(contender.load().score_comparisons(items))
        contender.release()
    expected = [
        [fakes.fake_score(fakes.ids_of(ScoreItem(item.prompt, item.reference, text), encode)) for text in item.candidates]
        for item in items
    ]
    assert [list(scores) for scores in results] == [pytest.approx(scores) for scores in expected]
    with pytest.raises(PolarError, match="no server answers at"):
        contender.check()


def test_a_server_without_a_score_is_an_error_that_names_the_item():
    def fail(ids):
        if len(ids) > 200:
            raise MemoryError("too much")

    with fakes.running(fakes.make(fakes.FakeModel(fail=fail))) as url:
        [contender] = find_contenders([f"busy={url}"], CPU)
        long = Comparison("p", "r", ("a", "fox " * 300), (0, 1))
        with pytest.raises(ScoreError, match=r"busy: candidate 1 of comparison 2 has no score: model_error"):
            list(contender.load().score_comparisons([Comparison("q", "r", ("a", "b"), (0, 1)), long]))
        contender.release()


def encoder(folder, *, pooling=None):
    torch.manual_seed(0)
    BertModel(BertConfig(**BERT, max_position_embeddings=40)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer(), pad_token="<pad>", model_max_length=40).save_pretrained(folder)
    if pooling:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize("way", ["mean", "cls", "max"])
def test_an_embedding_is_the_cosine_with_the_reference(tmp_path, way):
    settings = {f"pooling_mode_{name}": name.startswith(way) for name in ("mean_tokens", "cls_token", "max_tokens")}
    folder = encoder(tmp_path / "st", pooling=settings)
    [contender] = find_contenders([f"embedding:{folder}"], CPU)
    contender.check()
    assert contender.facts["pooling"] == way
    items = [item for item in ITEMS if isinstance(item.candidates[0], str)]
    results = list(contender.load().score_comparisons(items))
    model = BertModel.from_pretrained(folder).eval()

    def vector(text):
        ids = torch.tensor([tiny.tokenizer().encode(text).ids[:40]])
        with torch.no_grad():
            states = model(ids).last_hidden_state[0]
        return {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[way]

    for item, scores in zip(items, results, strict=True):
        for text, score, notes in zip(item.candidates, scores, scores.notes, strict=True):
            cosine = torch.nn.functional.cosine_similarity(vector(text), vector(item.reference), dim=0)
            assert score == pytest.approx(float(cosine), abs=1e-5)
            assert notes == (("truncated",) if len(tiny.tokenizer().encode(text).ids) > 40 else ())
        lengths = [len(tiny.tokenizer().encode(text).ids) for text in (item.reference, *item.candidates)]
        read = [min(length, 40) for length in lengths]
        assert scores.tokens == [
            (read[0] + kept, Cut(reference=lengths[0] - read[0], output=length - kept))
            for length, kept in zip(lengths[1:], read[1:], strict=True)
        ]
    [empty] = contender.load().score_comparisons([Comparison("p", "", ("a", "b"), (0, 1))])
    assert empty == [0.0, 0.0]


def test_encoders_that_are_not_read_exactly_are_refused(tmp_path):
    folder = encoder(tmp_path / "st")
    assert pooling_of(folder) == "mean"
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(PolarError, match="its module Dense is not known here"):
        pooling_of(folder)
    other = encoder(tmp_path / "other", pooling={"pooling_mode_weightedmean_tokens": True})
    with pytest.raises(PolarError, match="it pools by weightedmean"):
        pooling_of(other)


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", "[{}]", "5"])
def test_a_damaged_list_of_modules_is_one_line(tmp_path, content):
    """F13."""
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(PolarError, match="modules.json: expected a list of modules with types"):
        pooling_of(tmp_path)


@pytest.mark.parametrize("kind", ["hf", "embedding"])
def test_weights_are_judged_before_transformers_reads_them(tmp_path, kind):
    """F12, F13: a list in a pickle, which transformers would read."""
    folder = classifier(tmp_path / "bt") if kind == "hf" else encoder(tmp_path / "st")
    (folder / "model.safetensors").unlink()
    torch.save([torch.ones(2)], folder / "pytorch_model.bin")
    [contender] = find_contenders([f"{kind}:{folder}"], CPU)
    with pytest.raises(PolarError, match="it holds no tensors by name"):
        contender.load()


def test_text_forms_of_contenders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = classifier(tmp_path / "bt")
    (tmp_path / "x.jsonl").touch()
    specs = [f"a-1=hf:{folder}", "scores:x.jsonl", "length", "mine=tfidf", "http://127.0.0.1:1", str(folder)]
    contenders = find_contenders(specs)
    assert [contender.name for contender in contenders] == [
        "a-1",
        "scores:x.jsonl",
        "length",
        "mine",
        "http://127.0.0.1:1",
        str(folder),
    ]
    assert [contender.kind for contender in contenders] == ["stock", "stored", "baseline", "baseline", "server", "native"]
    shutil.copytree(folder, tmp_path / "a=b")
    assert find_contenders(["a=b"])[0].name == "a=b"
    for specs, message in (
        (["length", "length"], "two contenders have the name 'length'; give one of them another name: NAME=length"),
        (["nowhere"], "nowhere: no such folder of a model"),
        (["hf:nowhere"], "nowhere: no such folder of a model"),
        (["scores:nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["tfdif"], r"tfdif: no such contender; did you mean tfidf\? There are: FOLDER, hf:FOLDER, http"),
        (["score:x.jsonl"], r"did you mean scores\?"),
    ):
        with pytest.raises(PolarError, match=message):
            find_contenders(specs)


def test_several_kinds_on_the_same_pairs(checkpoint, tmp_path):
    folder, _ = checkpoint
    stock = classifier(tmp_path / "bt")
    items = [replace(ITEMS[0], prompt=f"What is {i}?") for i in range(4)]
    write_records(tmp_path / "pairs.jsonl", items)
    report = evaluate_files([f"ours={folder}", f"theirs=hf:{stock}"], [tmp_path / "pairs.jsonl"], options=CPU, limit=3).report
    assert list(report["contenders"]) == ["ours", "theirs", "length", "tfidf"]
    assert (report["n_pairs"], report["limit"]) == (3, 3)
    assert [each["kind"] for each in report["facts"].values()] == ["native", "stock", "baseline", "baseline"]
    assert report["facts"]["theirs"]["source"] == str(stock)
    assert len(report["differences"]) == 6
