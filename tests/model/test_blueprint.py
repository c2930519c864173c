"""A blueprint, which is read before the weights, describes the loaded model."""

import pytest
import torch
from support import tiny

from polar_rm.model.blueprint import checkpoint_blueprint, language_model_blueprint, preset_blueprint
from polar_rm.model.reward_model import RewardModel


def shapes(backbone):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in backbone.state_dict().items()}


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_names_shapes_and_config_of_a_new_model(tmp_path, family):
    blueprint = language_model_blueprint(tiny.causal_lm(tmp_path / "lm", family), n_layers=1)
    loaded = RewardModel.from_blueprint(blueprint)
    assert shapes(blueprint.on_meta) == shapes(loaded.backbone)
    assert all(parameter.is_meta for parameter in blueprint.on_meta.parameters())
    assert blueprint.on_meta.config.to_dict() == loaded.backbone.config.to_dict()
    assert blueprint.encoder.hash == loaded.encoder.hash
    loaded.save(tmp_path / "rm")
    saved = checkpoint_blueprint(tmp_path / "rm")
    assert shapes(saved.on_meta) == shapes(loaded.backbone)
    assert (saved.encoder.hash, saved.specials) == (loaded.encoder.hash, loaded.specials)


def test_a_preset_is_initialised_from_its_seed(tmp_path):
    blueprint = preset_blueprint("1m", tiny.causal_lm(tmp_path / "lm"))
    first, again, other = (RewardModel.from_blueprint(blueprint, seed=seed).backbone.state_dict() for seed in (0, 0, 1))
    assert shapes(blueprint.on_meta) == {name: (tuple(t.shape), t.dtype) for name, t in first.items()}
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
