"""Which matrices of a model get adapters: the names that peft matches, of a group of them, from the family's table.

peft gives an adapter to every module that is called so or ends so after a dot. The names here are the shortest that
mean matrices of the group and nothing else.
"""

from collections.abc import Collection, Mapping
from typing import Any

from entrenar_core.architectures import named_family
from entrenar_core.architectures.flows import Flow, Flows
from entrenar_core.config.adapters import TargetGroup

ALL_LINEAR = "all-linear"
"""What peft calls every linear layer but the head."""


def targets_of_group(config: Mapping[str, Any], group: TargetGroup) -> tuple[str, ...] | str | None:
    """The names of a group in a model with this config.json; None where neither our table nor peft's knows the family.

    Of a family outside our table `attention` and `query-value` are what peft takes for it.
    """
    family = named_family(config)
    if family is not None and family.flows is not None:
        return _named(family.flows, group)
    return ALL_LINEAR if group == ALL_LINEAR else _known_to_peft(config.get("model_type"))


def _named(flows: Flows, group: TargetGroup) -> tuple[str, ...]:
    chosen = [name for name, flow in flows.modules.items() if name.startswith("*.") and _belongs(flow, group)]
    names = (_shortest(name, chosen, flows.modules) for name in chosen)
    return tuple(dict.fromkeys(names))


def _belongs(flow: Flow, group: TargetGroup) -> bool:
    if flow.is_norm or not (flow.reads.parts and flow.writes.parts):
        return False
    if group == ALL_LINEAR:
        return True
    if group == "query-value":
        return bool({"queries", "values"} & set(flow.writes.parts))
    return bool({"queries", "keys", "values"} & {*flow.writes.parts, *flow.reads.parts})


def _shortest(name: str, chosen: Collection[str], every: Collection[str]) -> str:
    """The fewest last parts of a name that nothing ends with but what is chosen."""
    parts = name.removeprefix("*.").split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if all(other in chosen for other in every if f".{other}".endswith(f".{end}")):
            return end
    return ".".join(parts)


def _known_to_peft(model_type: Any) -> tuple[str, ...] | None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    found = KNOWN.get(model_type)
    return None if found is None or isinstance(found, str) else tuple(found)
