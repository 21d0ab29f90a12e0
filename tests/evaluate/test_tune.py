import numpy as np

from rag.evaluate.tune import choose

WEIGHTS = [0.0, 0.5, 1.0]


def test_the_weight_that_is_best_everywhere_is_chosen_and_its_gain_is_whole() -> None:
    table = np.array([[0.1] * 20, [0.4] * 20, [0.7] * 20])
    tuned = choose(WEIGHTS, table, before=0.5)
    assert (tuned.before, tuned.best) == (0.5, 1.0)
    assert tuned.means == {0.0: np.mean([0.1] * 20), 0.5: np.mean([0.4] * 20), 1.0: np.mean([0.7] * 20)}
    assert round(tuned.gain.difference, 9) == 0.3


def test_a_weight_that_wins_by_one_lucky_question_is_not_kept() -> None:
    table = np.full((3, 20), 0.5)
    table[2, 0] = 1.0  # only the fold that holds it would profit, and it chooses without it
    table[2, 1:3] = 0.45
    tuned = choose(WEIGHTS, table, before=0.5)
    assert tuned.means[1.0] > tuned.means[0.5]
    assert tuned.gain.difference <= 0
    assert tuned.best == 0.5
