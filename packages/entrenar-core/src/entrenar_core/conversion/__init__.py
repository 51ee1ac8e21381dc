"""From one format of weights to another, a block at a time, so that memory does not grow with the model."""

from entrenar_core.lazily import importing

__all__ = ["Conversion", "convert"]

__getattr__ = importing(__name__, {"Conversion": "converting", "convert": "converting"})
