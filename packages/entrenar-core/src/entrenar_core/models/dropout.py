"""Dropout of a whole model, wherever its family keeps the probabilities."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def set_dropout(model: PreTrainedModel, p: float) -> None:
    """Sets every dropout probability of a model: of its configuration, which is saved with it, of its dropout modules,
    and of modules that keep the number themselves, as attention does.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = p
        for name, value in vars(module).items():
            if _is_dropout(name) and isinstance(value, float):
                setattr(module, name, p)
            elif isinstance(value, PreTrainedConfig):
                _set_in_config(value, p)


def _set_in_config(config: PreTrainedConfig, p: float) -> None:
    for name, value in config.to_dict().items():
        # None stands for another dropout of the same config (BERT's classifier_dropout).
        if _is_dropout(name) and (value is None or type(value) in (int, float)):
            setattr(config, name, p)


def _is_dropout(name: str) -> bool:
    return "dropout" in name or name.endswith("pdrop")
