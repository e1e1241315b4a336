"""Table of learned vectors, one per token."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm.layers._parameters import Parameterized, as_dtype, as_generator, as_size


class Embedding(Parameterized):
    """Look up a row of `weight` for each token.

    Parameters
    ----------
    num_embeddings : int
        Number of tokens; tokens are 0 to num_embeddings - 1.
    embedding_dim : int
        Length of a vector.
    dtype : {"float32", "float64"}, default="float32"
    random_state : None, int, numpy Generator or RandomState, default=None
        Initialises from a standard normal distribution, as PyTorch does.

    Examples
    --------
    >>> from fastlstm.layers import Embedding
    >>> Embedding(10, 4, random_state=0)([[1, 2, 3]]).shape
    (1, 3, 4)
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype: Any = "float32", random_state: Any = None
    ) -> None:
        self.num_embeddings = as_size(num_embeddings, "num_embeddings")
        self.embedding_dim = as_size(embedding_dim, "embedding_dim")
        self.dtype = as_dtype(dtype)
        self.parameter_shapes = [("weight", (self.num_embeddings, self.embedding_dim))]
        self._allocate(as_generator(random_state).standard_normal(self.n_parameters))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "dtype": self.dtype.name,
        }

    def forward(self, tokens: Any) -> np.ndarray:
        """Vectors (..., embedding_dim) of integer tokens of any shape."""
        return self._views(self._flat)["weight"][self._check(tokens)]

    __call__ = forward

    def backward(self, tokens: Any, dy: Any) -> None:
        """Write the gradient for dy (..., embedding_dim) to :attr:`flat_grads`."""
        tokens = self._check(tokens)
        dy = np.asarray(dy, self.dtype)
        if dy.shape != (*tokens.shape, self.embedding_dim):
            raise ValueError(f"dy has shape {dy.shape}; expected {(*tokens.shape, self.embedding_dim)}")
        self._grads[...] = 0
        np.add.at(self._views(self._grads)["weight"], tokens, dy)

    def _check(self, tokens: Any) -> np.ndarray:
        tokens = np.asarray(tokens)
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.num_embeddings:
            raise ValueError(
                f"tokens span {tokens.min()} to {tokens.max()}; expected 0 to {self.num_embeddings - 1}"
            )
        return tokens
