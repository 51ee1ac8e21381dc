"""From a plan to the job whose memory is predicted, and to what is said of it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from entrenar_core.config.adapters import AnyAdapter, LoraAdapter, Quantization
from entrenar_core.config.schema import OptimizerName
from entrenar_core.errors import ModelError
from entrenar_core.memory.estimate import Estimate
from entrenar_core.memory.jobs import DeviceType, TrainingJob
from entrenar_lora.planning_search import FULL, Candidate
from entrenar_lora.reports.plan import Setting, Speed
from entrenar_lora.resolving import Precision, Subject, mixed

if TYPE_CHECKING:
    from entrenar_core.memory.constants import DeviceConstants

BITS = {"nf4": 4, "int8": 8}
ALPHA_OF_RANK = 2
"""What a plan's alpha is of its rank, so that each has the same scale: else large ranks learn less than they could."""
ALPHA_WHY = f"{ALPHA_OF_RANK} x rank, as Biderman et al. 2024, arXiv:2405.09673, advise"


@dataclass(frozen=True, slots=True)
class Asked:
    """What all plans have in common: the model, the rows of an optimiser step, their tokens, and where and in which
    precision they are computed.
    """

    subject: Subject
    batch_size: int
    length: int
    device: DeviceType
    precision: Precision

    def job(
        self,
        adapter: AnyAdapter | None,
        quantisation: Quantization | None = None,
        *,
        micro_batch: int,
        checkpointing: bool = False,
        optimizer: OptimizerName = "adamw",
    ) -> TrainingJob:
        """A training; what trains is held in 32 bits, as `train` does."""
        held = self.subject.held("fp32" if adapter is None else self.precision)
        return TrainingJob(
            held if quantisation is None else held.quantised(quantisation),
            batch_size=micro_batch,
            length=self.length,
            padded=micro_batch > 1,
            adapters=adapter,
            optimizer=optimizer,
            mixed_precision=mixed(self.precision),
            gradient_accumulation=self.batch_size // micro_batch,
            gradient_checkpointing=checkpointing,
            device=self.device,
        )


def adapter_of(candidate: Candidate) -> LoraAdapter | None:
    """The section of a configuration that says it; None of full training."""
    if candidate.method == FULL:
        return None
    assert candidate.rank is not None, "adapters have one"
    return LoraAdapter(
        rank=candidate.rank,
        alpha=float(ALPHA_OF_RANK * candidate.rank),
        target_modules=candidate.modules,
        dora=candidate.method == "dora",
    )


def quantisation_of(candidate: Candidate) -> Quantization | None:
    """The section that says it; None of weights that are as they are."""
    bits = BITS.get(candidate.quantisation or "none")
    return None if bits is None else Quantization(bits=bits)


def with_process(constants: "DeviceConstants", peak_bytes: int, *, adapted: bool) -> int:
    """A peak of tensors with what the process takes, and what the allocator may keep of what was freed."""
    beside = constants.beside_bytes + constants.adapters_bytes * adapted
    return peak_bytes + round(peak_bytes * constants.kept_share) + beside


class Predictions:
    """Of plans for one model: each is predicted once. `refused` are the reasons of those that the model cannot take."""

    def __init__(self, asked: Asked, constants: "DeviceConstants") -> None:
        self.asked, self.constants = asked, constants
        self.refused: list[ModelError] = []
        self._known: dict[Candidate, Estimate | None] = {}

    def job(self, candidate: Candidate) -> TrainingJob:
        """What would be trained."""
        return self.asked.job(
            adapter_of(candidate),
            quantisation_of(candidate),
            micro_batch=candidate.micro_batch,
            checkpointing=candidate.checkpointing,
            optimizer=candidate.optimizer,
        )

    def estimate(self, candidate: Candidate) -> Estimate | None:
        """None where the model does not take it."""
        from entrenar_core.memory.predicting import predict

        if candidate not in self._known:
            try:
                self._known[candidate] = predict(self.job(candidate), self.constants.rounding.size_bytes)
            except ModelError as error:
                self.refused.append(error)
                self._known[candidate] = None
        return self._known[candidate]

    def needs(self, candidate: Candidate) -> int | None:
        """Bytes, with what the process takes."""
        found = self.estimate(candidate)
        return (
            None if found is None else with_process(self.constants, found.peak_bytes, adapted=candidate.method != FULL)
        )

    def full_flops_per_token(self) -> float:
        """Operations of full training, without checkpoints."""
        return flops_per_token(self.job(_FULL), self.estimate(_FULL)) or 0.0

    def setting(self, candidate: Candidate, full_flops: float) -> Setting:
        """What is said of a plan."""
        estimate = self.estimate(candidate)
        assert estimate is not None, "it was predicted"
        job, peak = self.job(candidate), estimate.trace.peak
        adapter = adapter_of(candidate)
        flops = flops_per_token(job, estimate) or 0.0
        quantised = job.student.load_in
        return Setting(
            method=candidate.method,
            rank=candidate.rank,
            alpha=None if adapter is None else adapter.alpha,
            alpha_why=None if adapter is None else ALPHA_WHY,
            group=candidate.modules if isinstance(candidate.modules, str) else None,
            modules=() if adapter is None else modules_of(self.asked.subject, adapter),
            quantisation=quantised,
            weights=job.student.dtype,
            precision=job.mixed_precision,
            micro_batch=candidate.micro_batch,
            accumulation=job.gradient_accumulation,
            checkpointing=candidate.checkpointing,
            optimizer=candidate.optimizer,
            parameters=estimate.trace.parameters,
            trainable_parameters=estimate.trace.trainable_parameters,
            peak_bytes=peak.total_bytes,
            needed_bytes=with_process(self.constants, peak.total_bytes, adapted=adapter is not None),
            peak_phase=peak.phase,
            components=peak.components,
            speed=Speed(flops, full_flops / flops if flops and full_flops else None, BESIDE_FULL),
        )


COUNTED = "counted operations of matrix products, without what dequantises weights or measures them for DoRA"
BESIDE_FULL = f"{COUNTED}, beside full training without checkpoints"
_FULL = Candidate(FULL, None, None, None, checkpointing=False, micro_batch=1, optimizer="adamw")


def flops_per_token(job: TrainingJob, estimate: Estimate | None) -> float | None:
    """Of a forward and backward pass; None where operations were not followed."""
    if estimate is None or estimate.method == "closed form":
        return None
    return estimate.trace.flops / (job.batch_size * job.length)


def modules_of(subject: Subject, adapter: LoraAdapter) -> tuple[str, ...]:
    """The names of the matrices that get adapters."""
    from entrenar_core.models.peft_settings import lora_targets

    found = lora_targets(adapter, subject.config.to_dict())
    return (found,) if isinstance(found, str) else found


def with_speed(setting: Setting, speed: Speed) -> Setting:
    """The same with another speed."""
    return replace(setting, speed=speed)
