"""How a model's weights are stored: their bytes, which is what programs hold that read them as they are, and in what
its configuration says that they are quantised.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from entrenar_core.memory.jobs import HeldModel
from entrenar_core.references import Reference, parse_reference
from entrenar_core.stored_model import open_model


def stored_weight_bytes(reference: Reference | str, *, file: str | None = None) -> tuple[int, dict[str, int]]:
    """Of all tensors, and by dtype, the most first, from headers alone; of a model on the Hub nothing else is fetched.
    Values that several tensors share count once.

    Args:
        reference: of a file of any format, or of a folder with one model.
        file: which file to take where there are several.

    Raises:
        NotFoundError: there is no such file, folder, package, repository or revision.
        AccessError, FetchError: the Hub does not give it.
        ModelError: a file is unsound, is a pickle, or which files are meant is not clear.
    """
    given = parse_reference(reference) if isinstance(reference, str) else reference
    with open_model(given, file=file) as model:
        places = {
            (tensor.name,) if tensor.inline else (tensor.file, tensor.offset, tensor.size_bytes): tensor
            for tensor in model.tensors.values()
        }
        dtypes: dict[str, int] = {}
        for tensor in places.values():
            dtypes[tensor.dtype.name] = dtypes.get(tensor.dtype.name, 0) + tensor.size_bytes
    return sum(dtypes.values()), dict(sorted(dtypes.items(), key=lambda item: -item[1]))


def quantized_as_stored(held: HeldModel) -> HeldModel:
    """The model with the layers of bitsandbytes that its configuration says it has. Of other quantisers' layers nothing
    is known here, which a prediction says: their weights are counted at its dtype.
    """
    said = getattr(held.config, "quantization_config", None)
    settings: Mapping[str, Any] = said if isinstance(said, Mapping) else said.to_dict() if said is not None else {}
    if held.load_in is not None or settings.get("quant_method") not in ("bitsandbytes", "bitsandbytes_4bit"):
        return held
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return replace(held, load_in="int8")
    kind = settings.get("bnb_4bit_quant_type", "fp4")
    doubly = bool(settings.get("bnb_4bit_use_double_quant"))
    return replace(held, load_in="nf4" if kind == "nf4" else "fp4", double_quantized=doubly)
