"""Other libraries, each behind the same two functions.

An adapter is a module with ``NAME``, ``version() -> str`` and
``contenders(problem, threads) -> list[fastlstm.benchmark.Contender]``: everything the library can
offer for that case at float32, with its best settings and the number of threads given; an empty
list where it cannot do the case. Building models and copying inputs happens outside the clock.
"""

from __future__ import annotations

import importlib
from types import ModuleType

ADAPTERS = ("torch_peer", "onnxruntime_peer", "openvino_peer")


def load_peers(wanted: list[str] | None = None) -> tuple[list[ModuleType], dict[str, str]]:
    """Adapters whose library is installed, and for the others the reason why not."""
    found, missing = [], {}
    for module_name in ADAPTERS:
        name = module_name.removesuffix("_peer")
        if wanted is not None and name not in wanted:
            continue
        try:
            found.append(importlib.import_module(f"peers.{module_name}"))
        except ImportError as error:
            missing[name] = str(error)
    return found, missing
