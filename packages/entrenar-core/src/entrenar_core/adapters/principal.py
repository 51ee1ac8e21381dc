"""Adapters that began as a part of the base model's own weights, which peft takes out of these when it loads one.

What is added to the weights as they are stored is then the adapter's product less that part: of PiSSA the largest
singular directions (Meng et al. 2024, arXiv:2404.02948), of OLoRA the first columns of Q and rows of R (Büyükakyüz
2024, arXiv:2406.01775), multiplied by the scale. Both are computed exactly, as peft does.
"""

from typing import TYPE_CHECKING

from entrenar_core.adapters.settings import AdapterSettings
from entrenar_core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from entrenar_core.adapters.changes import Factors

PRINCIPAL = ("pissa", "olora")
_OF_DATA = ("corda", "lora_ga", "loftq")
_AS_LORA = (
    "save it as plain LoRA with peft: `model.save_pretrained(..., path_initial_model_for_weight_conversion=INITIAL)`, "
    "or merge with peft where it was trained"
)
_OTHERWISE = {
    "alora_invocation_tokens": "acts only after its invocation tokens (aLoRA)",
    "arrow_config": "chooses among adapters for every token (Arrow)",
    "kasa_config": "rescales singular directions (KaSA)",
    "layer_replication": "was trained on a model with repeated layers",
    "megatron_config": "is for Megatron's layers",
    "monteclora_config": "draws its matrices at random (MonteCLoRA)",
    "target_parameters": "changes parameters that are no layers of their own",
    "trainable_token_indices": "changes single tokens of the embeddings",
    "use_bdlora": "has block-diagonal matrices (BD-LoRA)",
    "use_qalora": "pools its inputs (QA-LoRA)",
}


def require_mergeable(settings: AdapterSettings, name: str) -> None:
    """Refuses an adapter that is no sum with the base model's weights, or one with a part of them that is not known.

    Raises:
        ModelError: it is, by the setting that says so.
    """
    if settings.init.startswith(_OF_DATA):
        raise ModelError(
            f"{name} began with `init_lora_weights: {settings.init}`, which changed the base model by data or numbers "
            "that the adapter's files do not hold",
            _AS_LORA,
        )
    if settings.init.startswith("pissa_niter"):
        raise ModelError(
            f"{name} began with `init_lora_weights: {settings.init}`, random directions that are not kept", _AS_LORA
        )
    for key, does in _OTHERWISE.items():
        if settings.said.get(key):
            raise ModelError(f"{name} {does}: `{key}` is set", "such an adapter is not merged: load it with peft")


def principal_part(weight_OI: "Tensor", init: str, rank: int, scale: float) -> "Factors":
    """What peft takes out of a weight, (out, in), when an adapter of this rank and scale begins so."""
    import torch

    from entrenar_core.adapters.changes import Factors

    if init == "olora":
        q, r = torch.linalg.qr(weight_OI.float())
        return Factors(q[:, :rank] * scale, r[:rank])
    u, s, v = torch.linalg.svd(weight_OI.float(), full_matrices=False)
    return Factors(u[:, :rank] * s[:rank], v[:rank])
