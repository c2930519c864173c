import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from polar_rm.errors import PolarError
from polar_rm.rewards.calibration import Calibration, Distribution
from polar_rm.rewards.outcomes import Reward
from polar_rm.rewards.transforms import (
    ITEM_TRANSFORMS,
    TRANSFORMS,
    available,
    check_transform,
    transform,
    transform_one,
    transform_rewards,
)

GROUPS = [[-11.0, -2.5, 0.7], [3.0, 3.0], [], [1.25]]


def test_raw_changes_nothing():
    assert transform("raw", GROUPS) == GROUPS


def test_z_scores_are_within_a_group_or_over_all():
    by_group, whitened = transform("group_zscore", GROUPS), transform("whiten", GROUPS)
    first = np.array(GROUPS[0])
    assert by_group[0] == pytest.approx((first - first.mean()) / first.std())
    assert by_group[1:] == [[0.0, 0.0], [], [0.0]]
    flat = np.array([value for group in GROUPS for value in group])
    expected = (flat - flat.mean()) / flat.std()
    assert [len(group) for group in whitened] == [3, 2, 0, 1]
    assert [value for group in whitened for value in group] == pytest.approx(expected)


def test_tanh_has_the_scale_of_ten():
    assert transform("tanh", [[-10.0, 0.0, 400.0]]) == [[pytest.approx(math.tanh(-1)), 0.0, 1.0]]


def test_percentiles_agree_with_numpy_and_survive_saving(tmp_path):
    rng = random.Random(0)
    rewards = [rng.gauss(-4, 3) for _ in range(999)]
    Calibration.from_rewards(rewards).save(tmp_path)
    card = Calibration.load(tmp_path)
    assert card.quantiles == Calibration.from_rewards(rewards).quantiles
    assert (card.n, card.mean, card.std) == (999, pytest.approx(np.mean(rewards)), pytest.approx(np.std(rewards)))
    for fraction in (0.013, 0.25, 0.5, 0.987):
        [[percentile]] = transform("percentile", [[float(np.quantile(rewards, fraction))]], card)
        assert percentile == pytest.approx(fraction, abs=0.005)
    assert transform("percentile", [[-1e9, 1e9, min(rewards), max(rewards)]], card) == [[0.0, 1.0, 0.0, 1.0]]


def test_rewards_with_many_ties_make_a_card():
    for seed in range(300):
        rng = random.Random(seed)
        values = [rng.gauss(-3, 2) for _ in range(rng.randint(1, 6))]
        rewards = [rng.choice(values) for _ in range(rng.randint(10, 200))]
        card = Calibration.from_rewards(rewards)
        assert card.quantiles == pytest.approx(np.quantile(rewards, np.linspace(0, 1, 101)))
        assert (card.quantiles[0], card.quantiles[-1]) == (min(rewards), max(rewards))


def test_equal_rewards_are_in_the_middle_of_their_percentiles():
    card = Calibration(101, 0.0, 1.0, (*[-1.0] * 20, *[0.0] * 41, *map(float, range(1, 41))))
    rewards = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 40.0, 41.0]
    assert [card.percentile(reward) for reward in rewards] == pytest.approx([0.0, 0.095, 0.195, 0.4, 0.605, 0.61, 1.0, 1.0])
    assert Calibration.from_rewards([2.0] * 5).percentile(2.0) == 0.5


def test_every_transform_keeps_the_order():
    rewards = sorted(random.Random(1).gauss(-4, 3) for _ in range(50))
    card = Calibration.from_rewards(rewards, temperature=2.0)
    for name in TRANSFORMS:
        [transformed] = transform(name, [rewards], card, [-1.0])
        assert transformed == sorted(transformed), name


def test_anchored_rewards_are_zero_at_the_reference_and_probabilities_one_half():
    card = Calibration.from_rewards([-3.0, 1.0], temperature=2.0)
    groups, anchors = [[-1.0, 0.5], [], [3.0]], [0.5, 9.0, 5.0]
    assert transform("anchored", groups, None, anchors) == [[-1.5, 0.0], [], [-2.0]]
    [first, empty, last] = transform("probability", groups, card, anchors)
    assert (first, empty, last) == ([pytest.approx(1 / (1 + math.exp(0.75))), 0.5], [], [pytest.approx(1 / (1 + math.e))])
    rewards = [-1e6, -40.0, -1.0, 0.0, 2.0, 50.0, 1e6]
    [probabilities] = transform("probability", [rewards], card, [0.0])
    assert probabilities == sorted(probabilities) and probabilities[0] == 0.0 and probabilities[-1] == 1.0
    [negated] = transform("probability", [[-reward for reward in rewards]], card, [0.0])
    assert [1 - p for p in negated] == pytest.approx(probabilities)
    assert transform_one("probability", Reward(2.0, 1, anchor=0.0), card) == pytest.approx(1 / (1 + math.exp(-1)))
    assert transform_one("tanh", Reward(-10.0, 1)) == pytest.approx(math.tanh(-1))
    rewards = [[Reward(-1.0, 1, anchor=0.5), Reward(0.5, 1, anchor=0.5)], [], [Reward(3.0, 1, anchor=5.0)]]
    assert transform_rewards("anchored", rewards) == transform("anchored", groups, None, anchors)
    assert transform_rewards("raw", [[Reward(2.0, 1)]]) == [[2.0]]


