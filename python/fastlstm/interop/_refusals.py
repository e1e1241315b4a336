"""Options of layers that another library does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastlstm.layers import LSTM


def refuse_options(layer: LSTM, without: Mapping[str, Any], whose: str) -> None:
    """Raise ValueError if an option is in use that `whose` layers lack; `without` has the value that leaves it out.

    A pair of such values leaves it out as well.
    """
    for name, off in without.items():
        value = getattr(layer, name)
        if value not in (off, (off, off)):
            raise ValueError(f"{whose} compute no {name}; it must be {off!r}, got {value!r}")
