"""The compiled binding. It takes buffers and handles, and is for the package alone: its names have no types."""

from typing import Any

def __getattr__(name: str) -> Any: ...
