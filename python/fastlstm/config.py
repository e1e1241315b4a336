"""Threads, instruction set, and what is installed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

import numpy as np

from fastlstm import _core
from fastlstm._version import __version__

_PACKAGES = ("numpy", "scikit-learn", "matplotlib", "pandas", "pyarrow", "rich")


def set_num_threads(n: int | None) -> None:
    """Set how many threads a call may use; None or 0 goes back to automatic.

    Automatic is FASTLSTM_NUM_THREADS if set, else OpenMP's maximum (which OMP_NUM_THREADS and threadpoolctl
    change) bounded by the affinity mask and the CPU quotas of control groups. Small work uses one thread whatever
    is set here; so does work of some milliseconds, and a step of a stream, when no call came within the last
    millisecond, since it may take longer to wake the threads than to do without them. Results never depend on it.

    Raises
    ------
    ValueError
        `n` is negative or not an integer.
    """
    if n is None:
        n = 0
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
        raise ValueError(f"n must be None or an integer of at least 0, got {n!r}")
    _core.set_num_threads(min(int(n), 1024))


def get_num_threads() -> int:
    """Threads a call may use now."""
    return int(_core.get_num_threads())


def config() -> dict[str, Any]:
    """What :func:`show_config` prints, as a dict."""
    core = _core.cpu_info()
    return {
        "fastlstm": __version__,
        "isa": core["isa"],
        "isa_available": [name for name, here in core["isa_available"].items() if here],
        "amx": core["amx"],
        "openmp": core["openmp"],
        "threads": get_num_threads(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version_of(name) for name in _PACKAGES},
    }


def show_config() -> None:
    """Print versions, processor, instruction set and threads."""
    for key, value in config().items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {found or '-'}" for name, found in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        sys.stdout.write(f"{key:14} {value}\n")


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
