"""The data set that comes with the package, and the readers of CSV, parquet, npz and ts files."""

import numpy as np
import pytest

from fastlstm.datasets import load_japanese_vowels, load_sequences, load_ts

# --------------------------------------------------------------------------------------- Japanese Vowels


def test_japanese_vowels_is_the_data_of_the_paper():
    data = load_japanese_vowels()
    assert (len(data.X_train), len(data.X_test)) == (270, 370)
    assert {x.shape[1] for x in data.X_train + data.X_test} == {12}
    assert {x.dtype for x in data.X_train + data.X_test} == {np.dtype(np.float32)}
    lengths = [len(x) for x in data.X_train + data.X_test]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert data.target_names == list("123456789") == sorted(set(data.y_test))
    assert np.unique(data.y_train, return_counts=True)[1].tolist() == [30] * 9
    assert np.unique(data.y_test, return_counts=True)[1].tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert len(data.feature_names) == 12


def test_japanese_vowels_has_the_values_of_the_source():
    data = load_japanese_vowels()
    expected = np.array([1.860936, 1.891651, 1.939205, 1.717517, 1.741191], dtype=np.float32)
    np.testing.assert_array_equal(data.X_train[0][:5, 0], expected)
    np.testing.assert_array_equal(data.X_train[0][:2, 1], np.array([-0.207383, -0.193249], dtype=np.float32))
    assert data.X_train[0].shape == (20, 12)


def test_japanese_vowels_names_its_origin():
    text = load_japanese_vowels().DESCR
    for words in ("10.24432/C5NS47", "CC BY 4.0", "Kudo", "Toyama", "Shimbo"):
        assert words in text


def test_japanese_vowels_as_a_tuple():
    data = load_japanese_vowels()
    X_train, X_test, y_train, y_test = load_japanese_vowels(return_X_y=True)
    np.testing.assert_array_equal(X_train[3], data.X_train[3])
    np.testing.assert_array_equal(y_test, data.y_test)
    assert (len(X_test), len(y_train)) == (370, 270)


def test_japanese_vowels_is_a_fresh_copy_each_time():
    load_japanese_vowels().X_train[0][:] = 0
    assert load_japanese_vowels().X_train[0].any()


# ------------------------------------------------------------------------------------------- tables

