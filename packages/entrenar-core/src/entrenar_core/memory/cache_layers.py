"""What kind of memory each layer of a decoder has, and how large a fixed state is, by a configuration alone."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from entrenar_core.architectures import architecture_of
from entrenar_core.errors import ModelError

Config = Mapping[str, Any]
LayerKind = Literal["full", "indexed", "sliding", "state", "full with state", "sliding with state", "none"]

_CALLED: Mapping[str, LayerKind] = {
    "full_attention": "full",
    "attention": "full",
    "indexed_attention": "indexed",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "linear_attention": "state",
    "mamba": "state",
    "recurrent": "state",
    "conv": "state",
    "hybrid": "full with state",
    "hybrid_sliding": "sliding with state",
    "moe": "none",
    "mlp": "none",
}
"""The layers that configurations list by name."""
_STATES = ("mamba", "mamba2", "falcon_mamba", "rwkv")
_WINDOWS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}
"""Families in which one layer of so many looks at everything, where a configuration does not list its layers."""


_ATTENTIONS = {"longcat_flash": 2}
"""Families whose layers attend several times."""


def size(config: Config, *names: str) -> int:
    """The first of some settings that is a number.

    Raises:
        ModelError: none is.
    """
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and value > 0:
            return int(value)
    raise ModelError(
        f"the configuration of a {config.get('model_type')} does not say `{names[0]}`", "check its config.json"
    )


def layer_kinds(config: Config) -> list[LayerKind]:
    """The kind of each layer of a decoder, in their order.

    Raises:
        ModelError: how many there are is not said, or a kind of layers is not known.
    """
    kinds = _listed(config) or [_unlisted(config, place) for place in range(_depth(config))]
    layers = len(kinds)
    shared = config.get("num_kv_shared_layers")
    if isinstance(shared, int) and 0 < shared < layers:
        kinds[layers - shared :] = ["none"] * shared  # they look at what layers before them keep
    return kinds


def _depth(config: Config) -> int:
    layers = architecture_of(config).num_layers or size(config, "num_hidden_layers", "n_layers", "num_layers")
    return layers * _ATTENTIONS.get(str(config.get("model_type")), 1)


def _listed(config: Config) -> list[LayerKind]:
    """Of all layers, or of some that repeat."""
    named: Any = next(
        (config[key] for key in ("layer_types", "layers_block_type", "block_types") if config.get(key)), None
    )
    if not isinstance(named, list | tuple):
        return []
    if unknown := [name for name in named if name not in _CALLED]:
        raise ModelError(
            f"what layers of the kind {unknown[0]} keep has no formula",
            "no figure can be given for this model without tracing it",
        )
    layers = _depth(config) if "block_types" in config else len(named)
    return [_kind(str(named[place % len(named)]), config) for place in range(layers)]


def _kind(name: str, config: Config) -> LayerKind:
    if name == "attention" and config.get("attention_window_size"):
        return "sliding"
    return _CALLED[name]


def _unlisted(config: Config, place: int) -> LayerKind:
    """The kind of a layer, where rules say it."""
    family = config.get("model_type")
    if family in _STATES:
        return "state"
    if family == "falcon_h1":
        return "full with state"
    if (period := config.get("attn_layer_period")) is not None:
        return "full" if place % period == config.get("attn_layer_offset", 0) else "state"
    if (chosen := config.get("attn_layer_indices")) is not None:
        return "full" if place in chosen else "state"
    return "sliding" if _has_window(config, place) else "full"


def _has_window(config: Config, place: int) -> bool:
    if config.get("use_sliding_window") is False or window_of(config) is None:
        return False
    if config.get("use_sliding_window"):
        return place >= int(config.get("max_window_layers") or 0)
    period: int | None = config.get("sliding_window_pattern") or _WINDOWS.get(str(config.get("model_type")))
    return period is None or (place + 1) % period != 0


def window_of(config: Config) -> int | None:
    """How many tokens a layer with a window looks back, itself among them."""
    for name in ("sliding_window", "attention_chunk_size", "attention_window_size"):
        if type(value := config.get(name)) is int and value > 0:
            return value
    return None


def state_values(config: Config) -> tuple[int, int]:
    """Of a layer with a state, the numbers that it keeps of a row: in the model's dtype, and in 32 bits.

    Raises:
        ModelError: there is no formula for its family, or its configuration does not say a size.
    """
    for key, formula in _FORMULAS.items():
        if config.get(key) is not None or config.get("model_type") == key:
            return formula(config)
    raise ModelError(
        f"what a layer with a state keeps in a {config.get('model_type')} has no formula",
        "no figure can be given for this model without tracing it",
    )


def _mamba(config: Config) -> tuple[int, int]:
    inner = size(config, "mamba_expand", "expand") * size(config, "hidden_size")
    return inner * size(config, "mamba_d_conv", "conv_kernel"), inner * size(config, "mamba_d_state", "state_size")


def _mamba2(config: Config) -> tuple[int, int]:
    heads = size(config, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
    inner = heads * size(config, "mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim")
    state = size(config, "mamba_d_state", "ssm_state_size", "state_size")
    groups = size(config, "mamba_n_groups", "mamba_ngroups", "n_groups")
    return (inner + 2 * groups * state) * size(config, "mamba_d_conv", "conv_kernel"), inner * state


def _delta_rule(config: Config) -> tuple[int, int]:
    keys = size(config, "linear_key_head_dim")
    values = size(config, "linear_num_value_heads") * size(config, "linear_value_head_dim")
    read = 2 * size(config, "linear_num_key_heads") * keys + values
    return read * size(config, "linear_conv_kernel_dim"), keys * values


def _convolution(config: Config) -> tuple[int, int]:
    return size(config, "hidden_size") * size(config, "conv_L_cache"), 0


def _rwkv(config: Config) -> tuple[int, int]:
    return 2 * size(config, "hidden_size"), 3 * size(config, "attention_hidden_size", "hidden_size")


_FORMULAS: Mapping[str, Callable[[Config], tuple[int, int]]] = {
    "linear_num_value_heads": _delta_rule,
    "conv_L_cache": _convolution,
    "mamba_n_heads": _mamba2,
    "mamba_num_heads": _mamba2,
    "n_mamba_heads": _mamba2,
    "mamba2": _mamba2,
    "mamba_d_state": _mamba,
    "mamba": _mamba,
    "falcon_mamba": _mamba,
    "rwkv": _rwkv,
}
"""By a setting that only such families have, or by the family."""
