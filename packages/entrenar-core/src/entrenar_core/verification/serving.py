"""The process in which llama.cpp's server runs, alone: what is wrong with a file may abort it.

It ends with the process that started it, however that ends: the pipe to it closes then. While llama.cpp loads a model
no Python runs here, so where the system can it is asked to kill this process when the pipe closes.

    python -P -m entrenar_core.verification.serving '{"file": "model.gguf", "context": 256, …}'
"""

import json
import os
import select
import signal
import sys
import threading
from importlib import import_module
from typing import Any, NoReturn

PACKAGE = "xllamacpp"
"""What brings llama.cpp."""
_REFUSED = 1


def main(argument: str) -> NoReturn:
    """Prints the address of the server once it answers; llama.cpp says the rest, on stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one, which ends it
    _end_with_parent()
    settings = json.loads(argument)
    xllamacpp = import_module(PACKAGE)
    try:
        server = xllamacpp.Server(_params(xllamacpp, settings))
    except RuntimeError:  # it says nothing that llama.cpp does not say, which a thread of it still has to write
        sys.exit(_REFUSED)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    threading.Event().wait()
    os._exit(0)


def _params(xllamacpp: Any, settings: dict[str, Any]) -> Any:
    """One row at a time, on the processor, computed as exactly as llama.cpp can: keys and values in 32 bits."""
    params = xllamacpp.CommonParams()
    params.model.path = settings["file"]
    params.hostnames, params.port, params.ui = ["127.0.0.1"], 0, False
    params.n_ctx, params.n_parallel, params.n_gpu_layers = settings["context"], 1, 0
    params.n_batch = params.n_ubatch = max(settings["context"], 512)  # an encoder reads a row at once
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.swa_full = True  # else a sliding window has forgotten what the next prefix begins with
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    params.fit_params = params.warmup = False
    params.no_op_offload = params.no_kv_offload = True
    params.embedding = settings["embeds"]
    return params


def _end_with_parent() -> None:
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([0], [], [], 0)[0]:  # it closed before
            os._exit(0)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
