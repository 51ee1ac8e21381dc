"""Run as a process of its own: a model of random weights reads a context and writes two tokens. Prints the most
resident bytes of it, above those before the model was there. Libraries and threads warm up with a tiny model of the
same kind.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any


def resident(field: str) -> int:
    """In bytes: now (VmRSS), or the most since it was set back (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def generate(kind: str, settings: dict[str, Any], dtype: str, attention: str, rows: int, context: int) -> None:
    """As anybody does it with transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
    ids_BT = torch.randint(3, config.vocab_size, (rows, context))
    model.eval().generate(ids_BT, max_new_tokens=2, min_new_tokens=2, do_sample=False)


def main() -> None:
    """The figures, as JSON."""
    import torch

    given = json.loads(sys.argv[1])
    tiny = given["tiny"]
    torch.set_num_threads(1)
    generate(given["kind"], {**given["settings"], **tiny}, given["dtype"], given["attention"], 1, 16)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    generate(given["kind"], given["settings"], given["dtype"], given["attention"], given["rows"], given["context"])
    print(json.dumps({"peak": resident("VmHWM") - before, "before": before}))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
