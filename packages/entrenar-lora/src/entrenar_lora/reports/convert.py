"""What `convert` returns."""

from entrenar_core.adapters.results import AdapterConversion

__all__ = ["AdapterConversion"]
