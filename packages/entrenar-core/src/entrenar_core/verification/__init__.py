"""A GGUF in real llama.cpp beside the model that it was made of: `--verify`.

`verifying` does it, with `server` (llama.cpp in a process of its own, `serving`), `asking` (what it says of texts and
tokens), `rows` (what both models read, of `passage`), `original` (what transformers says), `comparing` (how far apart
two distributions are) and `judging`; `limits` has how far they may be, by type, and `result` what was found.
"""

from typing import TYPE_CHECKING

from entrenar_core.lazily import importing

if TYPE_CHECKING:
    from entrenar_core.verification.limits import LIMITS, Limits
    from entrenar_core.verification.result import Verification
    from entrenar_core.verification.verifying import verify

__all__ = ["LIMITS", "Limits", "Verification", "verify"]

__getattr__ = importing(
    __name__, {"LIMITS": "limits", "Limits": "limits", "Verification": "result", "verify": "verifying"}
)


def __dir__() -> list[str]:
    return __all__
