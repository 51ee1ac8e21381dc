"""What `merge` returns."""

from entrenar_core.adapters.results import AdapterReport, Loss, MergeCheck, MergeReport

__all__ = ["AdapterReport", "Loss", "MergeCheck", "MergeReport"]
