"""How much each input of a matrix matters when it is quantised: importance matrices as llama.cpp has them.

They are read from llama.cpp's files or computed from a text, and can be written as a file that it reads.
"""

from typing import TYPE_CHECKING

from entrenar_core.importance.matrix import ImportanceMatrix, Inputs
from entrenar_core.lazily import importing

if TYPE_CHECKING:
    from entrenar_core.importance.calibration import compute_importance, importance_for
    from entrenar_core.importance.files import read_importance, write_importance

__all__ = [
    "ImportanceMatrix",
    "Inputs",
    "compute_importance",
    "importance_for",
    "read_importance",
    "write_importance",
]

_HOMES = {
    "compute_importance": "calibration",
    "importance_for": "calibration",
    "read_importance": "files",
    "write_importance": "files",
}
__getattr__ = importing(__name__, _HOMES)
