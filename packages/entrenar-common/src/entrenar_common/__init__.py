"""The terminal side of entrenar: programs, output modes, tables, plots, progress, and how errors look."""

from entrenar_common.cli import ModelReference, build_program
from entrenar_common.output import Block, View, ViewTable, detail, note, warning
from entrenar_common.plots import Plot, line_plot
from entrenar_common.progress import Progress, Task
from entrenar_common.reports import as_json
from entrenar_common.tables import Cell, Column, Table, key_values
from entrenar_core.errors import (
    AccessError,
    ConfigError,
    DataError,
    EntrenarError,
    FetchError,
    Interrupted,
    ModelError,
    NotFoundError,
    OutputError,
    Problem,
    TrainingError,
    UsageError,
)

__all__ = [
    "AccessError",
    "Block",
    "Cell",
    "Column",
    "ConfigError",
    "DataError",
    "EntrenarError",
    "FetchError",
    "Interrupted",
    "ModelError",
    "ModelReference",
    "NotFoundError",
    "OutputError",
    "Plot",
    "Problem",
    "Progress",
    "Table",
    "Task",
    "TrainingError",
    "UsageError",
    "View",
    "ViewTable",
    "as_json",
    "build_program",
    "detail",
    "key_values",
    "line_plot",
    "note",
    "warning",
]
