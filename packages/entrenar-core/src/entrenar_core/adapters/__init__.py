"""Low-rank adapters as files: what one changes and by how much, its merging, its combination with others, its making
from two models, and the forms that other programs keep it in.

Training one is part of `training`; how peft puts one into a model, of `models`.
"""
