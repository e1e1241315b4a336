"""What all Python tests share: import path, the `long` marker, hypothesis settings, threads restored."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).resolve().parent
for folder in (HERE,):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

settings.register_profile("fastlstm", deadline=None, max_examples=20, derandomize=True)
settings.register_profile("fastlstm-long", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("FASTLSTM_HYPOTHESIS_PROFILE", "fastlstm"))


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Give the number of threads back as it was found."""
    import fastlstm

    before = fastlstm.get_num_threads()
    yield
    fastlstm.set_num_threads(before)
