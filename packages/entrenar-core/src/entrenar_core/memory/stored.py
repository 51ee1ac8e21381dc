"""The bytes of a model's weights as its files have them, which is what programs hold that read them as they are."""

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