def test_a_transform_names_its_missing_input():
    old, new = Calibration.from_rewards([1.0, 2.0]), Calibration.from_rewards([1.0, 2.0], temperature=1.0)
    for name in ("anchored", "probability"):
        with pytest.raises(PolarError, match=f"'{name}' needs the reward of each group's reference itself"):
            transform(name, GROUPS, new)
    with pytest.raises(PolarError, match="'probability' needs a calibration card .*; polar calibrate MODEL PAIRS writes one"):
        check_transform("probability")
    with pytest.raises(PolarError, match="'probability' needs a card with a temperature; polar calibrate"):
        check_transform("probability", old)
    with pytest.raises(PolarError, match="no temperature"):
        old.probability(1.0)
    with pytest.raises(PolarError, match="'whiten' needs all rewards of .*; use raw, tanh, percentile, anchored, probability"):
        transform_one("whiten", Reward(1.0, 1))
    with pytest.raises(PolarError, match="needs the reward of each group's reference"):
        transform_rewards("anchored", [[Reward(1.0, 1)]])
    assert available(None) == ["raw", "group_zscore", "whiten", "tanh", "anchored"]
    assert available(old) == ["raw", "group_zscore", "whiten", "tanh", "percentile", "anchored"]
    assert tuple(available(new)) == TRANSFORMS and set(ITEM_TRANSFORMS) < set(TRANSFORMS)


def test_invalid_input_is_refused(tmp_path):
    with pytest.raises(PolarError, match="calibration card"):
        transform("percentile", GROUPS)
    with pytest.raises(PolarError, match="unknown transform 'zscore'"):
        transform("zscore", GROUPS)
    with pytest.raises(PolarError, match="at least two"):
        Calibration.from_rewards([1.0])
    with pytest.raises(PolarError, match="finite"):
        Calibration.from_rewards([1.0, math.nan])
    assert Calibration.load(tmp_path) is None
    for text in ("{", "[]", '{"n": 1, "mean": 0, "std": 1, "quantiles": [1, 2]}'):
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(PolarError, match=r"calibration\.json: not a calibration card"):
            Calibration.load(tmp_path)


def test_a_card_is_valid_for_its_model_only(tmp_path):
    """F11."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, byte in ((first, b"a"), (second, b"b")):
        folder.mkdir()
        (folder / "config.json").write_text('{"polar": {"encoder": {"hash": "e1"}}}')
        (folder / "model.safetensors").write_bytes(byte * 300_000)
    Calibration.from_rewards([1.0, 2.0]).save(first)
    assert Calibration.load(first).encoder == "e1"
    (second / "calibration.json").write_bytes((first / "calibration.json").read_bytes())
    with pytest.raises(PolarError, match="the card belongs to another model \\(different weights\\)"):
        Calibration.load(second)
    (first / "config.json").write_text('{"polar": {"encoder": {"hash": "e2"}}}')
    with pytest.raises(PolarError, match="different encoder"):
        Calibration.load(first)


def test_a_card_survives_saving_and_a_card_of_an_earlier_version_is_read(tmp_path):
    anchored = Distribution.from_rewards([-3.0, -1.0])
    card = Calibration.from_rewards(
        [1.0, 2.0], anchored=anchored, temperature=1.5, n_pairs=7, n_prompts=3, ece_before=0.2, ece_after=0.01
    )
    card.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert loaded == replace(card, encoder=loaded.encoder, weights=loaded.weights) and len(loaded.weights) == 16
    values = json.loads((tmp_path / "calibration.json").read_text())
    assert values["schema"] == "polar-rm/calibration/2"
    old = {key: values[key] for key in ("n", "mean", "std", "quantiles", "encoder", "weights")}
    (tmp_path / "calibration.json").write_text(json.dumps(old))
    loaded = Calibration.load(tmp_path)
    assert loaded.percentile(1.5) == 0.5 and (loaded.temperature, loaded.anchored, loaded.ece_after) == (None, None, None)


@pytest.mark.parametrize("position", [0, 3_020_000, 5_999_999])
def test_a_card_detects_changes_in_every_part_of_the_weights(tmp_path, position):
    weights = bytearray(6_000_000)
    (tmp_path / "model.safetensors").write_bytes(weights)
    Calibration.from_rewards([1.0, 2.0]).save(tmp_path)
    weights[position] = 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(PolarError, match="different weights"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        '"temperature": 0',
        '"temperature": NaN',
        '"temperature": "x"',
        '"ece_after": 2',
        '"anchored": {}',
        '"mean": NaN',
        '"std": -3',
        '"std": Infinity',
        '"n": 1',
        '"x": ' + "[" * 100_000 + "]" * 100_000,
    ],
)
def test_cards_with_impossible_values_are_refused(tmp_path, change):
    """F11."""
    Calibration.from_rewards([1.0, 2.0]).save(tmp_path)
    path = tmp_path / "calibration.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + f", {change}}}")
    with pytest.raises(PolarError, match="not a calibration card"):
        Calibration.load(tmp_path)
