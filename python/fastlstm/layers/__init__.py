"""Trainable layers on the C kernels.

A layer keeps its parameters in one flat array with read-only views under PyTorch's names, so that an
optimiser makes one pass over all of them and weights compare with PyTorch's directly.
"""

from fastlstm.layers.attention import Attention
from fastlstm.layers.conv_forecaster import ConvForecaster
from fastlstm.layers.convlstm import ConvLSTM
from fastlstm.layers.dense import Dense
from fastlstm.layers.dropout import Dropout
from fastlstm.layers.embedding import Embedding
from fastlstm.layers.highway import Highway, Residual
from fastlstm.layers.initializers import chrono, forget_bias, orthogonal
from fastlstm.layers.recurrent import GRU, LSTM, RNN
from fastlstm.layers.stack import Stack

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Attention",
    "ConvForecaster",
    "ConvLSTM",
    "Dense",
    "Dropout",
    "Embedding",
    "Highway",
    "Residual",
    "Stack",
    "chrono",
    "forget_bias",
    "orthogonal",
]
