"""Training curves as pictures and as text."""

from types import SimpleNamespace

import numpy as np
import pytest

from fastlstm.plotting import TrainingCurveDisplay, save_report

FITTED = SimpleNamespace(loss_curve_=[2.0, 1.0, 0.5], validation_scores_=[0.1, 0.4, 0.3])


@pytest.fixture
def axes():
    figure = pytest.importorskip("matplotlib.figure")
    return figure.Figure().subplots()


def test_from_estimator_draws_loss_and_score(axes):
    display = TrainingCurveDisplay.from_estimator(FITTED, ax=axes)
    assert display.ax_ is axes
    assert display.figure_ is axes.figure
    assert [line.get_ydata().tolist() for line in display.lines_] == [[2.0, 1.0, 0.5], [0.1, 0.4, 0.3]]
    assert display.lines_[0].get_xdata().tolist() == [1, 2, 3]
    assert axes.get_xlabel() == "epoch"


def test_without_scores_there_is_one_line(axes):
    estimator = SimpleNamespace(loss_curve_=np.array([2.0, 1.0]), validation_scores_=None)
    display = TrainingCurveDisplay.from_estimator(estimator, ax=axes, color="red")
    assert len(display.lines_) == 1
    assert display.lines_[0].get_color() == "red"


def test_a_wide_range_gets_a_logarithmic_axis(axes):
    TrainingCurveDisplay([10.0, 0.01]).plot(axes)
    assert axes.get_yscale() == "log"


def test_a_new_figure_by_default():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    display = TrainingCurveDisplay([2.0, 1.0]).plot()
    assert display.figure_.axes == [display.ax_]
    pyplot.close(display.figure_)


def test_an_estimator_that_is_not_fitted():
    with pytest.raises(ValueError, match="this SimpleNamespace has no training curve: call fit"):
        TrainingCurveDisplay.from_estimator(SimpleNamespace())


@pytest.mark.parametrize("count", [1, 2, 10, 500])
def test_text_shows_every_part_of_the_curve(count):
    values = np.linspace(3.0, 1.0, count)
    lines = TrainingCurveDisplay(values).text(width=60, height=8).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0] == "loss"
    assert "3 |*" in lines[1]
    assert lines[-2].split() == (["1", str(count)] if count > 1 else ["1"])
    if count > 1:
        assert lines[8].startswith("1 |")
        assert lines[8].endswith("*")


def test_text_leaves_gaps_for_values_that_are_not_finite():
    text = TrainingCurveDisplay([2.0, np.nan, np.inf, 1.0]).text(width=40, height=4)
    assert text.count("*") == 2


def test_text_without_finite_values():
    assert "no finite loss" in TrainingCurveDisplay([np.nan]).text()
    assert "no finite loss" in TrainingCurveDisplay([]).text()


def test_report_of_a_classifier(tmp_path):
    pytest.importorskip("matplotlib")
    fitted = SimpleNamespace(**vars(FITTED), classes_=np.array(["a", "b"]))
    path = tmp_path / "report.png"
    save_report(path, fitted, ["a", "b", "b"], ["a", "a", "b"], title="toy")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_report_of_a_regressor(tmp_path, shape):
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.png"
    save_report(path, FITTED, np.zeros(shape), np.ones(shape))
    assert path.read_bytes().startswith(b"\x89PNG")
