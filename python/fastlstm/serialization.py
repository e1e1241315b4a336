"""Model and checkpoint files: the safetensors format, written atomically and read with every byte checked.

A safetensors file is an 8-byte little-endian header length, a JSON header that maps each tensor name
to its dtype, shape and byte range, and the raw little-endian tensor data. Nothing in it can be
executed. The reader here needs numpy only, reports each defect with its byte offset, and never
allocates more than the size of the file.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm._metadata import Entry, Header, ModelFormatError, encode_json, parse_header
from fastlstm._version import __version__

__all__ = [
    "FORMAT_VERSION",
    "ModelFormatError",
    "from_bytes",
    "read_safetensors",
    "replace_file",
    "save_model",
    "to_bytes",
    "write_safetensors",
]

#: Version of the model layout inside the safetensors file; a reader refuses files with a larger one.
FORMAT_VERSION = 1

#: Longest header in bytes that is read or written.
MAX_HEADER = 100_000_000

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}

Tensors = dict[str, NDArray[Any]]
PathLike = str | os.PathLike[str]


# ------------------------------------------------------------------------------------------- writing


def write_safetensors(
    path: PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file so that `path` always holds a whole file.

    The bytes go to a temporary file in the same folder, which is synced to the disk and then renamed
    to `path`; a crash at any point leaves the previous file, or none, but never half of one.

    Parameters
    ----------
    path : str or path-like
        File to create or replace.
    tensors : mapping of str to array-like
        Arrays of float16/32/64, signed or unsigned integers, or bool, of any layout and byte order.
    metadata : mapping of str to str, optional
        Free text stored in the header.

    Raises
    ------
    TypeError
        If a name, a metadata value or the dtype of a tensor cannot be stored.
    OSError
        If the file cannot be written; the file that was there is then intact.

    Examples
    --------
    >>> import os, tempfile, numpy as np
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
    >>> write_safetensors(path, {"bias": np.arange(3.0)}, {"note": "three numbers"})
    >>> tensors, metadata = read_safetensors(path)
    >>> tensors["bias"], metadata["note"]
    (array([0., 1., 2.]), 'three numbers')
    """
    header, arrays = _layout(tensors, metadata)
    replace_file(path, (header, *map(_bytes_of, arrays)))


def replace_file(path: PathLike, parts: Iterable[bytes | memoryview]) -> None:
    """Create or replace a file, which is complete or untouched at any time, as `write_safetensors` says."""
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), path) from None
        raise
    _sync_folder(folder)


