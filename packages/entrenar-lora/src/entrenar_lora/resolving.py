"""The model that a plan or a comparison is of: a known size, or a model of which only the configuration is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from entrenar_core.architectures.reference_sizes import ReferenceSizes, sizes_named, sizes_of_repository
from entrenar_core.errors import AccessError, FetchError, ModelError, NotFoundError, UsageError
from entrenar_core.memory.jobs import DeviceType, HeldModel, MixedPrecision
from entrenar_core.references import HubReference, parse_reference

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from entrenar_core.memory.machine import Machine

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model by its configuration. `known` is the known size that stands for it, and `note` says so; `at_hand` is
    where its files are, None where nothing but its configuration is here.
    """

    reference: str
    config: "PreTrainedConfig"
    task: str
    note: str | None = None
    known: ReferenceSizes | None = None
    at_hand: Path | None = None
    revision: str | None = None

    def held(self, precision: Precision) -> HeldModel:
        """With weights of a precision."""
        dtype = "bfloat16" if precision == "bf16" else "float32"
        return HeldModel(self.reference, self.config, self.task, dtype=dtype)


def resolved(model: str, revision: str | None = None, task: str | None = None) -> Subject:
    """A known size such as `7B`, else a model; of the Hub, nothing but its configuration is fetched. Without a `task`
    it is the one that the model names.

    Raises:
        EntrenarError: of the kind that fits: there is no such model, or it cannot be reached.
    """
    if (known := sizes_named(model)) is not None and not Path(model).exists():
        if revision is not None:
            raise UsageError(f"{model} is a known size, which has no revisions", "leave --revision out")
        from entrenar_core.models.student_settings import known_config

        config = known_config(known)
        named = f"{known.name} ({known.hub})" if known.hub else known.name
        note = None if model == known.name else f"{model} is taken as {named}: its sizes, and no weights"
        return Subject(model, config, task or _task(config), note or f"{named}: its sizes, and no weights", known)
    reference = parse_reference(model, revision=revision)
    folder = _fetched(model, revision)
    from entrenar_core.models.loading import read_config

    config = read_config(folder, name=model)
    if config.is_encoder_decoder:
        raise ModelError(f"{model} is an encoder with a decoder, which entrenar does not train", "take a model of one")
    here = None if isinstance(reference, HubReference) else folder
    note = "only its configuration was fetched" if here is None else None
    return Subject(model, config, task or _task(config), note, at_hand=here, revision=revision)


def _fetched(model: str, revision: str | None) -> Path:
    from entrenar_core.hub import fetch_config

    reference = parse_reference(model, revision=revision)
    try:
        return fetch_config(reference)
    except (AccessError, FetchError, NotFoundError) as error:
        known = sizes_of_repository(reference.repo_id) if isinstance(reference, HubReference) else None
        if known is None or known.size is None:
            raise
        raise type(error)(
            error.message, f"take its known sizes, which need nothing fetched: --model {known.size}; or {error.hint}"
        ) from error


def _task(config: "PreTrainedConfig") -> str:
    """As the class that it names; of a configuration that names none, encoders tell masked tokens, all else the next
    one.
    """
    from entrenar_core.architectures import named_family
    from entrenar_core.models.heads import CAUSAL_LM, MASKED_LM, task_named

    if (found := task_named(getattr(config, "architectures", None) or ())) is not None:
        return found
    family = named_family(config.to_dict())
    return MASKED_LM if family is not None and family.kind == "encoder" else CAUSAL_LM


def machine_of(vram: str | None, device: DeviceType | None, subject: Subject) -> "Machine | None":
    """The machine that is asked about: one of so much memory, which is a GPU's unless another device is named; else
    this one. None for a known size where neither is named, of which memory is told and not whether it fits.

    Raises:
        UsageError: this is no size, or has no unit; or there is no such device.
    """
    from entrenar_core.memory.machine import asked_machine, named_machine

    if vram is not None:
        return named_machine(vram, device or "cuda")
    if subject.known is not None and device is None:
        return None
    try:
        return asked_machine(None, device)
    except UsageError as error:
        raise UsageError(error.message, "say how much memory the one that is meant has: --vram 80GB") from error


def precision_on(device: DeviceType, asked: Precision | None) -> Precision:
    """In which frozen weights are held and everything is computed, if it is not said: in 16 bits where a device has the
    units for it.
    """
    return asked or ("fp32" if device == "cpu" else "bf16")


def mixed(precision: Precision) -> MixedPrecision:
    """The setting of a training."""
    return "bf16" if precision == "bf16" else "no"
