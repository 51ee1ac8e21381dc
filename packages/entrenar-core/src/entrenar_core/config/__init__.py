"""The configuration of a distillation: one schema, read from YAML, with every mistake reported at its place."""

from entrenar_core.config.loading import load_config, parse_config
from entrenar_core.config.schema import DistillationConfig

__all__ = ["DistillationConfig", "load_config", "parse_config"]
