"""Reads GGUF files with Gridmill's tensor types into numpy arrays.

A second implementation of the pages in `formats/`, independent of the program.
"""

from .errors import FormatError
from .model import Model, StockTensor, Weight
from .reader import register_types

__all__ = ["FormatError", "Model", "StockTensor", "Weight", "register_types"]
