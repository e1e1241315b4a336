"""Layers of other libraries as layers of this one, and back, weights included."""

from fastlstm.interop._keras import from_keras, from_keras_weights
from fastlstm.interop._torch import from_torch, to_torch

__all__ = ["from_keras", "from_keras_weights", "from_torch", "to_torch"]
