from itertools import pairwise

import pytest

from polar_rm.training.config import OptimConfig
from polar_rm.training.schedule import learning_rate, paper_batch_size, paper_learning_rate

# Parameters, tokens of the base model and of the reward model (paper, App. F.1), for the two published models.
PUBLISHED = [(1.8e9, 2.5e12, 0.94e12), (7e9, 4e12, 3.6e12)]


def test_the_papers_rules_give_its_published_numbers():
    small, large = PUBLISHED
    assert (paper_batch_size(*small[0::2]), paper_batch_size(*large[0::2])) == (1940, 4343)
    assert paper_learning_rate(*small) == pytest.approx(1.43e-5, rel=0.005)
    assert paper_learning_rate(*large) == pytest.approx(1.67e-5, rel=0.005)


def test_warm_up_then_cosine_to_a_tenth():
    optim = OptimConfig(warmup=0.1, final_lr=0.1)
    rates = [learning_rate(step, 100, 1.0, optim) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55, abs=0.01)  # the middle between 1 and 0.1
    assert rates[99] == pytest.approx(0.1, abs=0.01)
    assert all(a >= b for a, b in pairwise(rates[10:]))