LONG = """who,when,a,b,label
u,2,3,0.3,yes
v,1,5,0.5,no
u,1,1,0.1,yes
u,10,4,0.4,yes
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_long_table(write):
    data = load_sequences(write("long.csv", LONG), id="who", time="when", target="label")
    assert [x.tolist() for x in data.X] == [[[1.0, 0.1], [3.0, 0.3], [4.0, 0.4]], [[5.0, 0.5]]]
    assert data.y.tolist() == ["yes", "no"]
    assert data.ids == ["u", "v"]
    assert data.feature_names == ["a", "b"]


def test_long_table_in_file_order(write):
    data = load_sequences(write("long.csv", LONG), id="who", target="label", features=["b", "when"])
    assert [x.tolist() for x in data.X] == [[[0.3, 2.0], [0.1, 1.0], [0.4, 10.0]], [[0.5, 1.0]]]


def test_long_table_sorted_by_dates(write):
    text = "id,t,x\n1,2024-02-01,2\n1,2024-01-31,1\n"
    assert load_sequences(write("d.csv", text), id="id", time="t").X[0].ravel().tolist() == [1.0, 2.0]


def test_long_table_sorted_by_times_of_day_and_zones(write):
    text = "id,t,x\n1,2024-01-31T12:00:00+01:00,1\n1,2024-01-31 11:30,2\n1,2024-01-31T11:15:00Z,1.5\n"
    found = load_sequences(write("d.csv", text), id="id", time="t")
    assert found.X[0].ravel().tolist() == [1.0, 1.5, 2.0]


@pytest.mark.parametrize("times", [("10/01/2020", "9/01/2020"), ("1", "two"), ("b", "a")])
def test_times_that_would_sort_as_text_are_refused(write, times):
    text = f"id,t,x\n1,{times[0]},2\n1,{times[1]},1\n"
    with pytest.raises(ValueError, match="neither a number nor a time as ISO 8601"):
        load_sequences(write("d.csv", text), id="id", time="t")


def test_ids_keep_the_order_of_appearance(write):
    data = load_sequences(write("d.csv", "id,x\n9,1\n10,2\n9,3\n-1,4\n"), id="id")
    assert data.ids == [9, 10, -1]
    assert data.X[0].ravel().tolist() == [1.0, 3.0]
    assert data.y is None


def test_times_of_a_long_table_follow_its_rows(write):
    text = "id,t,gap,x\n1,5,3,10\n1,2,,20\n2,1,7,30\n1,4,2,40\n2,3,,50\n"
    data = load_sequences(write("d.csv", text), id="id", time="t", delta_t="gap")
    assert data.feature_names == ["x"]
    assert [x.ravel().tolist() for x in data.X] == [[20.0, 40.0, 10.0], [30.0, 50.0]]
    first, second = data.delta_t
    assert first.tolist() == [0.0, 2.0, 3.0]
    assert second[0] == 7.0
    assert np.isnan(second[1])  # only a first step has no time before it
    assert load_sequences(write("d.csv", text), id="id", features=["x"]).delta_t is None


@pytest.mark.parametrize(
    ("text", "options", "X"),
    [
        ("id,a,b\n1,,2\n1,3,nan\n", {"id": "id"}, [[[np.nan, 2.0], [3.0, np.nan]]]),
        ("a,b,c,d\n1,,3,\n,5,,\n", {}, [[[1.0], [np.nan], [3.0]], [[np.nan], [5.0]]]),
    ],
    ids=["long", "wide"],
)
def test_empty_cells_are_missing_values_where_these_are_allowed(write, text, options, X):
    data = load_sequences(write("d.csv", text), allow_missing=True, **options)
    for found, want in zip(data.X, X, strict=True):
        np.testing.assert_array_equal(found, want)
    with pytest.raises(ValueError, match="data row 2 has no value"):
        load_sequences(write("d.csv", "a,b\n1,2\n,\n"), allow_missing=True)


def test_wide_table_with_ragged_rows(write):
    data = load_sequences(write("wide.csv", "label,t0,t1,t2\na,1,2,3\nb,4,,\n"), target="label")
    assert [x.tolist() for x in data.X] == [[[1.0], [2.0], [3.0]], [[4.0]]]
    assert data.y.tolist() == ["a", "b"]
    assert data.ids == [0, 1]


def test_tsv_bom_quotes_and_spaces(write):
    path = write("wide.tsv", '\ufeff"the label"\tt0\t t1\n"a\tb"\t1\t 2\n')
    data = load_sequences(path, target="the label")
    assert data.X[0].tolist() == [[1.0], [2.0]]
    assert data.y.tolist() == ["a\tb"]


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "-2"], "i", [1, -2]),
        (["1", "2.5"], "f", [1.0, 2.5]),
        (["007", "x"], "U", ["007", "x"]),
        (["1", "nan"], "U", ["1", "nan"]),
        (["True", "False"], "U", ["True", "False"]),
    ],
)
def test_type_of_a_target(write, cells, kind, values):
    text = "y,t0\n" + "".join(f"{cell},1\n" for cell in cells)
    y = load_sequences(write("wide.csv", text), target="y").y
    assert y.dtype.kind == kind
    assert y.tolist() == values


def test_several_targets(write):
    data = load_sequences(write("wide.csv", "p,q,t0\n1,2.5,1\n3,4.5,1\n"), target=["p", "q"])
    assert data.y.tolist() == [[1.0, 2.5], [3.0, 4.5]]


def test_absent_target(write):
    path = write("wide.csv", "t0\n1\n")
    assert load_sequences(path, target="y", require_target=False).y is None
    with pytest.raises(ValueError, match="there is no column 'y'; the columns are t0"):
        load_sequences(path, target="y")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no column is left"),
        ("a,a\n1,2\n", {}, "all different"),
        ("a,\n1,2\n", {}, "none empty"),
        ("a,b\n1,2\n1\n", {}, "data row 2 has 1 cells and the first line 2"),
        ('a,b\n"1,2\n', {}, "line 2"),
        ("a,b\n", {}, "there is no data row"),
        ("a,b\n", {"id": "a"}, "there is no data row"),
        ("a,b\n1,x\n", {}, "column 'b' holds 'x' in data row 1, not a number"),
        ("a,b\n1,x\n", {"id": "a"}, "column 'b' holds 'x' in data row 1, not a number"),
        ("a,b\n1,\n", {"id": "a"}, "column 'b' holds '' in data row 1"),
        ("a,b,c\n1,,3\n", {}, "data row 1 has an empty cell before its last value"),
        ("a,b\n,\n", {}, "data row 1 has no value"),
        ("a,b\n1,2\n", {"id": "c"}, "there is no column 'c'"),
        ("a,b\n1,2\n", {"id": "a", "time": "c"}, "there is no column 'c'"),
        ("a,b\n1,2\n", {"time": "a"}, "a time column needs an id column"),
        ("a,b\n1,2\n", {"delta_t": "a"}, "times need a table with an id column, or an npz file"),
        ("a,b\n1,2\n", {"id": "a", "delta_t": "c"}, "there is no column 'c'"),
        ("a,b\n1,2\n", {"features": ["z"]}, "there is no column 'z'"),
        ("a,b\n1,2\n", {"id": "a", "target": "b"}, "no column is left for the features"),
        ("a,b,x\n1,2,0\n1,3,0\n", {"id": "a", "target": "b"}, "the target changes within the sequence 1"),
        ("a,b\n,1\nu,2\n", {"target": "a"}, "column 'a' is empty in data row 1"),
    ],
)
def test_table_errors(write, text, options, message):
    path = write("table.csv", text)
    with pytest.raises(ValueError, match=message) as caught:
        load_sequences(path, **options)
    assert str(path) in str(caught.value) or "time column" in message


def test_unknown_kind_of_file(write):
    with pytest.raises(ValueError, match=r"unknown kind of file '\.xlsx'; expected one of \.csv"):
        load_sequences(write("table.xlsx", ""))


def test_missing_file(tmp_path):
    for name in ("a.csv", "a.npz", "a.ts"):
        with pytest.raises(FileNotFoundError):
            load_sequences(tmp_path / name)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "long.parquet"
    columns = {"who": ["u", "v", "u"], "a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "label": ["yes", "no", "yes"]}
    parquet.write_table(pyarrow.table(columns), path)
    data = load_sequences(path, id="who", target="label")
    assert [x.tolist() for x in data.X] == [[[1.0, 0.5], [3.0, 2.5]], [[2.0, 1.5]]]
    assert data.y.tolist() == ["yes", "no"]
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match=r"long\.parquet"):
        load_sequences(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match="reading parquet needs pyarrow"):
        load_sequences(tmp_path / "long.parquet")


# ------------------------------------------------------------------------------------------- npz


def test_npz_with_lengths(tmp_path):
    path = tmp_path / "data.npz"
    X = np.arange(12.0).reshape(2, 3, 2)
    X[1, 1:] = np.nan
    np.savez(path, X=X, lengths=[3, 1], y=np.array(["a", "b"]))
    data = load_sequences(path)
    assert [x.shape for x in data.X] == [(3, 2), (1, 2)]
    assert data.y.tolist() == ["a", "b"]


def test_npz_with_another_target(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, X=np.ones((2, 3)), speed=[0.5, 1.5])
    assert load_sequences(path, target="speed").y.tolist() == [0.5, 1.5]
    assert load_sequences(path).y is None
    with pytest.raises(ValueError, match="there is no array 'z'"):
        load_sequences(path, target="z")
    with pytest.raises(ValueError, match="one array of targets"):
        load_sequences(path, target=["y", "z"])


def test_npz_with_times_and_missing_values(tmp_path):
    path = tmp_path / "data.npz"
    X, gaps = np.array([[1.0, np.nan], [3.0, 4.0]]), np.array([[0.0, 2.0], [1.0, np.nan]])
    np.savez(path, X=X, lengths=[2, 1], gaps=gaps, short=gaps[:1])
    data = load_sequences(path, delta_t="gaps", allow_missing=True)
    np.testing.assert_array_equal(data.X[0], [[1.0], [np.nan]])
    assert [times.tolist() for times in data.delta_t] == [[0.0, 2.0], [1.0]]
    with pytest.raises(ValueError, match="NaN"):
        load_sequences(path)
    with pytest.raises(ValueError, match="there is no array 'times'"):
        load_sequences(path, delta_t="times", allow_missing=True)
    with pytest.raises(ValueError, match=r"data\.npz: .*lengths"):
        load_sequences(path, delta_t="short", allow_missing=True)


def test_npz_errors(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, Z=1)
    with pytest.raises(ValueError, match="there is no array 'X'"):
        load_sequences(path)
    np.savez(path, X=np.ones((2, 3)), y=[1])
    with pytest.raises(ValueError, match="'y' has 1 rows and X 2 sequences"):
        load_sequences(path)
    np.savez(path, X=np.array([np.ones(2), np.ones(3)], dtype=object))
    with pytest.raises(ValueError, match="holds Python objects, which are not read"):
        load_sequences(path)
    content = path.read_bytes()
    for broken in (b"", b"not a zip", content[:60], content[:100] + b"xxxxx" + content[105:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"data\.npz: "):
            load_sequences(path)


# ------------------------------------------------------------------------------------------- ts

TS = """# a comment
@problemName Toy
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true a b
@data
1,2,3:4,5,6:a

