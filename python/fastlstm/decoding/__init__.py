"""Label sequences from the output of a network trained with :func:`fastlstm.losses.ctc_loss`."""

from fastlstm.decoding._ctc import ctc_beam_search, ctc_greedy

__all__ = ["ctc_beam_search", "ctc_greedy"]
