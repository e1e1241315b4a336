"""Other libraries, each behind the same two functions.

An adapter is a module with ``NAME``, ``version() -> str`` and
``contenders(problem, threads) -> list[fastlstm.benchmark.Contender]``: everything the library can
offer for that case in the case's class of accuracy, with its best settings and the number of threads
given; an empty list where it cannot do the case. Building models and copying inputs happens outside the
clock.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

ADAPTERS = ("torch_peer", "onnxruntime_peer", "openvino_peer", "keras_peer", "jax_peer")
NAMES = tuple(name.removesuffix("_peer") for name in ADAPTERS)

# What the peers compute in beside our precisions: nobody has three bfloat16 products.
PEER_PRECISION = {"float32": "float32", "high": "bfloat16", "bfloat16": "bfloat16", "int8": "int8"}


def fixed_threads() -> int:
    """Threads of the libraries that take their number when a process starts."""
    return int(os.environ.get("PJRT_NPROC") or len(os.sched_getaffinity(0)))


def load_peers(wanted: list[str] | None = None) -> tuple[list[ModuleType], dict[str, str]]:
    """Adapters whose library is installed, and for the others the reason why not."""
    found, missing = [], {}
    for name, module_name in zip(NAMES, ADAPTERS, strict=True):
        if wanted is not None and name not in wanted:
            continue
        try:
            found.append(importlib.import_module(f"peers.{module_name}"))
        except ImportError as error:
            missing[name] = str(error)
    return found, missing
