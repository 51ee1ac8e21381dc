"""Whether the teacher reads the student's tokens, or the texts by itself with a tokenizer of its own. Without torch."""

from entrenar_core.config.desugaring import terms_of
from entrenar_core.config.losses import compares_layers
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.models.heads import OF_TOKENS


def reads_tokens(config: DistillationConfig, task: str | None) -> bool:
    """Where tokens are what counts they do, and of streamed rows or whose layers are compared: position by position."""
    return task in OF_TOKENS or config.dataset.streaming or bool(_between_layers(config))


def way_out(config: DistillationConfig, task: str | None) -> str:
    """What would let a classifier's teacher read texts by itself; nothing would where tokens are what counts."""
    if task in OF_TOKENS:
        return ""
    removed = ["`dataset.streaming`"] if config.dataset.streaming else []
    removed += [f"`{name}`" for name in _between_layers(config)]
    return f"; or remove {' and '.join(removed)}, so that the teacher reads the texts by itself"


def _between_layers(config: DistillationConfig) -> list[str]:
    """The settings that ask for losses between layers."""
    terms = (term for term in terms_of(config.distillation) if compares_layers(term.entry))
    return list(dict.fromkeys(f"distillation.{term.path[1]}" for term in terms))
