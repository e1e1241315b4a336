"""The command line: what it writes, and its exit codes."""

import csv
import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import LSTMClassifier, _commands, cli
from fastlstm.cli import main

RNG = np.random.default_rng(3)
QUICK = ["--hidden-size", "4", "--max-iter", "2", "--random-state", "0", "--quiet"]


def long_csv(path, n=20, label=None):
    """Write n ragged sequences of two features, one row a time step."""
    label = label or (lambda i: ["low", "high"][i % 2])
    lines = ["who,when,a,b,answer"]
    for i in range(n):
        for t in range(2 + i % 3):
            a, b = RNG.normal(100.0 * (i % 2), 1.0, size=2)
            lines.append(f"s{i},{t},{a:.4f},{b:.4f},{label(i)}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def data(tmp_path):
    return long_csv(tmp_path / "data.csv")


@pytest.fixture
def model(tmp_path, data):
    path = str(tmp_path / "model.safetensors")
    assert (
        main(["train", data, "--id", "who", "--time", "when", "--target", "answer", "--out", path, *QUICK])
        == 0
    )
    return path


def run_json(capsys, *arguments):
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out)


def failure(capsys, *arguments, code=1):
    """The one line that a failing command writes to stderr."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fastlstm: ")
    return lines[0]


# ----------------------------------------------------------------------------------------- usage


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastlstm {fastlstm.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["demo", "--help"], ["bench", "--help"]]
)
def test_help(arguments, capsys):
    assert main(arguments) == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "data.csv"],
        ["train", "data.csv", "--out", "m", "--max-iter", "many"],
        ["train", "data.csv", "--out", "m", "--hold-out", "1.5"],
        ["train", "data.csv", "--out", "m", "--hold-out", "half"],
        ["train", "data.csv", "--out", "m", "--missing", "ignore"],
        ["predict", "model"],
        ["demo", "--fast"],
        ["bench", "--nonsense"],
    ],
)
def test_wrong_usage(arguments, capsys):
    assert main(arguments) == 2
    assert "usage:" in capsys.readouterr().err


def test_arguments_of_the_process_by_default(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fastlstm", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("fastlstm ")


# ----------------------------------------------------------------------------------------- failures


def test_missing_and_damaged_files(tmp_path, data, capsys):
    missing = str(tmp_path / "none.csv")
    assert (
        failure(capsys, "train", missing, "--out", "m") == f"fastlstm: {missing}: No such file or directory"
    )
    assert "too few" in failure(capsys, "info", str(_written(tmp_path / "empty.safetensors", b"")))
    assert "unknown kind of file" in failure(
        capsys, "train", str(_written(tmp_path / "x.txt", b"")), "--out", "m"
    )


def _written(path, content):
    path.write_bytes(content)
    return path


def test_training_mistakes(tmp_path, data, capsys):
    out = str(tmp_path / "m.safetensors")
    base = ["train", data, "--id", "who", "--out", out, *QUICK]
    assert "there is no column 'color'" in failure(capsys, *base, "--target", "color")
    assert "name the column with --target" in failure(capsys, *base, "--features", "a", code=2)
    assert "use --task classify" in failure(capsys, *base, "--target", "answer", "--task", "regress")
    assert "--loss is no option of LSTMClassifier" in failure(
        capsys, *base, "--target", "answer", "--loss", "huber", code=2
    )
    for wrong in (["--hidden-size", "-3"], ["--cell", "none"]):
        name = wrong[0].strip("-").replace("-", "_")
        assert name in failure(capsys, *base, "--target", "answer", *wrong, code=2)


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_a_place_where_nothing_can_be_written_is_told_before_training(
    option, tmp_path, data, capsys, monkeypatch
):
    monkeypatch.setattr(LSTMClassifier, "fit", None)
    place = {"--out": str(tmp_path / "m.safetensors"), option: str(tmp_path / "none" / "m")}
    words = [word for pair in place.items() for word in pair]
    message = failure(capsys, "train", data, "--id", "who", "--target", "answer", *words, *QUICK)
    assert message.endswith(f"{place[option]}: No such file or directory")
    place[option] = str(tmp_path)
    words = [word for pair in place.items() for word in pair]
    message = failure(capsys, "train", data, "--id", "who", "--target", "answer", *words, *QUICK)
    assert message.endswith(f"{tmp_path}: Is a directory")


def test_unexpected_errors_are_one_line(monkeypatch, capsys):
    def broken(_):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(_commands, "info", broken)
    assert failure(capsys, "info") == "fastlstm: unexpected RuntimeError: first second"


def test_interruption(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_commands, "info", interrupted)
    assert failure(capsys, "info") == "fastlstm: interrupted"


def test_warnings_are_one_line(monkeypatch, capsys):
    def warn(_):
        warnings.warn("take\ncare", UserWarning, stacklevel=1)
        return {}

    monkeypatch.setattr(_commands, "info", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["info", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {}
    assert captured.err == "fastlstm: warning: take care\n"


def test_json_has_no_nan():
    value = {"a": (np.float64("nan"), np.arange(2), float("inf")), 3: None}
    assert cli._jsonable(value) == {"a": [None, [0, 1], None], "3": None}


# ----------------------------------------------------------------------------------------- train and predict


def test_predict_reads_the_columns_of_the_training(model, data, capsys):
    assert main(["predict", model, data]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert captured.err == ""
    assert [row["id"] for row in rows] == [f"s{i}" for i in range(20)]
    assert {row["prediction"] for row in rows} <= {"low", "high"}


def test_predict_needs_no_target_and_writes_probabilities(model, data, tmp_path, capsys):
    bare, out = tmp_path / "bare.csv", tmp_path / "out.csv"
    bare.write_text("\n".join(line.rpartition(",")[0] for line in Path(data).read_text().splitlines()))
    assert main(["predict", model, str(bare), "--proba", "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    sequences = fastlstm.datasets.load_sequences(data, id="who", time="when", target="answer").X
    expected = fastlstm.load(model).predict_proba(sequences)
    found = [[float(row["p(high)"]), float(row["p(low)"])] for row in rows]
    np.testing.assert_array_equal(found, expected)


def test_predict_as_json(model, data, capsys):
    result = run_json(capsys, "predict", model, data)
    assert result["n"] == len(result["predictions"]) == 20
    assert set(result["predictions"][0]) == {"id", "prediction"}


def test_predict_with_too_few_features(model, tmp_path, capsys):
    path = _written(tmp_path / "narrow.csv", b"who,when,a\ns,1,2\n")
    assert "there is no column 'b'" in failure(capsys, "predict", model, str(path))
    message = failure(capsys, "predict", model, str(path), "--features", "a")
    assert "X has 1 features, but the model was trained with 2" in message


def test_train_reports_the_held_out_score(data, tmp_path, capsys):
    out = str(tmp_path / "m.safetensors")
    options = ["--id", "who", "--time", "when", "--target", "answer", "--out", out]
    more = ["--max-iter", "30", "--learning-rate-init", "0.02", "--bidirectional", "--hold-out", "0.5"]
    result = run_json(capsys, "train", data, *options, *QUICK, *more)
    assert result["task"] == "classify"
    assert (result["n_train"], result["n_test"]) == (10, 10)
    assert result["score"] == 1.0
    assert result["baseline"] == 0.5
    info = run_json(capsys, "info", out)
    assert info["normalized"] is True
    assert info["network"]["encoder"]["bidirectional"] is True
    assert info["data"] == {
        "target": ["answer"],
        "id": "who",
        "time": "when",
        "delta_t": None,
        "features": ["a", "b"],
    }


def test_train_in_words(data, tmp_path, capsys):
    out = str(tmp_path / "m.safetensors")
    arguments = ["train", data, "--id", "who", "--target", "answer", "--features", "a", "b", "--out", out]
    assert main([*arguments, *QUICK[:-1]]) == 0
    text = capsys.readouterr().out
    assert "classify: 16 training and 4 held-out sequences, 2 features" in text
    assert "held-out accuracy" in text
    assert "epoch 2/2" in text


def test_regression_with_a_separate_test_file(tmp_path, capsys):
    values = [long_csv(tmp_path / f"{name}.csv", label=lambda i: i / 10) for name in ("train", "test")]
    out = str(tmp_path / "m.safetensors")
    arguments = [
        "--id",
        "who",
        "--time",
        "when",
        "--target",
        "answer",
        "--out",
        out,
        "--no-standardize",
        *QUICK,
    ]
    result = run_json(capsys, "train", values[0], "--test", values[1], *arguments)
    assert result["task"] == "regress"
    assert result["score_name"] == "root mean squared error"
    assert (result["n_train"], result["n_test"]) == (20, 20)
    assert run_json(capsys, "info", out)["normalized"] is False
    assert "needs a classifier" in failure(capsys, "predict", out, values[1], "--proba")


def test_several_targets(tmp_path, capsys):
    lines = ["t0,t1,p,q", *(f"{i},{i + 1},{i}.5,{2 * i}" for i in range(10))]
    path = _written(tmp_path / "wide.csv", "\n".join(lines).encode())
    out = str(tmp_path / "m.safetensors")
    result = run_json(capsys, "train", str(path), "--target", "p", "q", "--out", out, *QUICK)
    assert result["task"] == "regress"
    predicted = run_json(capsys, "predict", out, str(path))["predictions"]
    assert set(predicted[0]) == {"id", "prediction(p)", "prediction(q)"}


def test_npz_and_no_held_out_data(tmp_path, capsys):
    path, out = tmp_path / "data.npz", str(tmp_path / "m.safetensors")
    np.savez(path, X=RNG.normal(size=(8, 5, 2)), y=np.arange(8) % 2, lengths=np.full(8, 4))
    result = run_json(capsys, "train", str(path), "--out", out, "--hold-out", "0", *QUICK)
    assert result["n_train"] == 8
    assert "score" not in result
    assert run_json(capsys, "predict", out, str(path))["predictions"][0]["prediction"] in (0, 1)


def test_ts_files(tmp_path, capsys):
    cases = "".join(f"{i},{i + 1},{i}:1,2,3:{'ab'[i % 2]}\n" for i in range(8))
    path = _written(tmp_path / "toy.ts", ("@classLabel true a b\n@data\n" + cases).encode())
    out = str(tmp_path / "m.safetensors")
    assert run_json(capsys, "train", str(path), "--out", out, *QUICK)["n_features"] == 2
    assert run_json(capsys, "predict", out, str(path))["n"] == 8


def test_training_is_repeatable(data, tmp_path, model):
    again = str(tmp_path / "again.safetensors")
    arguments = ["--id", "who", "--time", "when", "--target", "answer", "--out", again, *QUICK]
    assert main(["train", data, *arguments]) == 0
    assert Path(again).read_bytes() == Path(model).read_bytes()


def timed_csv(path, holes=(), n=40):
    """Write n sequences whose answer only the elapsed times tell; of the first step they are empty."""
    lines = ["who,passed,a,b,answer"]
    for i in range(n):
        for t in range(4):
            passed = "" if t == 0 else f"{(0.5, 50.0)[i % 2] + 0.01 * t}"
            a, b = (f"{value:.4f}" for value in RNG.normal(5.0, 1.0, size=2))
            b = "" if (i + t) % 3 == 0 and "b" in holes else b
            lines.append(f"s{i},{passed},{a},{b},{'yn'[i % 2]}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


TIMED = ["--id", "who", "--delta-t", "passed", "--target", "answer"]
LEARNS = [
    "--max-iter",
    "80",
    "--learning-rate-init",
    "0.03",
    "--hidden-size",
    "8",
    "--random-state",
    "0",
    "--quiet",
]


def test_missing_values_are_observed_with_their_times(tmp_path, capsys):
    path, out = timed_csv(tmp_path / "d.csv", holes="b"), str(tmp_path / "m.safetensors")
    base = ["train", path, *TIMED, "--out", out, *LEARNS]
    assert "column 'b' holds '' in data row 1, not a number" in failure(capsys, *base)
    result = run_json(capsys, *base, "--missing", "observe", "--hold-out", "0.5")
    assert result["n_features"] == 2
    assert result["score"] == 1.0
    info = run_json(capsys, "info", out)
    assert info["missing"] == "observe"
    assert info["data"]["delta_t"] == "passed"
    predicted = run_json(capsys, "predict", out, path, "--proba")["predictions"]
    assert [row["prediction"] for row in predicted] == ["y", "n"] * 20
    data = fastlstm.datasets.load_sequences(
        path, id="who", delta_t="passed", target="answer", allow_missing=True
    )
    expected = fastlstm.load(out).predict_proba(data.X, delta_t=data.delta_t)
    np.testing.assert_array_equal([[row["p(n)"], row["p(y)"]] for row in predicted], expected)
    assert "column 'b' holds ''" in failure(capsys, "predict", out, path, "--missing", "error")


def test_times_for_the_time_aware_cell(tmp_path, capsys):
    path, out = timed_csv(tmp_path / "d.csv"), str(tmp_path / "m.safetensors")
    base = ["train", path, *TIMED, "--out", out, *LEARNS]
    assert "nothing would use it" in failure(capsys, *base)
    separate = ["--cell", "tlstm", "--test", timed_csv(tmp_path / "test.csv", n=20)]
    assert run_json(capsys, *base, *separate)["score"] > 0.9
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(Path(path).read_text().replace("passed", "gap", 1))
    assert "there is no column 'passed'" in failure(capsys, "predict", out, str(renamed))
    want = run_json(capsys, "predict", out, path)["predictions"]
    assert run_json(capsys, "predict", out, str(renamed), "--delta-t", "gap")["predictions"] == want
    assert "needs a model that was trained with it" in failure(
        capsys, "predict", out, path, "--missing", "observe"
    )


def test_wrong_times(tmp_path, capsys):
    path = tmp_path / "d.csv"
    base = ["train", str(path), *TIMED, "--out", str(tmp_path / "m"), "--cell", "tlstm", *QUICK]
    timed_csv(path, n=4)
    good = path.read_text()
    path.write_text(good.replace("s1,50.02", "s1,-3", 1))
    assert "delta_t is -3.0 at sequence 1, time step 2" in failure(capsys, *base)
    path.write_text(good.replace("s1,50.02", "s1,", 1))
    assert "delta_t" in failure(capsys, *base)
    wide = _written(tmp_path / "wide.csv", b"t0,t1,answer\n1,2,a\n3,4,b\n")
    message = failure(capsys, "train", str(wide), "--delta-t", "t0", "--target", "answer", "--out", "m")
    assert "times need a table with an id column, or an npz file; got delta_t='t0'" in message


def test_missing_values_and_times_of_npz_files(tmp_path, capsys):
    path, out = tmp_path / "data.npz", str(tmp_path / "m.safetensors")
    X, times = RNG.normal(size=(12, 5, 2)), RNG.uniform(0.0, 2.0, size=(12, 5))
    X[RNG.random(X.shape) < 0.2] = np.nan
    lengths = np.full(12, 4)
    np.savez(path, X=X, y=np.arange(12) % 2, lengths=lengths, gaps=times)
    base = ["train", str(path), "--out", out, *QUICK]
    assert "NaN" in failure(capsys, *base)
    assert "there is no array 'gap'" in failure(capsys, *base, "--missing", "observe", "--delta-t", "gap")
    run_json(capsys, *base, "--missing", "observe", "--delta-t", "gaps")
    predicted = run_json(capsys, "predict", out, str(path), "--proba")["predictions"]
    expected = fastlstm.load(out).predict_proba(X, lengths, delta_t=times)
    np.testing.assert_array_equal([[row["p(0)"], row["p(1)"]] for row in predicted], expected)


def test_layers_are_connected_by_options(data, tmp_path, capsys):
    out = str(tmp_path / "m.safetensors")
    base = ["train", data, "--id", "who", "--target", "answer", "--out", out, *QUICK]
    more = ["--num-layers", "2", "--residual", "--skip", "both", "--bidirectional", "--merge", "sum"]
    run_json(capsys, *base, *more)
    network = run_json(capsys, "info", out)["network"]
    assert network["encoder_type"] == "Stack"
    wanted = {"residual": True, "skip": "both", "merge": "sum", "num_layers": 2}
    assert {name: network["encoder"][name] for name in wanted} == wanted
    assert run_json(capsys, "predict", out, data)["n"] == 20


def test_picture_of_a_training(data, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture, out = tmp_path / "p.png", str(tmp_path / "m.safetensors")
    base = ["train", data, "--id", "who", "--target", "answer", "--out", out, "--plot", str(picture), *QUICK]
    assert run_json(capsys, *base)["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "--plot needs held-out sequences" in failure(capsys, *base, "--hold-out", "0", "--json", code=2)


# ----------------------------------------------------------------------------------------- demo, bench, info


@pytest.fixture
def small_demo(monkeypatch):
    """The demo on every tenth sequence."""
    from dataclasses import replace

    full = fastlstm.datasets.load_japanese_vowels()
    names = ("X_train", "X_test", "y_train", "y_test")
    small = replace(full, **{name: getattr(full, name)[::10] for name in names})
    monkeypatch.setattr(_commands, "load_japanese_vowels", lambda: small)


def test_demo(small_demo, tmp_path, capsys):
    result = run_json(capsys, "demo", "--out", str(tmp_path / "deep" / "demo"))
    assert result["loaded_model_agrees"] is True
    assert result["score"] > result["baseline"]
    assert fastlstm.load(result["model"]).classes_.tolist() == list("123456789")
    if result["picture"]:
        assert Path(result["picture"]).read_bytes().startswith(b"\x89PNG")


def test_demo_in_words_without_matplotlib(small_demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_commands.importlib.util, "find_spec", lambda name: None)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for words in (
        "Who is speaking?",
        "epoch  1/60",
        "held-out accuracy",
        "loss\n",
        "|*",
        "the same 37 predictions",
    ):
        assert words in text
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_bench_passes_its_arguments_on(capsys):
    assert main(["bench", "--list"]) == 0
    assert capsys.readouterr().out.count("\n") > 3


def test_info_of_the_installation(capsys):
    facts = run_json(capsys, "info")
    assert facts["fastlstm"] == fastlstm.__version__
    assert main(["info"]) == 0
    assert fastlstm.__version__ in capsys.readouterr().out


def test_info_of_a_model_in_words(model, capsys):
    assert main(["info", model]) == 0
    assert "kind" in capsys.readouterr().out
