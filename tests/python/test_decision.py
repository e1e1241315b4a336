"""From raw outputs to labels and probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm.decision import KINDS, Decision, labels, log_probabilities, probabilities

RAW = np.array([[-1000.0, 0.0, 1000.0], [0.1, 0.2, -0.3], [3.0, 3.0, 3.0]], dtype=np.float32)


def decisions():
    return {
        "binary": Decision("binary", np.array(["no", "yes"])),
        "multiclass": Decision("multiclass", np.array([10, 20, 30])),
        "multilabel": Decision("multilabel", np.arange(3)),
        "regression": Decision("regression", n_targets=3, flat=False),
    }


def test_every_kind_has_a_case():
    assert set(decisions()) == set(KINDS)


def test_multiclass_probabilities_are_a_softmax():
    proba = probabilities(RAW, "multiclass")
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-15)
    np.testing.assert_array_equal(proba[0], [0.0, 0.0, 1.0])
    np.testing.assert_allclose(proba[2], 1 / 3)
    assert np.isfinite(log_probabilities(RAW, "multiclass")).all()


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_log_probabilities_are_the_logarithm(kind):
    raw = np.linspace(-5, 5, 12).reshape(-1, 1 if kind == "binary" else 3)
    np.testing.assert_allclose(log_probabilities(raw, kind), np.log(probabilities(raw, kind)), atol=1e-14)


def test_binary_probabilities_do_not_saturate_early():
    proba = probabilities(np.array([[-60.0], [0.0], [30.0]], np.float32), "binary")
    assert proba.shape == (3, 2)
    assert 0 < proba[0, 1] < 1e-25 and 0 < proba[2, 0] < 1e-12
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-15)
    assert probabilities(np.array([[1e4], [-1e4]]), "binary").tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_labels():
    assert decisions()["binary"].predict([[-0.1], [0.1]]).tolist() == ["no", "yes"]
    assert decisions()["multiclass"].predict(RAW).tolist() == [30, 20, 10]
    found = decisions()["multilabel"].predict(RAW)
    assert found.tolist() == [[0, 0, 1], [1, 1, 0], [1, 1, 1]] and found.dtype == np.int64


def test_regression_values_and_deviations():
    assert decisions()["regression"].predict(RAW).dtype == np.float64
    flat = Decision("regression", flat=True, variance=True)
    raw = np.array([[1.5, np.log(4.0)], [2.5, 0.0]])
    assert flat.n_outputs == 2
    assert flat.predict(raw).tolist() == [1.5, 2.5]
    np.testing.assert_allclose(flat.predict_std(raw), [2.0, 1.0])
    with pytest.raises(ValueError, match="no standard deviation"):
        decisions()["regression"].predict_std(RAW)
    with pytest.raises(ValueError, match="no probabilities"):
        decisions()["regression"].predict_proba(RAW)
    with pytest.raises(ValueError, match="no labels"):
        labels(RAW, "regression", np.arange(3))


@pytest.mark.parametrize("kind", KINDS)
def test_description_gives_the_same_decision(kind):
    decision = decisions()[kind]
    again = Decision.from_dict({**decision.to_dict(), "unknown": 1})
    raw = RAW[:, : decision.n_outputs]
    np.testing.assert_array_equal(again.predict(raw), decision.predict(raw))
    assert again.n_outputs == decision.n_outputs == raw.shape[1]
    assert again.is_classifier == decision.is_classifier == (kind != "regression")


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"kind": "ordinal"},
        {"kind": "binary"},
        {"kind": "binary", "classes": np.arange(3)},
        {"kind": "multiclass", "classes": np.zeros((2, 2))},
        {"kind": "regression", "classes": np.arange(2)},
        {"kind": "regression", "n_targets": 0},
        {"kind": "regression", "n_targets": True},
        {"kind": "regression", "n_targets": 2, "flat": True},
    ],
)
def test_wrong_descriptions_are_refused(description):
    with pytest.raises(ValueError, match=r"kind|classes|n_targets|targets"):
        Decision.from_dict(description)


def test_wrong_outputs_are_refused():
    with pytest.raises(ValueError, match=r"must have 3 columns, got 2"):
        decisions()["multiclass"].predict(RAW[:, :2])
    with pytest.raises(ValueError, match="shape"):
        decisions()["multiclass"].predict(RAW[0])
