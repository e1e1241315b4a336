"""Data that come with the package, generators of the classic tasks, and readers for files of sequences."""

from fastlstm.datasets._data import SequenceData
from fastlstm.datasets._files import load_sequences
from fastlstm.datasets._generators import (
    COUNTING_SYMBOLS,
    REBER_SYMBOLS,
    TEMPORAL_ORDER_SYMBOLS,
    make_adding_problem,
    make_anbn,
    make_anbncn,
    make_embedded_reber,
    make_temporal_order,
    make_timing,
)
from fastlstm.datasets._japanese_vowels import JapaneseVowels, load_japanese_vowels
from fastlstm.datasets._ts import load_ts

__all__ = [
    "COUNTING_SYMBOLS",
    "REBER_SYMBOLS",
    "TEMPORAL_ORDER_SYMBOLS",
    "JapaneseVowels",
    "SequenceData",
    "load_japanese_vowels",
    "load_sequences",
    "load_ts",
    "make_adding_problem",
    "make_anbn",
    "make_anbncn",
    "make_embedded_reber",
    "make_temporal_order",
    "make_timing",
]
