"""Items of every kind, with their ids, their texts and the scores of the fake model."""

from polar_rm.encoding.sequences import render
from polar_rm.records import ScoreItem
from support import fakes

ENCODER = fakes.encoder(max_length=200, max_response_length=60)
ITEMS = [ScoreItem("What is the capital?", "Beijing.", output) for output in ("Beijing", "Shanghai is larger.", "")]
ITEMS += [ScoreItem("over", "the dog", "the fox", "pretrain")]
IDS = [fakes.ids_of(item, ENCODER) for item in ITEMS]
TEXTS = [render(ids, ENCODER) for ids in IDS]
SCORES = [fakes.fake_score(ids) for ids in IDS]