def to_bytes(tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of the file that `write_safetensors` would write."""
    header, arrays = _layout(tensors, metadata)
    return b"".join((header, *map(_bytes_of, arrays)))


def _layout(
    tensors: Mapping[str, Any], metadata: Mapping[str, str] | None
) -> tuple[bytes, list[NDArray[Any]]]:
    """Header bytes (length included, padded to 8) and the arrays in file order, widest items first."""
    arrays = {_checked_name(name): _storable(name, value) for name, value in tensors.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    entries: dict[str, Any] = {}
    if metadata:
        entries["__metadata__"] = _checked_metadata(metadata)
    begin = 0
    for name in order:
        array = arrays[name]
        end = begin + array.nbytes
        entries[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"the header would take {len(text)} bytes; at most {MAX_HEADER} are allowed")
    return struct.pack("<Q", len(text)) + text, [arrays[name] for name in order]


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"tensor names must be str, got {type(name).__name__}")
    if name == "__metadata__":
        raise ValueError("'__metadata__' is reserved and cannot name a tensor")
    return name


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must map str to str, got {key!r}: {type(value).__name__}")
    return dict(metadata)


def _storable(name: str, value: Any) -> NDArray[Any]:
    """`value` as a C-contiguous little-endian array of a dtype that the format has."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.dtype.newbyteorder("<") not in _NAMES:
        raise TypeError(f"tensor {name!r} has dtype {array.dtype}, which a safetensors file cannot hold")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _sync_folder(folder: str) -> None:
    """Make the rename itself durable, on systems where a folder can be opened and synced."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# ------------------------------------------------------------------------------------------- reading


def read_safetensors(path: PathLike, *, allow_nonfinite: bool = True) -> tuple[Tensors, dict[str, str]]:
    """Read a safetensors file, checking all of it.

    Parameters
    ----------
    path : str or path-like
        A regular file.
    allow_nonfinite : bool, default True
        Whether NaN and infinite values are accepted in floating-point tensors.

    Returns
    -------
    tensors : dict of str to ndarray
        Writable arrays in native byte order that share one buffer (the file may change afterwards).
    metadata : dict of str to str

    Raises
    ------
    ModelFormatError
        If the file breaks the format anywhere; the message names the defect and its byte offset.
    OSError
        If the file cannot be opened or read.
    """
    source = os.fsdecode(path)
    flags = (
        os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), source)
    handle = os.open(path, flags)
    with os.fdopen(handle, "rb", buffering=0) as file:
        information = os.fstat(file.fileno())
        if not stat.S_ISREG(information.st_mode):
            raise ModelFormatError("not a regular file", None, source)
        read = _exact_reader(file.readinto)
        return _read(read, information.st_size, allow_nonfinite, source)


def from_bytes(data: bytes, *, allow_nonfinite: bool = True) -> tuple[Tensors, dict[str, str]]:
    """Like `read_safetensors`, for the content of a file held in memory."""
    view = memoryview(data).cast("B")
    position = 0

    def readinto(buffer: memoryview) -> int:
        nonlocal position
        piece = view[position : position + len(buffer)]
        buffer[: len(piece)] = piece
        position += len(piece)
        return len(piece)

    return _read(_exact_reader(readinto), len(view), allow_nonfinite, None)


Reader = Callable[[int], NDArray[np.uint8]]


def _exact_reader(readinto: Callable[[memoryview], int | None]) -> Reader:
    """read(n) -> the next n bytes as a fresh uint8 array; a source that ends early is an error."""
    position = 0

    def read(count: int) -> NDArray[np.uint8]:
        nonlocal position
        buffer = np.empty(count, dtype=np.uint8)
        view = buffer.data
        done = 0
        while done < count:
            got = readinto(view[done:])
            if not got:
                raise ModelFormatError("the file became shorter while it was read", position + done)
            done += got
        position += count
        return buffer

    return read


def _read(
    read: Reader, size: int, allow_nonfinite: bool, source: str | None
) -> tuple[Tensors, dict[str, str]]:
    try:
        header = _read_header(read, size)
        _check_ranges(header, size - header.start)
        tensors = _tensors(header, read(size - header.start))
        if not allow_nonfinite:
            _check_finite(header, tensors)
        return tensors, header.metadata
    except ModelFormatError as error:
        raise ModelFormatError(error.reason, error.offset, source) from None


def _read_header(read: Reader, size: int) -> Header:
    if size < 8:
        raise ModelFormatError(
            f"{size} bytes are too few: a safetensors file starts with an 8-byte length", size
        )
    (length,) = struct.unpack("<Q", read(8).tobytes())
    if length > MAX_HEADER:
        raise ModelFormatError(
            f"not a safetensors file: the header length {length} is above the limit of {MAX_HEADER} bytes", 0
        )
    if length > size - 8:
        raise ModelFormatError(f"truncated: the header takes {length} bytes and {size - 8} are there", size)
    return parse_header(read(length).tobytes())


def _check_ranges(header: Header, available: int) -> None:
    """Every tensor has the bytes its dtype and shape need, and together they cover the data exactly once."""
    for name, entry in header.entries.items():
        defect = _entry_defect(entry)
        if defect:
            raise ModelFormatError(f"tensor {name!r} {defect}", header.offset(entry))
    expected, previous, start = 0, "the header", header.start
    for name, entry in sorted(header.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != expected:
            kind = "overlaps" if entry.begin < expected else "leaves a hole after"
            raise ModelFormatError(f"the data of tensor {name!r} {kind} {previous}", start + entry.begin)
        if entry.end > available:
            raise ModelFormatError(
                f"truncated: the data of tensor {name!r} end at byte {start + entry.end}", start + available
            )
        expected, previous = entry.end, f"tensor {name!r}"
    if expected != available:
        raise ModelFormatError(f"{available - expected} bytes follow the last tensor", start + expected)


def _entry_defect(entry: Entry) -> str | None:
    """What is wrong with one header entry taken by itself."""
    if entry.dtype not in _DTYPES:
        return f"has dtype {entry.dtype!r}; known are {', '.join(_DTYPES)}"
    extent = np.dtype(_DTYPES[entry.dtype]).itemsize  # as the size, but a zero does not hide an overflow
    for dimension in entry.shape:
        extent *= max(dimension, 1)
        if extent >= 2**63:
            return "has a size that overflows 64 bits"
    needed, given = 0 if 0 in entry.shape else extent, entry.end - entry.begin
    if given != needed:
        shape = list(entry.shape)
        return f"of dtype {entry.dtype} and shape {shape} needs {needed} bytes and data_offsets give {given}"
    return None


def _tensors(header: Header, data: NDArray[np.uint8]) -> Tensors:
    """Views of `data` (copies where a foreign file left a tensor misaligned), native byte order."""
    tensors: Tensors = {}
    for name, entry in header.entries.items():
        dtype = np.dtype(_DTYPES[entry.dtype])
        raw = data[entry.begin : entry.end]
        if entry.dtype == "BOOL" and raw.size and raw.max() > 1:
            first = header.start + entry.begin + int(np.argmax(raw > 1))
            raise ModelFormatError(f"tensor {name!r} holds a bool that is neither 0 nor 1", first)
        if raw.ctypes.data % dtype.alignment:
            raw = raw.copy()
        array = raw.view(dtype).reshape(entry.shape)
        tensors[name] = array.astype(dtype.newbyteorder("="), copy=False)
    return tensors


def _check_finite(header: Header, tensors: Tensors) -> None:
    for name, array in tensors.items():
        if array.dtype.kind != "f":
            continue
        finite = np.isfinite(array)
        if finite.all():
            continue
        flat = int(np.argmin(finite.reshape(-1)))
        index = tuple(map(int, np.unravel_index(flat, array.shape)))
        raise ModelFormatError(
            f"tensor {name!r} is {array[index]} at index {index}; allow_nonfinite=True accepts such weights",
            header.start + header.entries[name].begin + flat * array.itemsize,
        )


# ------------------------------------------------------------------------------------------- models


def save_model(
    path: PathLike,
    network_config: Mapping[str, Any],
    parameters: Mapping[str, Any],
    head_info: Mapping[str, Any],
    *,
    normalization: tuple[Any, Any] | None = None,
    missing: Any = None,
) -> None:
    """Write one fitted model: a safetensors file with the configuration in its metadata.

    Parameters
    ----------
    path : str or path-like
        File to create or replace (atomically, see `write_safetensors`).
    network_config : mapping
        ``SequenceNetwork.get_config()``: what is needed to build the network again.
    parameters : mapping of str to ndarray
        ``SequenceNetwork.parameters``.
    head_info : mapping
        How raw outputs become predictions, and what `Model.info` shows: strings, numbers, booleans,
        None, lists, dicts, and numpy arrays of labels (str, int, bool, float), which keep their dtype.
    normalization : (mean, scale), optional
        Two arrays of shape (n_features,): the network gets ``(x - mean) / scale``.
    missing : array of shape (n_features,), optional
        `fill` of :class:`fastlstm.missing.MissingValues`, for models that read NaN as not observed.
    """
    tensors = {f"network.{name}": value for name, value in parameters.items()}
    if normalization is not None:
        mean, scale = (np.asarray(part, dtype=np.float64) for part in normalization)
        tensors["normalization.mean"], tensors["normalization.scale"] = mean, scale
    if missing is not None:
        tensors["missing.fill"] = np.asarray(missing, dtype=np.float64)
    metadata = {
        "format": "fastlstm",
        "format_version": str(FORMAT_VERSION),
        "fastlstm_version": __version__,
        "network": encode_json(network_config),
        "head": encode_json(head_info),
    }
    write_safetensors(path, tensors, metadata)
