"""The safetensors writer and reader: what goes in comes out, and no damaged file gets through."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlstm import serialization
from fastlstm._metadata import decode_json, encode_json
from fastlstm.serialization import (
    ModelFormatError,
    from_bytes,
    read_safetensors,
    to_bytes,
    write_safetensors,
)

TENSORS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([1.5, -2.5]),
    "mask": np.array([True, False, True]),
    "steps": np.array(7, dtype=np.int64),
    "empty": np.empty((0, 4), dtype=np.float16),
}


def file_with(header, data=b"", *, length=None):
    """The bytes of a file with the given header (text, bytes or object) and data."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype="U8", shape=(2,), begin=0, end=2):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def defect_of(content):
    """The error that reading `content` raises; its message must carry the offset."""
    with pytest.raises(ModelFormatError) as caught:
        from_bytes(content)
    error = caught.value
    assert error.offset is not None
    assert 0 <= error.offset <= len(content)
    assert f"(at byte {error.offset})" in str(error)
    return error


# --------------------------------------------------------------------------------------- round trips


def test_round_trip_through_a_file(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS, {"note": 'é "quoted" \n'})
    tensors, metadata = read_safetensors(path)
    assert metadata == {"note": 'é "quoted" \n'}
    assert set(tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert tensors[name].shape == value.shape
        np.testing.assert_array_equal(tensors[name], value)
        assert tensors[name].flags.writeable
        assert tensors[name].flags.aligned


def test_header_is_padded_to_eight_bytes():
    content = to_bytes(TENSORS)
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0


def test_no_tensors():
    assert from_bytes(to_bytes({})) == ({}, {})


@pytest.mark.parametrize(
    "value",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::-2],
        np.arange(5, dtype=">f4"),
        np.broadcast_to(np.float32(3), (2, 2)),
        [1.0, 2.0],
    ],
    ids=["transposed", "reversed", "big-endian", "broadcast", "list"],
)
def test_any_layout_is_stored(value):
    tensors, _ = from_bytes(to_bytes({"x": value}))
    np.testing.assert_array_equal(tensors["x"], value)
    assert tensors["x"].dtype.isnative


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=5,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=10), max_size=3),
)
def test_any_names_dtypes_and_shapes_come_back(specification, metadata):
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.integers(0, 2, size=shape).astype(dtype) for name, (dtype, shape) in specification.items()
    }
    back, found = from_bytes(to_bytes(tensors, metadata))
    assert found == metadata
    assert set(back) == set(tensors)
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value)


def test_the_safetensors_package_reads_our_files(tmp_path):
    package = pytest.importorskip("safetensors")
    numpy_side = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "ours.safetensors"
    write_safetensors(path, TENSORS, {"note": "one"})
    theirs = numpy_side.load_file(path)
    assert set(theirs) == set(TENSORS)
    for name, value in TENSORS.items():
        assert theirs[name].dtype == value.dtype
        np.testing.assert_array_equal(theirs[name], value)
    with package.safe_open(path, framework="np") as file:
        assert file.metadata() == {"note": "one"}


def test_we_read_the_files_of_the_safetensors_package(tmp_path):
    numpy_side = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "theirs.safetensors"
    numpy_side.save_file(TENSORS, path, metadata={"note": "two"})
    tensors, metadata = read_safetensors(path)
    assert metadata == {"note": "two"}
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_a_misaligned_tensor_is_copied():
    header = {"a": entry("U8", (1,), 0, 1), "b": entry("F64", (1,), 1, 9)}
    tensors, _ = from_bytes(file_with(header, b"\x01" + struct.pack("<d", 2.5)))
    assert tensors["b"].flags.aligned
    assert tensors["b"][0] == 2.5


def test_later_changes_of_the_file_do_not_reach_the_arrays(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"x": np.ones(4)})
    tensors, _ = read_safetensors(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    np.testing.assert_array_equal(tensors["x"], np.ones(4))


# ------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([1j]), np.array([None])])
def test_writer_refuses_other_dtypes(value):
    with pytest.raises(TypeError, match="tensor 'x' has dtype"):
        to_bytes({"x": value})


def test_writer_refuses_wrong_names_and_metadata():
    with pytest.raises(TypeError, match="tensor names must be str, got int"):
        to_bytes({1: np.ones(1)})
    with pytest.raises(ValueError, match="reserved"):
        to_bytes({"__metadata__": np.ones(1)})
    with pytest.raises(TypeError, match="metadata must map str to str"):
        to_bytes({}, {"epoch": 3})


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"x": np.ones(3)})
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serialization.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_safetensors(path, {"x": np.zeros(3)})
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(serialization.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "model.safetensors", {"x": np.ones(3)})
    assert os.listdir(tmp_path) == []


