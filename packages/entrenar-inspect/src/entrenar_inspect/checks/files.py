"""The files: what their headers say, between them and against what common readers merely let pass."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from entrenar_core.formats import WeightFormat
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredFile, StoredModel
from entrenar_core.units import size
from entrenar_inspect.checks.results import found, skipped
from entrenar_inspect.reports.validation import Check

# Several tensors of these may lie at one place: tied weights.
_SHARES_BYTES = (WeightFormat.PYTORCH, WeightFormat.ONNX)


def structure(model: StoredModel) -> Check:
    """That headers are sound was found out when the model was opened; here, that no two tensors share bytes."""
    overlaps = [
        f"tensors {one.name} and {other.name} of {one.file} overlap"
        for file in model.files
        if file.header.format not in _SHARES_BYTES
        for one, other in pairwise(_placed(file.header.tensors))
        if other.offset < one.end
    ]
    total = sum(source.size_bytes for source in model.sources.values())
    files = "1 file" if len(model.sources) == 1 else f"{len(model.sources)} files"
    return found("structure", overlaps, fine=f"{len(model.tensors):,} tensors in {files}, {size(total)}")


def index(model: StoredModel) -> Check | None:
    """What an index says of its shards is what their headers say. None where there is one file."""
    faults = [fault for fault in model.faults if fault.about == "shards"]
    if len(model.files) == 1 and not faults:
        return None
    harmless = all(fault.harmless for fault in faults)
    fine = f"{len(model.files)} shards hold what their index lists"
    return found("shards", [fault.message for fault in faults], fine=fine, wrong="warning" if harmless else "failed")


def settings(model: StoredModel) -> Check | None:
    """That files of settings can be read; None where they can."""
    broken = [fault.message for fault in model.faults if fault.about == "settings"]
    return found("settings", broken, fine="") if broken else None


def conventions(model: StoredModel) -> Check:
    """What readers let pass and a file should not have."""
    many = len(model.files) > 1
    odd = [
        f"{file.name}: {oddity}" if many else oddity
        for file in model.files
        for oddity in (*file.header.oddities, *_holes(file))
    ]
    return found("conventions", odd, fine="nothing that readers merely tolerate", wrong="warning")


def _holes(file: StoredFile) -> Iterator[str]:
    """Bytes between tensors, and after the last, beyond what aligns them; of the formats that have no other data."""
    if file.header.format is not WeightFormat.GGUF:
        return
    end = file.header.header_bytes
    for tensor in _placed(file.header.tensors):
        if tensor.offset > end + _alignment(file):
            yield f"{tensor.offset - end:,} unused bytes before tensor {tensor.name}"
        end = max(end, tensor.end)
    if file.source.size_bytes > end + _alignment(file):
        yield f"{file.source.size_bytes - end:,} bytes follow the last tensor"


def _alignment(file: StoredFile) -> int:
    found = file.header.metadata.get("general.alignment", 32)
    return found if isinstance(found, int) else 32


def _placed(tensors: Sequence[StoredTensor]) -> list[StoredTensor]:
    """Those that have bytes of their own, in the order of their places."""
    return sorted(
        (tensor for tensor in tensors if not tensor.inline and tensor.size_bytes), key=lambda tensor: tensor.offset
    )


def sums(model: StoredModel) -> Check | None:
    """The checksums that files carry themselves; None where they have none."""
    files = [file for file in model.files if file.header.format is WeightFormat.APR]
    if not files:
        return None
    if not model.is_here:
        return skipped("checksum", "it needs every byte, and only headers were read")
    from entrenar_core.formats.apr import check_sum

    broken = [f"{file.name} has other bytes than its checksum says" for file in files if not check_sum(file.source)]
    return found("checksum", broken, fine="the bytes are those that were summed up")


def booleans(model: StoredModel) -> Check | None:
    """A truth value is stored as 0 or 1; None where there are none."""
    stored = [tensor for tensor in model.tensors.values() if tensor.dtype.name == "BOOL" and not tensor.inline]
    if not stored:
        return None
    if not model.is_here:
        return skipped("booleans", "only headers were read")
    wrong = [
        f"tensor {tensor.name} has bytes other than 0 and 1" for tensor in stored if not _zeros_and_ones(model, tensor)
    ]
    return found("booleans", wrong, fine="all are 0 or 1", wrong="warning")


def _zeros_and_ones(model: StoredModel, tensor: StoredTensor) -> bool:
    source = model.sources[tensor.file]
    assert isinstance(source, FileSource)
    step = 1 << 20
    return all(
        not source.read(place, min(step, tensor.end - place)).strip(b"\0\1")
        for place in range(tensor.offset, tensor.end, step)
    )
