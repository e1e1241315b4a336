"""CTC decoding beside the enumeration of every path."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from fastlstm.decoding import ctc_beam_search, ctc_greedy
from fastlstm.losses import ctc_loss


def random_log_probs(n: int, steps: int, classes: int, *, spread: float = 1.0, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(n, steps, classes)) * spread
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def all_labels(log_probs: np.ndarray, blank: int = 0) -> dict[tuple[int, ...], float]:
    """Probability of every label sequence of one sequence (time, classes)."""
    steps, classes = log_probs.shape
    total: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(classes), repeat=steps):
        labels = tuple(label for label, _ in itertools.groupby(path) if label != blank)
        total[labels] += float(np.exp(log_probs[np.arange(steps), list(path)].sum()))
    return dict(total)


def path_of(log_probs: np.ndarray, blank: int) -> list[int]:
    return [label for label, _ in itertools.groupby(log_probs.argmax(axis=-1).tolist()) if label != blank]


@pytest.mark.parametrize("blank", [0, 2, 3])
def test_greedy_collapses_the_best_path(blank: int) -> None:
    log_probs, lengths = random_log_probs(6, 25, 4), np.array([25, 1, 0, 13, 24, 2])
    found = ctc_greedy(log_probs, lengths, blank=blank)
    assert len(found) == 6 and all(labels.dtype == np.int64 for labels in found)
    for labels, scores, length in zip(found, log_probs, lengths, strict=True):
        assert labels.tolist() == path_of(scores[:length], blank)
    for labels, scores in zip(ctc_greedy(log_probs, blank=blank), log_probs, strict=True):
        assert labels.tolist() == path_of(scores, blank)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("steps", "classes", "blank"), [(5, 3, 0), (6, 3, 1), (4, 4, 3), (1, 2, 0), (7, 2, 1)]
)
def test_a_wide_beam_is_exact(steps: int, classes: int, blank: int, seed: int) -> None:
    log_probs = random_log_probs(1, steps, classes, spread=2.0, seed=seed)
    want = all_labels(log_probs[0], blank)
    (beams,) = ctc_beam_search(log_probs, beam_width=10_000, blank=blank, return_beams=True)
    found = {tuple(labels.tolist()): score for labels, score in beams}
    assert found.keys() == want.keys() and len(found) == len(beams)
    for labels, probability in want.items():
        np.testing.assert_allclose(np.exp(found[labels]), probability, rtol=1e-10)
    assert [score for _, score in beams] == sorted(found.values(), reverse=True)
    (best,) = ctc_beam_search(log_probs, beam_width=10_000, blank=blank)
    assert tuple(best.tolist()) == max(want, key=want.__getitem__)


def test_scores_agree_with_the_loss() -> None:
    log_probs = random_log_probs(1, 6, 3, seed=4)
    for labels, score in ctc_beam_search(log_probs, beam_width=1000, return_beams=True)[0]:
        loss, _ = ctc_loss(log_probs, labels[None], [6], [len(labels)])
        np.testing.assert_allclose(-loss[0], score, rtol=1e-10)


def test_a_narrow_beam_is_a_lower_bound_and_finds_peaked_labels() -> None:
    log_probs, lengths = random_log_probs(4, 40, 8, spread=8.0), [40, 20, 1, 0]
    for labels, beams, greedy in zip(
        ctc_beam_search(log_probs, lengths, 4),
        ctc_beam_search(log_probs, lengths, 4, return_beams=True),
        ctc_greedy(log_probs, lengths),
        strict=True,
    ):
        assert 1 <= len(beams) <= 4 and labels.tolist() == beams[0][0].tolist()
        assert abs(len(labels) - len(greedy)) <= 2
    for scores, length, beams in zip(
        log_probs, lengths, ctc_beam_search(log_probs, lengths, 4, return_beams=True), strict=True
    ):
        for labels, score in beams:
            loss, _ = ctc_loss(scores[None], labels[None], [length], [len(labels)])
            assert score <= -loss[0] + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_scorer_adds_to_the_score_of_each_label(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_probs, table = random_log_probs(1, 5, 3, seed=seed), rng.normal(size=(3, 3)) * 2
    calls = []

    def scorer(prefix: tuple[int, ...]) -> np.ndarray:
        calls.append(prefix)
        return table[prefix[-1] if prefix else 0]

    def language(labels: tuple[int, ...]) -> float:
        return float(sum(table[a, b] for a, b in itertools.pairwise((0, *labels))))

    want = {labels: np.log(p) + language(labels) for labels, p in all_labels(log_probs[0]).items()}
    (beams,) = ctc_beam_search(log_probs, None, 1000, scorer, return_beams=True)
    assert {tuple(labels.tolist()) for labels, _ in beams} == want.keys()
    for labels, score in beams:
        np.testing.assert_allclose(score, want[tuple(labels.tolist())], rtol=1e-9, atol=1e-9)
    assert len(calls) == len(set(calls)) and () in calls


def test_scorer_can_forbid() -> None:
    log_probs = random_log_probs(1, 6, 4, spread=3.0)
    forbid_two = np.array([0.0, 0.0, -np.inf, 0.0])
    (beams,) = ctc_beam_search(log_probs, scorer=lambda prefix: forbid_two, return_beams=True)
    assert beams and not any(2 in labels for labels, _ in beams)


def test_zero_probabilities() -> None:
    log_probs = np.full((1, 4, 3), -np.inf)
    log_probs[0, range(4), [1, 1, 0, 1]] = 0.0
    (beams,) = ctc_beam_search(log_probs, return_beams=True)
    assert [(labels.tolist(), score) for labels, score in beams] == [([1, 1], 0.0)]
    assert ctc_greedy(log_probs)[0].tolist() == [1, 1]
    with pytest.raises(ValueError, match="nothing is left"):
        ctc_beam_search(np.full((1, 4, 3), -np.inf))


@pytest.mark.parametrize("decode", [ctc_greedy, ctc_beam_search])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_probs": np.zeros((4, 3))}, "log_probs must have the shape"),
        ({"lengths": [5]}, r"lengths\[0\] is 5"),
        ({"lengths": [1, 2]}, "lengths must be 1 whole numbers"),
        ({"blank": 3}, "blank must be one of"),
        ({"log_probs": np.full((1, 4, 3), np.nan)}, "NaN in sequence 0, step 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(decode: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(**({"log_probs": np.zeros((1, 4, 3))} | arguments))


def test_bad_arguments_of_the_beam_search() -> None:
    log_probs = random_log_probs(1, 4, 3)
    with pytest.raises(ValueError, match="beam_width"):
        ctc_beam_search(log_probs, beam_width=0)
    for wrong in (np.zeros(2), np.full(3, np.nan), np.full(3, np.inf), 0.0):
        with pytest.raises(ValueError, match="scorer must return"):
            ctc_beam_search(log_probs, scorer=lambda prefix, wrong=wrong: wrong)


def test_padding_is_not_read() -> None:
    log_probs, lengths = random_log_probs(2, 9, 4), [9, 5]
    spoiled = log_probs.copy()
    spoiled[1, 5:] = np.nan
    for decode in (ctc_greedy, ctc_beam_search):
        for got, want in zip(decode(spoiled, lengths), decode(log_probs, lengths), strict=True):
            np.testing.assert_array_equal(got, want)
