"""B1, F2: the encoder's hash names the encoder. Equal hashes mean equal ids, and what decides an id changes the hash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from tokenizers import Tokenizer, models, pre_tokenizers

from polar_rm.encoding import fingerprint
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import EncoderSettings, saved_encoder
from polar_rm.errors import EncoderMismatch, PolarError
from polar_rm.model.native import add_role_tokens


def encoder_of(values: dict) -> Encoder:
    return Encoder(Tokenizer.from_str(json.dumps(values)))


def written() -> dict:
    return json.loads(add_role_tokens(tiny.tokenizer()).to_str())


def flag(name: str, index: int = 3):
    def change(values: dict) -> None:
        values["added_tokens"][index][name] = not values["added_tokens"][index][name]

    return change


def a_word(values: dict) -> None:
    entry = {"content": "turtle", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    values["added_tokens"].append({"id": max(token["id"] for token in values["added_tokens"]) + 1, **entry})


CHANGES = {
    "NFC": lambda values: values.update(normalizer={"type": "NFC"}),
    "NFKC": lambda values: values.update(normalizer={"type": "NFKC"}),
    "Lowercase": lambda values: values.update(normalizer={"type": "Lowercase"}),
    "Replace": lambda values: values.update(
        normalizer={"type": "Replace", "pattern": {"String": "Beijing"}, "content": "Shanghai"}
    ),
    "lstrip": flag("lstrip"),
    "rstrip": flag("rstrip"),
    "single_word": flag("single_word"),
    "special": flag("special"),
    "a further token": a_word,
    "ignore_merges": lambda values: values["model"].update(ignore_merges=True),
    "prefix space": lambda values: values["pre_tokenizer"].update(add_prefix_space=True),
    "no regular expression": lambda values: values["pre_tokenizer"].update(use_regex=False),
    "a pre-tokenizer": lambda values: values.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, values["pre_tokenizer"]],
        }
    ),
    "one merge less": lambda values: values["model"]["merges"].pop(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_anything_that_determines_ids_is_refused_on_load(tmp_path: Path, change):
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "rm")
    path = tmp_path / "rm/tokenizer.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(EncoderMismatch, match="tokenizer changed"):
        Encoder.from_pretrained(tmp_path / "rm")


REWRITES = {
    "merges as strings": lambda values: values["model"].update(merges=[" ".join(pair) for pair in values["model"]["merges"]]),
    "defaults left out": lambda values: [
        values["model"].pop(key) for key in ("byte_fallback", "ignore_merges", "fuse_unk", "dropout", "unk_token")
    ],
    "defaults of others": lambda values: values["model"].update(continuing_subword_prefix="", end_of_word_suffix=""),
    "other order": lambda values: [values.update({key: values.pop(key)}) for key in sorted(values, reverse=True)],
    "truncation and padding": lambda values: values.update(
        truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    ),
    "decoder": lambda values: values.update(decoder=None),
}


@pytest.mark.parametrize("change", REWRITES.values(), ids=REWRITES)
def test_a_file_that_a_library_rewrites_keeps_its_hash(change):
    values = written()
    change(values)
    assert encoder_of(values).hash == encoder_of(written()).hash


def test_settings_of_older_and_newer_libraries_have_one_form():
    old = {"type": "Metaspace", "replacement": "_", "add_prefix_space": False}
    new = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": True}
    assert fingerprint._canonical(old) == fingerprint._canonical(new) != fingerprint._canonical({**new, "split": False})
    always = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}
    assert fingerprint._canonical({"type": "Metaspace", "replacement": "_"}) == fingerprint._canonical(always)
    missing = {"type": "ByteLevel", "add_prefix_space": False}
    assert fingerprint._canonical(missing) == fingerprint._canonical({**missing, "use_regex": True, "trim_offsets": False})
    # tokenizers up to 0.19 writes merges as strings, later releases write pairs.
    strings, pairs = ({"type": "BPE", "vocab": {}, "merges": merges} for merges in (["a b", "ab c"], [["a", "b"], ["ab", "c"]]))
    assert fingerprint._canonical(strings) == fingerprint._canonical(pairs)
    assert fingerprint._canonical(pairs) != fingerprint._canonical({**pairs, "merges": [["a", "bc"], ["ab", "c"]]})


@settings(max_examples=40)
@given(st.lists(st.text(max_size=40), max_size=4), st.sampled_from([*CHANGES, *REWRITES]))
def test_equal_hashes_mean_equal_ids(texts, name):
    values = written()
    ({**CHANGES, **REWRITES})[name](values)
    first, second = encoder_of(written()), encoder_of(values)
    if first.hash == second.hash:
        for text in texts:
            assert first.encode_outputs(text, text, [text]) == second.encode_outputs(text, text, [text])
    else:
        assert name in CHANGES


def as_version_1(folder: Path) -> dict:
    """The folder as the first release saved it."""
    config = json.loads((folder / "config.json").read_text())
    encoder = Encoder.from_pretrained(folder)
    old = fingerprint.fingerprint_1(encoder.tokenizer, encoder.bos_ids, encoder._ids)
    section = {"settings": encoder.settings.to_dict(), "tokenizer": old}
    config["polar"]["encoder"] = section | {"hash": fingerprint.digest([section["settings"], old])}
    (folder / "config.json").write_text(json.dumps(config))
    return section


# The hash of the tiny tokenizer with default settings, computed by the code before fingerprints had a version.
HASH_1 = "7f096034ecc90257"


def test_folders_of_the_first_release_load_with_its_fingerprint(tmp_path):
    model = tiny.reward_model(tmp_path / "lm")
    model.save(tmp_path / "rm")
    saved = json.loads((tmp_path / "rm/config.json").read_text())["polar"]["encoder"]
    assert saved["fingerprint_version"] == 2 and saved["hash"] == model.encoder.hash
    as_version_1(tmp_path / "rm")
    assert json.loads((tmp_path / "rm/config.json").read_text())["polar"]["encoder"]["hash"] == HASH_1
    assert Encoder.from_pretrained(tmp_path / "rm").hash == model.encoder.hash
    tokenizer = json.loads((tmp_path / "rm/tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (tmp_path / "rm/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(EncoderMismatch, match="tokenizer changed"):
        Encoder.from_pretrained(tmp_path / "rm")


def test_a_newer_fingerprint_is_refused_by_name(tmp_path):
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "rm")
    config = json.loads((tmp_path / "rm/config.json").read_text())
    config["polar"]["encoder"]["fingerprint_version"] = 3
    (tmp_path / "rm/config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderMismatch, match="fingerprint_version 3: saved by a newer version"):
        Encoder.from_pretrained(tmp_path / "rm")


def test_newer_settings_at_their_defaults_change_no_older_hash():
    default = EncoderSettings()
    assert "thinking" not in default.to_dict()
    assert EncoderSettings(thinking="strip").to_dict()["thinking"] == "strip"
    assert EncoderSettings(template="polar-chat", version=1).to_dict()["version"] == 1
    assert EncoderSettings(template="polar-chat").version == 2 and default.version == 1


def test_a_tokenizer_with_dropout_is_refused():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(PolarError, match="dropout"):
        Encoder(add_role_tokens(tokenizer))


def test_a_classifier_of_others_is_told_with_the_way_to_evaluate_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(
        PolarError, match=f"not saved by polar; polar evaluate and audit take other classifiers as hf:{tmp_path}$"
    ):
        saved_encoder(tmp_path)
