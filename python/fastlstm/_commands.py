"""What the commands of ``fastlstm`` do. Each function takes the parsed arguments and returns plain data."""

from __future__ import annotations

import argparse
import csv
import errno
import importlib.util
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from fastlstm.cli import HYPERPARAMETERS, UsageError
from fastlstm.datasets import SequenceData, load_japanese_vowels, load_sequences
from fastlstm.model import Model, Normalization, load
from fastlstm.sequences import Sequences, as_sequences, as_times

Facts = dict[str, Any]


class Part(NamedTuple):
    """Sequences, their targets, and their elapsed times if there are any."""

    X: Sequences
    y: NDArray[Any]
    delta_t: Sequences | None = None

    def rows(self, index: NDArray[np.intp]) -> Part:
        """The rows of an index array."""
        return Part(self.X[index], self.y[index], None if self.delta_t is None else self.delta_t[index])


def _printer(arguments: argparse.Namespace) -> Any:
    """`print`, or nothing where the output is JSON or is to be quiet."""
    silent = arguments.json or getattr(arguments, "quiet", False)
    return (lambda *_: None) if silent else print


def _verbosity(arguments: argparse.Namespace) -> int:
    """A live bar on a terminal, else one line an epoch, else nothing."""
    if arguments.json or getattr(arguments, "quiet", False):
        return 0
    return 2 if sys.stdout.isatty() else 1


# ------------------------------------------------------------------------------------------- demo


def demo(arguments: argparse.Namespace) -> Facts:
    """Train on Japanese Vowels, score on held-out data, save the model, load it again."""
    from fastlstm.estimators import LSTMClassifier

    say = _printer(arguments)
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    data = load_japanese_vowels()
    lengths = [len(x) for x in data.X_train + data.X_test]
    say(
        f"Who is speaking? {len(data.X_train)} training and {len(data.X_test)} test recordings of"
        f" {len(data.target_names)} speakers,\n{data.X_train[0].shape[1]} channels,"
        f" {min(lengths)} to {max(lengths)} time steps (Japanese Vowels, UCI)\n"
    )
    train = Part(as_sequences(data.X_train, dtype=np.float64), data.y_train)
    test = Part(as_sequences(data.X_test, dtype=np.float64), data.y_test)
    estimator = LSTMClassifier(
        hidden_size=64,
        learning_rate_init=3e-3,
        max_iter=60,
        batch_size=32,
        random_state=arguments.random_state,
        verbose=_verbosity(arguments),
    )
    facts, model = _fit(estimator, train, standardize=True)
    facts |= _assess(model, test, train.y)
    say("\n" + _summary(facts))
    facts["model"] = str(folder / "model.safetensors")
    model.save(facts["model"])
    facts["picture"] = _demo_picture(folder / "training.png", estimator, model, data, say)
    same = bool((load(facts["model"]).predict(data.X_test) == model.predict(data.X_test)).all())
    facts["loaded_model_agrees"] = same
    if not same:
        raise RuntimeError(f"the model loaded from {facts['model']} predicts something else")
    say(
        f"model: {facts['model']}\nfastlstm.load({facts['model']!r}).predict gives the same"
        f" {len(test.X)} predictions, with numpy alone"
    )
    return facts


def _demo_picture(path: Path, estimator: Any, model: Model, data: Any, say: Any) -> str | None:
    """Write the picture where matplotlib is installed, else draw the curve as text."""
    if importlib.util.find_spec("matplotlib") is None:
        from fastlstm.plotting import TrainingCurveDisplay

        say("\n" + TrainingCurveDisplay(estimator.loss_curve_).text() + "\n")
        return None
    from fastlstm.plotting import save_report

    save_report(path, estimator, data.y_test, model.predict(data.X_test), title="Japanese Vowels")
    say(f"picture: {path}")
    return str(path)


# ------------------------------------------------------------------------------------------- train


def train(arguments: argparse.Namespace) -> Facts:
    """Read data, hold a part out, fit, score, save."""
    say = _printer(arguments)
    _check_place(arguments.out)
    if arguments.plot:
        _check_plot(arguments)
    options = {name: getattr(arguments, name) for name in ("target", "id", "time", "delta_t")}
    observe = arguments.missing == "observe"
    data = load_sequences(arguments.data, features=arguments.features, allow_missing=observe, **options)
    if data.y is None:
        raise UsageError(f"{arguments.data}: there is nothing to predict; name the column with --target")
    estimator, task = _estimator(arguments, data.y)
    part = _part(data, task, observe)
    if arguments.test is None:
        kept, held_out = _split(part.y, task, arguments.hold_out, arguments.random_state)
        part, test = part.rows(kept), part.rows(held_out)
    else:
        names = data.feature_names
        test_data = load_sequences(arguments.test, features=names, allow_missing=observe, **options)
        test = _part(test_data, task, observe)
    n_features = part.X.n_features
    say(f"{task}: {len(part.X)} training and {len(test.X)} held-out sequences, {n_features} features")
    facts, model = _fit(estimator, part, standardize=arguments.standardize)
    model.extra["data"] = {**options, "features": data.feature_names}
    model.save(arguments.out)
    facts |= {"task": task, "model": str(arguments.out)}
    if len(test.X):
        facts |= _assess(model, test, part.y)
    say(_summary(facts) + f"\nmodel: {arguments.out}")
    if arguments.plot:
        facts["picture"] = _train_picture(arguments.plot, estimator, model, test)
    return facts