7,?:9,10:b
"""


def test_ts_with_labels(write):
    data = load_ts(write("toy.ts", TS))
    np.testing.assert_array_equal(data.X[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(data.X[1], [[7, 9], [np.nan, 10]])
    assert data.y.tolist() == ["a", "b"]
    assert len(data.feature_names) == 2


def test_ts_with_targets_through_load_sequences(write):
    text = (
        "@univariate true\n@equalLength true\n@seriesLength 2\n@targetLabel true\n@data\n1,2:0.5\n3,4:-1e3\n"
    )
    data = load_sequences(write("toy.ts", text))
    assert data.y.tolist() == [0.5, -1000.0]
    assert data.X[0].tolist() == [[1.0], [2.0]]


def test_ts_without_answers(write):
    data = load_ts(write("toy.ts", "@classLabel false\n@data\n1,2:3,4\n"))
    assert data.y is None
    assert data.X[0].tolist() == [[1.0, 3.0], [2.0, 4.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no @data line"),
        ("1,2,3\n", "line 1: expected a line that starts with '@'"),
        ("@data\n", "line 1: no case follows @data"),
        ("@classLabel\n@data\n1:a\n", "line 1: @classlabel needs true or false"),
        ("@dimensions two\n@data\n1\n", "@dimensions needs one whole number"),
        ("@dimensions ²\n@data\n1\n", "@dimensions needs one whole number"),
        ("@timeStamps true\n@data\n(0,1)\n", "time stamps"),
        ("@data\n(0,1),(1,2)\n", "line 2: values with time stamps"),
        ("@data\n1,2\n1:2\n", "line 3: expected 1 channels, found 2"),
        ("@data\n1,2:3\n", "must have one length"),
        ("@seriesLength 3\n@data\n1,2\n", "@seriesLength is 3, found 2"),
        ("@data\n1,x\n", "not numbers separated by commas: '1,x'"),
        ("@data\n1,\n", "not numbers"),
        ("@classLabel true a b\n@data\n1:c\n", "label 'c' is not among"),
        ("@classLabel true a b\n@data\na\n", "a label and no values"),
        ("@targetLabel true\n@data\n1:x\n", "line 3"),
    ],
)
def test_ts_errors(write, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_ts(write("toy.ts", text))
    assert "toy.ts, line " in str(caught.value)