def test_the_file_and_then_its_folder_are_synced(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def record_sync(handle):
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def record_replace(*arguments):
        calls.append("rename")
        replace(*arguments)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    monkeypatch.setattr(serialization.os, "fsync", record_sync)
    monkeypatch.setattr(serialization.os, "replace", record_replace)
    write_safetensors(tmp_path / "model.safetensors", {"x": np.ones(3)})
    assert calls == ["file", "rename", "folder"]


def test_a_missing_folder_is_reported_with_the_path_asked_for(tmp_path):
    path = tmp_path / "none" / "model.safetensors"
    with pytest.raises(FileNotFoundError) as caught:
        write_safetensors(path, {})
    assert caught.value.filename == str(path)


# --------------------------------------------------------------------------------------- malformed files


def test_truncation_at_every_byte():
    content = to_bytes(TENSORS, {"note": "é"})
    for size in range(len(content)):
        defect_of(content[:size])


def test_every_single_byte_change_is_read_or_refused():
    content = bytearray(to_bytes({"a": np.ones(2, dtype=np.float32), "b": np.array([True])}, {"k": "v"}))
    for position in range(len(content)):
        for value in (0, 0x22, 0x7B, 0x80, 0xFF):
            changed = bytes(content[:position]) + bytes([value]) + bytes(content[position + 1 :])
            try:
                from_bytes(changed)
            except ModelFormatError as error:
                assert error.offset is not None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.binary(max_size=16))
def test_random_headers_never_raise_anything_else(header, data):
    try:
        from_bytes(file_with(header, data))
    except ModelFormatError:
        return


def test_empty_file():
    assert "0 bytes are too few" in str(defect_of(b""))


def test_header_length_of_two_to_the_63():
    error = defect_of(file_with("{}", length=2**63))
    assert "above the limit" in str(error)
    assert error.offset == 0


def test_header_above_100_megabytes():
    assert "above the limit" in str(defect_of(file_with("{}", length=100_000_001)))


def test_header_longer_than_the_file():
    assert "truncated" in str(defect_of(file_with("{}", length=3)))


def test_header_that_does_not_start_with_a_brace():
    error = defect_of(file_with(" {}"))
    assert "must start with '{'" in str(error)
    assert error.offset == 8


def test_pickle_is_not_a_model_and_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    content = pickle.dumps(Payload())
    with pytest.raises(ModelFormatError):
        from_bytes(content)
    assert not (tmp_path / "executed").exists()


def test_bad_utf8():
    error = defect_of(file_with(b'{"\xff": 1}'))
    assert "not valid UTF-8" in str(error)
    assert error.offset == 8 + 2


def test_offset_counts_bytes_not_characters():
    error = defect_of(file_with('{"é": 1}'))
    assert error.offset == 8 + len('{"é": '.encode())


def test_duplicate_tensor_names():
    header = '{"a": ENTRY, "a": ENTRY}'.replace("ENTRY", json.dumps(entry()))
    error = defect_of(file_with(header, b"xy"))
    assert "duplicate key 'a'" in str(error)
    assert error.offset == 8 + header.rindex('"a"')


def test_duplicate_keys_in_an_entry():
    header = '{"a": {"dtype": "U8", "dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}'
    assert "duplicate key 'dtype'" in str(defect_of(file_with(header, b"xy")))


def test_duplicate_metadata():
    assert "duplicate key 'k'" in str(defect_of(file_with('{"__metadata__": {"k": "1", "k": "2"}}')))


def test_escaped_duplicate_is_seen():
    header = '{"a": ENTRY, "\\u0061": ENTRY}'.replace("ENTRY", json.dumps(entry()))
    assert "duplicate key 'a'" in str(defect_of(file_with(header, b"xy")))


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json(opening):
    defect_of(file_with('{"a":' + opening * 200_000))


def test_text_after_the_json():
    error = defect_of(file_with('{} {"a": 1}'))
    assert "unexpected text after" in str(error)


