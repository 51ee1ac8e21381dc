"""What may be asked of a prediction of several devices."""

from entrenar_core.errors import UsageError
from entrenar_core.memory.jobs import Sharding, Strategy


def sharding_of(devices: int, strategy: Strategy, rows: int, *, offload: bool) -> Sharding:
    """How so many devices share `rows` of a pass.

    Raises:
        UsageError: some of them would have nothing to do, or it cannot be done so.
    """
    if devices > rows:
        raise UsageError(
            f"{devices:,} devices cannot share {rows:,} row{'s' * (rows != 1)}",
            f"take a batch of at least {devices:,}, over all of them",
        )
    if devices == 1 and strategy != "ddp":
        raise UsageError(f"--strategy {strategy} divides models over devices", "say how many: --devices 8")
    if offload and devices > 1 and strategy != "fsdp":
        raise UsageError("--offload is of weights that are gathered layer by layer", "add --strategy fsdp")
    return Sharding(devices, strategy, offload)
