"""A small training problem that the trainer's and the checkpoints' tests share."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm import as_sequences
from fastlstm.layers import LSTM
from fastlstm.network import SequenceNetwork
from fastlstm.trainer import Trainer


def make_data(n: int = 60, seed: int = 0, dtype: str = "float32"):
    """Ragged sequences and whether the mean of their first feature is positive."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((rng.integers(2, 9), 2)) for _ in range(n)]
    labels = np.array([int(array[:, 0].mean() > 0) for array in arrays])
    return as_sequences(arrays, dtype=dtype), labels


def make_network(dtype: str = "float32", seed: int = 0, **options: Any) -> SequenceNetwork:
    layer = {key: options.pop(key) for key in ("dropout", "bidirectional", "weight_noise") if key in options}
    encoder = LSTM(2, 6, options.pop("num_layers", 1), dtype=dtype, random_state=seed, **layer)
    return SequenceNetwork(encoder, options.pop("n_outputs", 2), random_state=seed + 1, **options)


def accuracy(outputs, targets, weights) -> float:
    return float(np.average(outputs.argmax(axis=1) == targets, weights=weights))


def make_trainer(**options: Any) -> Trainer:
    options = {"learning_rate_init": 0.01, "batch_size": 8, "max_iter": 4, "random_state": 0, **options}
    return Trainer(options.pop("optimizer", "adam"), **options)


def train(network=None, data=None, weights=None, validation=None, **options: Any):
    """Trained network and history."""
    network = make_network() if network is None else network
    seqs, labels = make_data() if data is None else data
    trainer = make_trainer(**options)
    history = trainer.fit(network, seqs, labels, weights, "softmax_cross_entropy", validation=validation)
    return network, history