def test_unfinished_json():
    assert "the end of the header" in str(defect_of(file_with('{"a": {"dtype": "U8"')))


@pytest.mark.parametrize(
    "text", ["{'a': 1}", '{"a" 1}', '{"a": 1,}', '{"a', '{"\n": 1}', '{"\\x": 1}', "{,}"]
)
def test_bad_json(text):
    defect_of(file_with(text))


@pytest.mark.parametrize("key", ["dtype", "shape", "data_offsets"])
def test_missing_key(key):
    broken = entry()
    del broken[key]
    assert f"has no '{key}'" in str(defect_of(file_with({"a": broken}, b"xy")))


def test_unknown_key_in_an_entry():
    assert "unknown key 'run'" in str(defect_of(file_with({"a": {**entry(), "run": "x"}}, b"xy")))


@pytest.mark.parametrize(
    "shape", ["2", '["2"]', "[2.0]", "[2e0]", "[-2]", "[true]", "[null]", "[02]", "[1e999]"]
)
def test_shape_that_is_not_whole_numbers(shape):
    header = f'{{"a": {{"dtype": "U8", "shape": {shape}, "data_offsets": [0, 2]}}}}'
    defect_of(file_with(header, b"xy"))


def test_number_above_64_bits():
    header = '{"a": {"dtype": "U8", "shape": [9223372036854775808], "data_offsets": [0, 2]}}'
    assert "2**63 - 1" in str(defect_of(file_with(header, b"xy")))


def test_number_of_a_million_digits():
    header = '{"a": {"dtype": "U8", "shape": [' + "9" * 1_000_000 + '], "data_offsets": [0, 2]}}'
    assert "2**63 - 1" in str(defect_of(file_with(header, b"xy")))


def test_shape_whose_product_overflows():
    assert "overflows 64 bits" in str(defect_of(file_with({"a": entry("F64", [2**31, 2**31], 0, 0)})))
    assert "overflows 64 bits" in str(defect_of(file_with({"a": entry("F64", [0, 2**62], 0, 0)})))


def test_too_many_dimensions():
    assert "more than 32 numbers" in str(defect_of(file_with({"a": entry("U8", [1] * 33, 0, 1)}, b"x")))


def test_unknown_dtype():
    assert "has dtype 'BF16'; known are" in str(defect_of(file_with({"a": entry("BF16", [1])}, b"xy")))


def test_shape_and_bytes_disagree():
    error = defect_of(file_with({"a": entry("F32", [2], 0, 2)}, b"xy"))
    assert "needs 8 bytes and data_offsets give 2" in str(error)


def test_offsets_that_run_backwards():
    assert "data_offsets give -2" in str(defect_of(file_with({"a": entry(begin=2, end=0)}, b"xy")))


def test_three_offsets():
    broken = {**entry(), "data_offsets": [0, 1, 2]}
    assert "must be two numbers" in str(defect_of(file_with({"a": broken}, b"xy")))


def test_overlapping_tensors():
    content = file_with({"a": entry(), "b": entry(begin=1, end=3)}, b"xyz")
    error = defect_of(content)
    assert "tensor 'b' overlaps tensor 'a'" in str(error)
    assert error.offset == len(content) - 2


def test_two_tensors_on_the_same_bytes():
    assert "overlaps" in str(defect_of(file_with({"a": entry(), "b": entry()}, b"xy")))


def test_hole_between_tensors():
    header = {"a": entry(), "b": entry(begin=3, end=5)}
    assert "tensor 'b' leaves a hole after tensor 'a'" in str(defect_of(file_with(header, b"xyzuv")))


def test_hole_before_the_first_tensor():
    assert "leaves a hole after the header" in str(defect_of(file_with({"a": entry(begin=1, end=3)}, b"xyz")))


def test_data_beyond_the_file():
    content = file_with({"a": entry()}, b"x")
    error = defect_of(content)
    assert "truncated" in str(error)
    assert error.offset == len(content)


def test_trailing_bytes():
    content = file_with({"a": entry()}, b"xyz")
    error = defect_of(content)
    assert "1 bytes follow the last tensor" in str(error)
    assert error.offset == len(content) - 1


def test_bool_that_is_neither_0_nor_1():
    content = file_with({"a": entry("BOOL", [2])}, b"\x01\x02")
    error = defect_of(content)
    assert "neither 0 nor 1" in str(error)
    assert error.offset == len(content) - 1


