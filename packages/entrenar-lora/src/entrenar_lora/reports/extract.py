"""What `extract` returns, and `merge --as-adapter`."""

from entrenar_core.adapters.results import AdapterReport, ExtractedModule, LeftOut

__all__ = ["AdapterReport", "ExtractedModule", "LeftOut"]
