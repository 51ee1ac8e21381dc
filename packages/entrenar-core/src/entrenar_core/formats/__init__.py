"""File formats of models: one module each that reads it, and which files of a folder are a model's weights.

`FORMATS` is the table. A reader gives the tensors of a file, where their bytes lie and what else the file says, from
headers alone; nothing here needs torch, and nothing of a file is executed.
"""

from entrenar_core.formats.choosing import (
    Weights,
    choose_weights,
    format_of,
    read_json,
    shards_of,
    stays_below,
)
from entrenar_core.formats.kinds import FORMATS, LOADED, Format, WeightFormat

__all__ = [
    "FORMATS",
    "LOADED",
    "Format",
    "WeightFormat",
    "Weights",
    "choose_weights",
    "format_of",
    "read_json",
    "shards_of",
    "stays_below",
]
