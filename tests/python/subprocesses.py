"""Run a piece of Python in a fresh interpreter with the library importable and an environment set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run_python(
    code: str, *arguments: str, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess:
    """`code` with this process's import path; environment values override, "" removes."""
    paths = [str(HERE), *(path for path in sys.path if path)]
    env = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
    env = {name: value for name, value in env.items() if value}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def output_of(code: str, *arguments: str, timeout: float = 120, **environment: str) -> str:
    """Standard output of `run_python`, which must succeed."""
    done = run_python(code, *arguments, timeout=timeout, **environment)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()
