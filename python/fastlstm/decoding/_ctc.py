"""Best path and prefix beam search for connectionist temporal classification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlstm._ctc import check_lengths, check_scores

Labels = NDArray[np.int64]
Scorer = Callable[[tuple[int, ...]], ArrayLike]
Beam = tuple[Labels, float]


def _checked(log_probs: ArrayLike, lengths: ArrayLike | None, blank: int) -> tuple[NDArray[Any], Labels]:
    scores = check_scores(log_probs, "log_probs", blank)
    n, steps, _ = scores.shape
    if lengths is None:
        lengths = np.full(n, steps)
    real = check_lengths(lengths, n, steps, "lengths")
    bad = np.isnan(scores).any(axis=2) & (np.arange(steps) < real[:, None])
    if bad.any():
        i, t = np.argwhere(bad)[0]
        raise ValueError(f"log_probs is NaN in sequence {i}, step {t}")
    return scores, real


def ctc_greedy(log_probs: ArrayLike, lengths: ArrayLike | None = None, *, blank: int = 0) -> list[Labels]:
    """The labels of the most probable path: the best class of each step, repetitions merged, blanks removed.

    Parameters
    ----------
    log_probs : array-like of shape (batch, time, classes)
        Log-probabilities, or any scores that order the classes of a step.
    lengths : array-like of int, shape (batch,), optional
        Real steps of each sequence; all by default.
    blank : int
        The class that stands for no label.

    Returns
    -------
    list of ndarray of int64
        The labels of each sequence.

    Notes
    -----
    Of equal classes the first counts. The most probable path need not belong to the most probable labels,
    which :func:`ctc_beam_search` looks for.

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.decoding import ctc_greedy
    >>> path = [1, 1, 0, 1, 2, 2]
    >>> ctc_greedy(np.log(np.eye(3)[path] + 0.1)[None])[0].tolist()
    [1, 1, 2]
    """
    scores, real = _checked(log_probs, lengths, blank)
    best = scores.argmax(axis=2)
    keep = best != blank
    keep[:, 1:] &= best[:, 1:] != best[:, :-1]
    keep &= np.arange(best.shape[1]) < real[:, None]
    return [path[kept].astype(np.int64) for path, kept in zip(best, keep, strict=True)]


def ctc_beam_search(
    log_probs: ArrayLike,
    lengths: ArrayLike | None = None,
    beam_width: int = 16,
    scorer: Scorer | None = None,
    *,
    blank: int = 0,
    return_beams: bool = False,
) -> list[Labels] | list[list[Beam]]:
    """The most probable labels, by prefix beam search.

    Parameters
    ----------
    log_probs : array-like of shape (batch, time, classes)
        Log-probabilities; -inf is allowed.
    lengths : array-like of int, shape (batch,), optional
        Real steps of each sequence; all by default.
    beam_width : int
        Prefixes kept after each step. With as many as there are prefixes the search is exact.
    scorer : callable, optional
        A language model: called with the labels so far as a tuple, it returns an array (classes,) of what
        each next label adds to the logarithm of the score (-inf forbids it; the blank's entry is ignored).
        It is called once for each prefix, for as long as the prefix stays in the beam.
    blank : int
        The class that stands for no label.
    return_beams : bool
        Return everything that is left in the beam, not only the best.

    Returns
    -------
    list of ndarray of int64
        The best labels of each sequence; with `return_beams`, for each sequence a list of pairs (labels,
        score), best first, at most `beam_width`. A score is the log-probability of the labels, as far as the
        beam kept their alignments, plus what the scorer added.

    Raises
    ------
    ValueError
        If the arguments do not fit each other, `log_probs` is NaN, or the scorer forbids everything.

    Notes
    -----
    Source: A. Graves, "Supervised sequence labelling with recurrent neural networks" (2012), section 7.5; A.
    Hannun et al., "First-pass large vocabulary continuous speech recognition using bi-directional recurrent
    DNNs" (2014).

    Examples
    --------
    >>> import numpy as np
    >>> from fastlstm.decoding import ctc_beam_search, ctc_greedy
    >>> log_probs = np.log([[[0.6, 0.4], [0.6, 0.4]]])  # no label 0.36, one label 0.64
    >>> ctc_greedy(log_probs)[0].tolist(), ctc_beam_search(log_probs)[0].tolist()
    ([], [1])
    """
    scores, real = _checked(log_probs, lengths, blank)
    if isinstance(beam_width, bool) or not isinstance(beam_width, (int, np.integer)) or beam_width < 1:
        raise ValueError(f"beam_width must be a positive whole number; got {beam_width!r}")
    found = [
        _search(steps[:length].astype(np.float64), int(beam_width), scorer, blank)
        for steps, length in zip(scores, real, strict=True)
    ]
    return found if return_beams else [beams[0][0] for beams in found]


def _search(log_probs: NDArray[np.float64], width: int, scorer: Scorer | None, blank: int) -> list[Beam]:
    """All that is left in the beam, best first. log_probs (time, classes) of one sequence.

    Two log-probabilities are kept per prefix: of its alignments that end in a blank, and of those that end
    in its last label, which repeat it without extending the prefix.
    """
    classes = log_probs.shape[1]
    prefixes: list[tuple[int, ...]] = [()]
    in_blank, in_label = np.zeros(1), np.full(1, -np.inf)
    scored: dict[tuple[int, ...], NDArray[np.float64]] = {}
    for step in log_probs:
        last = np.array([prefix[-1] if prefix else blank for prefix in prefixes])
        rows = np.arange(len(prefixes))
        either = np.logaddexp(in_blank, in_label)
        stay_blank = either + step[blank]
        stay_label = in_label + step[last]
        extended = either[:, None] + step
        extended[rows, last] = in_blank + step[last]  # the same label again needs a blank between
        extended[:, blank] = -np.inf
        if scorer is not None:
            scored = {prefix: _scores_of(scorer, prefix, scored, classes) for prefix in prefixes}
            extended += np.stack([scored[prefix] for prefix in prefixes])
            extended[:, blank] = -np.inf
        place = {prefix: k for k, prefix in enumerate(prefixes)}
        for k, prefix in enumerate(prefixes):  # what is in the beam already is not a new prefix
            parent = place.get(prefix[:-1]) if prefix else None
            if parent is not None:
                stay_label[k] = np.logaddexp(stay_label[k], extended[parent, prefix[-1]])
                extended[parent, prefix[-1]] = -np.inf
        candidates = np.concatenate((np.logaddexp(stay_blank, stay_label), extended.ravel()))
        best = np.argsort(-candidates, kind="stable")[:width]
        best = best[candidates[best] > -np.inf]
        if not best.size:
            raise ValueError("nothing is left to search: every continuation has the score -inf")
        old, new = best[best < len(rows)], best[best >= len(rows)] - len(rows)
        prefixes = [prefixes[k] for k in old] + [(*prefixes[k // classes], int(k % classes)) for k in new]
        in_blank = np.concatenate((stay_blank[old], np.full(len(new), -np.inf)))
        in_label = np.concatenate((stay_label[old], extended.ravel()[new]))
    total = np.logaddexp(in_blank, in_label)
    order = np.argsort(-total, kind="stable")
    return [(np.array(prefixes[k], np.int64), float(total[k])) for k in order]


def _scores_of(
    scorer: Scorer, prefix: tuple[int, ...], known: dict[tuple[int, ...], NDArray[np.float64]], classes: int
) -> NDArray[np.float64]:
    if prefix in known:
        return known[prefix]
    scores = np.asarray(scorer(prefix), np.float64)
    if scores.shape != (classes,) or not (scores < np.inf).all():
        raise ValueError(
            f"scorer must return one number under infinity for each of the {classes} classes; got an array "
            f"of the shape {scores.shape}"
        )
    return scores