def _check_place(path: str) -> None:
    """Raise OSError, before any training, where no file can be written."""
    folder = Path(path).resolve().parent
    wrong = errno.EISDIR if Path(path).is_dir() else 0 if folder.is_dir() else errno.ENOENT
    if not wrong and not os.access(folder, os.W_OK):
        wrong = errno.EACCES
    if wrong:
        raise OSError(wrong, os.strerror(wrong), path)


def _check_plot(arguments: argparse.Namespace) -> None:
    """The same of what --plot needs beside a place for its file."""
    _check_place(arguments.plot)
    if arguments.test is None and arguments.hold_out == 0:
        raise UsageError("--plot needs held-out sequences: --hold-out above 0, or --test")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'fastlstm[plot]'")


def _part(data: SequenceData, task: str, observe: bool) -> Part:
    X, delta_t = _sequences(data, observe)
    return Part(X, _targets(data.y, task), delta_t)


def _sequences(data: SequenceData, observe: bool) -> tuple[Sequences, Sequences | None]:
    """Checked sequences and elapsed times of a file; `observe` says whether NaN stands for what was not observed."""
    X = as_sequences(data.X, dtype=np.float64, allow_nan=observe)
    return X, None if data.delta_t is None else as_times(data.delta_t, X)


def _estimator(arguments: argparse.Namespace, y: NDArray[Any]) -> tuple[Any, str]:
    """The unfitted estimator with the given hyper-parameters, and the task."""
    from fastlstm.estimators import LSTMClassifier, LSTMRegressor
    from fastlstm.estimators._params import check_parameters

    task = arguments.task
    if task == "auto":
        task = "regress" if y.dtype.kind == "f" or y.ndim > 1 else "classify"
    kind = LSTMClassifier if task == "classify" else LSTMRegressor
    given = {name: getattr(arguments, name) for name, _, _ in (*HYPERPARAMETERS, ("missing", str, ""))}
    given = {name: value for name, value in given.items() if value is not None}
    for name in sorted(given.keys() - kind().get_params().keys()):
        raise UsageError(f"--{name.replace('_', '-')} is no option of {kind.__name__} (--task {task})")
    estimator = kind(**given, verbose=_verbosity(arguments))
    try:
        check_parameters(kind.__name__, estimator.get_params(deep=False), kind._rules)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return estimator, task


def _targets(y: NDArray[Any] | None, task: str) -> NDArray[Any]:
    if y is None:
        raise ValueError("the held-out file has no targets")
    if task == "regress":
        try:
            return y.astype(np.float64)
        except ValueError:
            raise ValueError("the target holds text; use --task classify") from None
    return y.astype(np.int64) if y.dtype.kind == "f" and (y == np.floor(y)).all() else y


