"""Checkpoints of a training, from which it goes on exactly where it was.

A checkpoint is one safetensors file: the weights, the best weights so far and the optimizer's arrays as
tensors, and the rest of the state as JSON in its metadata. It is written to a temporary file, synced and
renamed, so the file on disk is always a whole one. Its name carries a fingerprint of configuration and data:
one folder serves many trainings, and a changed configuration never meets a foreign checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastlstm.serialization import ModelFormatError, read_safetensors, write_safetensors

if TYPE_CHECKING:
    from fastlstm.network import SequenceNetwork
    from fastlstm.optimizers import Optimizer
    from fastlstm.schedules import Schedule

try:
    import fcntl
except ImportError:  # no advisory locks on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["Checkpoint", "fingerprint", "pack", "unpack"]

Array = NDArray[Any]

_FORMAT = "fastlstm-checkpoint"
_VERSION = 1


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """Digest of a configuration: 16 hexadecimal digits, the same in every process.

    Examples
    --------
    >>> from fastlstm.trainer.checkpoint import fingerprint
    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(configuration, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pack(
    network: SequenceNetwork, best: Array | None, optimizer: Optimizer, schedule: Schedule
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors (views, not copies) and JSON-able entries for :func:`unpack`; `best` is an arena or None."""
    tensors = {f"weights.{name}": view for name, view in network.named_views(network.flat).items()}
    if best is not None:
        tensors |= {f"best.{name}": view for name, view in network.named_views(best).items()}
    state = optimizer.state_dict()
    tensors |= {f"optimizer.{i}": slot for i, slot in enumerate(state.pop("slots"))}
    return tensors, {"optimizer": state, "schedule": schedule.state_dict()}


def unpack(
    tensors: Mapping[str, Array],
    entries: Mapping[str, Any],
    network: SequenceNetwork,
    optimizer: Optimizer,
    schedule: Schedule,
) -> Array | None:
    """Put what :func:`pack` gave into `network`, `optimizer` and `schedule`; returns the best weights."""

    def named(prefix: str) -> dict[str, Array]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    network.load_parameters(named("weights."))
    slots = named("optimizer.")
    arrays = [slots[str(i)] for i in range(len(slots))]
    optimizer.load_state_dict({**entries["optimizer"], "slots": arrays})
    schedule.load_state_dict(entries["schedule"])
    best = named("best.")
    if not best:
        return None
    arena = np.zeros_like(network.flat)
    for name, view in network.named_views(arena).items():
        view[...] = best[name]
    return arena


class Checkpoint:
    """The checkpoint file of one training, held by one process at a time.

    Parameters
    ----------
    directory : str or path
        Made if it is not there.
    key : str
        Fingerprint of the training; part of the file's name.

    Attributes
    ----------
    path : pathlib.Path
    """

    def __init__(self, directory: str | os.PathLike[str], key: str) -> None:
        self.directory = Path(directory)
        self.path = self.directory / f"checkpoint-{key}.safetensors"
        self._lock_path = self.directory / f".checkpoint-{key}.lock"
        self._lock: int | None = None

    def __enter__(self) -> Checkpoint:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._acquire()
        for leftover in self.directory.glob(f".{self.path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                leftover.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _acquire(self) -> None:
        """Lock the checkpoint; the system drops the lock when the process ends, however it ends."""
        if fcntl is None:
            return
        while self._lock is None:
            handle = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise RuntimeError(
                    f"another training is using the checkpoint {self.path}: wait for it to end, or "
                    f"give this one another checkpoint_dir"
                ) from None
            except OSError:  # a file system without locks
                os.close(handle)
                return
            if self._still_names(handle):
                self._lock = handle
            else:
                os.close(handle)

    def _still_names(self, handle: int) -> bool:
        """Whether the lock file is still the one that was opened, not removed by its last holder."""
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self._lock_path))
        except FileNotFoundError:
            return False

    def _release(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._lock_path)
            os.close(self._lock)
            self._lock = None

    def save(self, tensors: Mapping[str, Array], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint, in one step as seen from outside.

        Raises
        ------
        OSError
            If it cannot be written; the earlier checkpoint is intact then.
        """
        metadata = {"format": _FORMAT, "version": str(_VERSION), "state": json.dumps(state)}
        write_safetensors(self.path, dict(tensors), metadata)

    def load(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """Tensors and state of the checkpoint; None where there is none.

        Raises
        ------
        ModelFormatError
            If the file is not a checkpoint that this version can read.
        """
        if not self.path.exists():
            return None
        tensors, metadata = read_safetensors(self.path)
        if metadata.get("format") != _FORMAT or metadata.get("version") != str(_VERSION):
            raise ModelFormatError(
                f"{self.path} is not a checkpoint of version {_VERSION}; move it away to start afresh"
            )
        return tensors, json.loads(metadata["state"])
