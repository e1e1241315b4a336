"""Layers of other libraries as layers of this one, and back, weights included; models as ONNX files."""

from fastlstm.interop._keras import from_keras, from_keras_weights
from fastlstm.interop._onnx_export import to_onnx
from fastlstm.interop._onnx_import import from_onnx
from fastlstm.interop._torch import from_torch, to_torch

__all__ = ["from_keras", "from_keras_weights", "from_onnx", "from_torch", "to_onnx", "to_torch"]
