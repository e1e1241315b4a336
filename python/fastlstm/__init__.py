"""fastlstm: LSTM networks trained and served on CPUs.

``import fastlstm`` needs numpy only. Estimators (which need scikit-learn) and every other
public name are imported on first use.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any

from fastlstm._version import __version__

if TYPE_CHECKING:  # what __getattr__ gives, for those who read types
    from fastlstm.config import get_num_threads as get_num_threads
    from fastlstm.config import set_num_threads as set_num_threads
    from fastlstm.config import show_config as show_config
    from fastlstm.estimators import LSTMClassifier as LSTMClassifier
    from fastlstm.estimators import LSTMRegressor as LSTMRegressor
    from fastlstm.model import Model as Model
    from fastlstm.model import load as load
    from fastlstm.sequences import Sequences as Sequences
    from fastlstm.sequences import as_sequences as as_sequences
    from fastlstm.serialization import ModelFormatError as ModelFormatError

_EXPORTS = {
    "LSTMClassifier": "fastlstm.estimators",
    "LSTMRegressor": "fastlstm.estimators",
    "Sequences": "fastlstm.sequences",
    "as_sequences": "fastlstm.sequences",
    "Model": "fastlstm.model",
    "load": "fastlstm.model",
    "ModelFormatError": "fastlstm.serialization",
    "set_num_threads": "fastlstm.config",
    "get_num_threads": "fastlstm.config",
    "show_config": "fastlstm.config",
}
_SUBMODULES = frozenset(
    (
        "callbacks",
        "classics",
        "datasets",
        "diagnostics",
        "decoding",
        "estimators",
        "interop",
        "layers",
        "losses",
        "network",
        "optimizers",
        "plotting",
        "schedules",
        "sequences",
        "serialization",
        "streaming",
        "trainer",
    )
)

__all__ = ["__version__", *_EXPORTS]


_threads = os.environ.get("FASTLSTM_NUM_THREADS", "")
if _threads and not (_threads.isascii() and _threads.isdigit() and int(_threads[:5]) <= 1024):
    warnings.warn(
        f"FASTLSTM_NUM_THREADS is {_threads[:20]!r}, not a whole number from 0 to 1024: it is ignored",
        RuntimeWarning,
        stacklevel=2,
    )
del _threads


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"fastlstm.{name}")
    raise AttributeError(f"module 'fastlstm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_SUBMODULES})