def test_metadata_that_is_not_text():
    assert "metadata 'k' must be a string" in str(defect_of(file_with('{"__metadata__": {"k": 1}}')))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nonfinite_values_on_request(value, dtype):
    array = np.zeros((2, 3), dtype=dtype)
    array[1, 2] = value
    content = to_bytes({"w": array, "n": np.arange(4)})
    np.testing.assert_array_equal(from_bytes(content)[0]["w"], array)
    with pytest.raises(ModelFormatError, match=r"at index \(1, 2\)"):
        from_bytes(content, allow_nonfinite=False)


def test_not_a_regular_file(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ModelFormatError, match="not a regular file"):
        read_safetensors(fifo)
    with pytest.raises(ModelFormatError, match="not a regular file"):
        read_safetensors("/dev/zero")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "none.safetensors")


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"x": np.ones(100)})
    real = os.fstat

    class Larger:
        def __init__(self, handle):
            self.st_mode = real(handle).st_mode
            self.st_size = real(handle).st_size

    def shrink(handle):
        status = Larger(handle)
        os.truncate(path, 100)
        return status

    monkeypatch.setattr(serialization.os, "fstat", shrink)
    with pytest.raises(ModelFormatError, match="shorter while it was read"):
        read_safetensors(path)


def test_error_names_the_file_and_can_be_pickled(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ModelFormatError, match=r"broken\.safetensors: 0 bytes") as caught:
        read_safetensors(path)
    assert isinstance(caught.value, ValueError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.offset == 0


# ------------------------------------------------------------------------------------- configuration text


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "long label", "é\U0001f600"]),
        np.array(["", ""]),
        np.array(["a", "b"], dtype="<U9"),
        np.array([], dtype="<U3"),
        np.array([3, -1], dtype=np.int8),
        np.array([2**63 - 1, -(2**63)]),
        np.array([2**64 - 1], dtype=np.uint64),
        np.array([True, False]),
        np.array([0.1, 1e300, -0.0]),
        np.array([0.1, 3.4e38], dtype=np.float32),
        np.array([0.1], dtype=np.float16),
        np.array(["x", "y"], dtype=object),
        np.array([1, "y", 2.5, True], dtype=object),
        np.array([[1, 2], [3, 4]]),
        np.array([], dtype=np.int64),
        np.array([1.0, 2.0], dtype=">f8"),
    ],
    ids=lambda labels: f"{labels.dtype}-{labels.size}",
)
def test_label_arrays_survive_exactly(labels):
    back = decode_json(encode_json({"classes": labels}))["classes"]
    assert back.dtype == labels.dtype.newbyteorder("=")
    assert back.shape == labels.shape
    assert back.tolist() == labels.tolist()
    assert [type(item) for item in back.flat] == [type(item) for item in labels.astype(back.dtype).flat]


def test_plain_data_survives():
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": np.float64(0.1), "d": (1, 2)}}
    assert decode_json(encode_json(value)) == {"a": [1, 2.5, None, True, "é"], "b": {"c": 0.1, "d": [1, 2]}}


@pytest.mark.parametrize("value", [np.array([1j]), np.array([None]), np.array(["2020"], dtype="M8[D]")])
def test_other_label_dtypes_are_refused(value):
    with pytest.raises(TypeError, match="cannot be stored in a model file"):
        encode_json(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        "[" * 100 + "]" * 100,
        "[" * 1_000_000,
        "1" * 10_000,
        '{"__array__": "<i8", "shape": [1]}',
        '{"__array__": "O", "shape": [1], "values": [1]}',
        '{"__array__": "<U99999999", "shape": [1], "values": ["a"]}',
        '{"__array__": "<i8", "shape": [2], "values": [1]}',
        '{"__array__": "<i8", "shape": [-1], "values": [1]}',
        '{"__array__": "<i8", "shape": ["1"], "values": [1]}',
        '{"__array__": "|i1", "shape": [1], "values": [1000]}',
        '{"__array__": "<i8", "shape": [1], "values": ["1"]}',
        '{"__array__": "|b1", "shape": [1], "values": [2]}',
        '{"__array__": "object", "shape": [1], "values": [[1]]}',
    ],
)
def test_bad_configuration_text(text):
    with pytest.raises(ModelFormatError, match="configuration"):
        decode_json(text)
