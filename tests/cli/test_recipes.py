"""Recipes by name run as they stand: all their keys are set, and what they name is packaged or made by another recipe."""

from pathlib import Path

import pytest
from support.commands import in_process

from polar_rm.cli.options import load
from polar_rm.common.problems import Problems
from polar_rm.corpus.config import CorpusConfig
from polar_rm.references.config import ReferencesConfig
from polar_rm.rft.config import RftConfig
from polar_rm.sampling.config import SamplingConfig
from polar_rm.selection.config import SelectConfig
from polar_rm.training.config import TrainConfig

RECIPES = {
    "corpus": CorpusConfig,
    "finetune": TrainConfig,
    "references": ReferencesConfig,
    "rft": RftConfig,
    "pretrain_small": TrainConfig,
    "sampling_small": SamplingConfig,
    "select": SelectConfig,
}
MADE_BEFORE = "runs/corpus/train: no such file or folder"
"""What recipe:corpus writes."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_what_exists_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The language model of the policies is a package of its own, which may be missing.
    monkeypatch.setattr("polar_rm.cli.options._local", lambda source: source)
    problems = Problems()
    config = load(RECIPES[name], [f"recipe:{name}"], problems=problems)
    assert config.output.parts[0] == "runs"
    if name == "pretrain_small":
        with pytest.raises(Exception, match=MADE_BEFORE):
            problems.check()
        Path("runs/corpus/train").mkdir(parents=True)
        load(RECIPES[name], [f"recipe:{name}"])
    else:
        problems.check()


def test_a_training_with_the_demonstration_says_so(tmp_path, monkeypatch):
    """A recipe runs as it stands, so that a forgotten key is no error."""
    monkeypatch.chdir(tmp_path)
    code, _, told = in_process("finetune", "recipe:finetune", "--dry-run")
    assert code == 0, told
    assert "warning: model.resume_from is package:demo, a demonstration that judges style and nothing else" in told
