"""Data that come with the package, and readers for the files that sequences are kept in."""

from fastlstm.datasets._data import SequenceData
from fastlstm.datasets._files import load_sequences
from fastlstm.datasets._japanese_vowels import JapaneseVowels, load_japanese_vowels
from fastlstm.datasets._ts import load_ts

__all__ = ["JapaneseVowels", "SequenceData", "load_japanese_vowels", "load_sequences", "load_ts"]