def _split(
    y: NDArray[Any], task: str, share: float, seed: int | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to train on and rows held out, the classes in equal shares where they are large enough."""
    rows = np.arange(len(y))
    if share == 0:
        return rows, rows[:0]
    from sklearn.model_selection import train_test_split

    options: Facts = {"test_size": share, "random_state": seed}
    if task == "classify":
        try:
            kept, held_out = train_test_split(rows, stratify=y, **options)
            return np.sort(kept), np.sort(held_out)
        except ValueError:  # a class is too small to be split
            pass
    kept, held_out = train_test_split(rows, **options)
    return np.sort(kept), np.sort(held_out)


def _train_picture(path: str, estimator: Any, model: Model, test: Part) -> str:
    from fastlstm.plotting import save_report

    save_report(path, estimator, test.y, model.predict(test.X, delta_t=test.delta_t))
    return path


def _fit(estimator: Any, part: Part, *, standardize: bool) -> tuple[Facts, Model]:
    """Fit on (standardised) sequences; the model holds the standardisation."""
    by_us = standardize and estimator.missing == "error"  # else the estimator does it, if anyone
    normalization = Normalization.of(part.X) if by_us else None
    X = part.X if normalization is None else normalization.apply(part.X)
    started = time.perf_counter()
    estimator.fit(X, part.y, delta_t=part.delta_t)
    seconds = time.perf_counter() - started
    model = estimator._model()
    if normalization is not None:
        model = Model(model.network, model.decision, normalization=normalization, extra=model.extra)
    facts = {
        "n_train": len(X),
        "n_features": X.n_features,
        "epochs": int(estimator.n_iter_),
        "seconds": seconds,
        "loss": float(estimator.loss_),
        "n_parameters": model.network.n_parameters,
    }
    return facts, model


def _assess(model: Model, test: Part, y_train: NDArray[Any]) -> Facts:
    """Score on held-out data, beside that of always predicting the same."""
    y, predicted = test.y, model.predict(test.X, delta_t=test.delta_t)
    if model.kind == "classifier":
        labels, counts = np.unique(y, return_counts=True, axis=0)
        return {
            "n_test": len(y),
            "score_name": "accuracy",
            "score": _share_right(predicted, y),
            "baseline_name": "always their most frequent label",
            "baseline": _share_right(np.broadcast_to(labels[counts.argmax()], y.shape), y),
        }
    return {
        "n_test": len(y),
        "score_name": "root mean squared error",
        "score": _rmse(predicted, y),
        "baseline_name": "always the mean",
        "baseline": _rmse(y_train.mean(axis=0), y),
    }


def _share_right(predicted: NDArray[Any], y: NDArray[Any]) -> float:
    return float(np.mean((predicted == y).reshape(len(y), -1).all(axis=1)))


def _rmse(predicted: NDArray[Any], y: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean((predicted - y) ** 2)))


def _summary(facts: Mapping[str, Any]) -> str:
    lines = [f"trained {facts['epochs']} epochs in {facts['seconds']:.1f} s, loss {facts['loss']:.4g}"]
    if "score" in facts:
        lines.append(
            f"held-out {facts['score_name']} {facts['score']:.4g} on {facts['n_test']} sequences"
            f" ({facts['baseline_name']}: {facts['baseline']:.4g})"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- predict


def predict(arguments: argparse.Namespace) -> Facts:
    """Predict every sequence of a file; CSV goes to stdout or to a file."""
    model = load(arguments.model)
    if arguments.proba and model.kind != "classifier":
        raise ValueError("--proba needs a classifier, and this model is a regressor")
    observe = _observes(model, arguments.missing)
    data = _load_for(model, arguments, observe)
    X, delta_t = _sequences(data, observe)
    columns: dict[str, Any] = {"id": data.ids, **_predictions(model, X, delta_t)}
    if arguments.proba:
        probabilities = model.predict_proba(X, delta_t=delta_t)
        columns |= {f"p({label})": probabilities[:, k] for k, label in enumerate(model.classes_.tolist())}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*map(_plain, columns.values()), strict=True)]
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8", newline="") as file:
            _write_csv(file, list(columns), rows)
    elif not arguments.json:
        _write_csv(sys.stdout, list(columns), rows)
    return {"model": arguments.model, "n": len(X), "predictions": rows}


def _plain(values: Any) -> list[Any]:
    return np.asarray(values).tolist() if isinstance(values, np.ndarray) else list(values)


def _observes(model: Model, missing: str | None) -> bool:
    """Whether the data may have missing values, by the argument, or else by the training."""
    if missing == "observe" and model.missing is None:
        raise ValueError("--missing observe needs a model that was trained with it")
    return model.missing is not None and missing != "error"


def _load_for(model: Model, arguments: argparse.Namespace, observe: bool) -> SequenceData:
    """The data, read as those of the training were unless the arguments say otherwise."""
    stored = model.extra.get("data")
    stored = stored if isinstance(stored, dict) else {}
    id = arguments.id or stored.get("id")
    features = arguments.features or (stored.get("features") if id else None)
    return load_sequences(
        arguments.data,
        target=stored.get("target"),
        id=id,
        time=arguments.time or (stored.get("time") if id else None),
        delta_t=arguments.delta_t or stored.get("delta_t"),
        features=features,
        allow_missing=observe,
        require_target=False,
    )


def _predictions(model: Model, X: Sequences, delta_t: Sequences | None) -> dict[str, NDArray[Any]]:
    """Columns of predictions, named after the targets where there are several."""
    predicted = model.predict(X, delta_t=delta_t)
    if predicted.ndim == 1:
        return {"prediction": predicted}
    names = (model.extra.get("data") or {}).get("target") or []
    if len(names) != predicted.shape[1]:
        names = [str(index) for index in range(predicted.shape[1])]
    return {f"prediction({name})": predicted[:, index] for index, name in enumerate(names)}


def _write_csv(file: TextIO, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


# ------------------------------------------------------------------------------------------- info


def info(arguments: argparse.Namespace) -> Facts:
    """What a model file holds, or how this installation is set up."""
    from fastlstm.config import config

    facts = load(arguments.model).info if arguments.model else config()
    if not arguments.json:
        _print_facts(facts)
    return facts


def _print_facts(facts: Mapping[str, Any], indent: str = "") -> None:
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        if isinstance(value, Mapping):
            print(f"{indent}{key}")
            _print_facts(value, indent + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            print(f"{indent}{key:<{width}}  {shown}")
