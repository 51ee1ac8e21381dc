"""llama.cpp with an adapter, in a process of its own: what it expects after rows of tokens, or makes of them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PROGRAM = """
import json, os, sys, urllib.request, xllamacpp
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
asked = json.loads(sys.stdin.read())
params = xllamacpp.CommonParams()
params.model.path, params.port, params.ui = asked["model"], 0, False
params.n_parallel, params.n_ctx, params.n_gpu_layers, params.warmup, params.fit_params = 1, 256, 0, False, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.embedding = asked["embeds"]
params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in asked["adapters"]]
server = xllamacpp.Server(params)
def post(path, body):
    return json.load(opener.open(urllib.request.Request(server.listening_address + path, json.dumps(body).encode())))

found = []
for row in asked["rows"]:
    if asked["embeds"]:
        vector = post("/embeddings", {"content": row, "embd_normalize": -1})[0]["embedding"]
        found.append(vector[0] if isinstance(vector[0], list) else vector)
        continue
    ask = {"prompt": row, "n_predict": 1, "n_probs": asked["tokens"], "samplers": ["temperature"]}
    ask |= {"cache_prompt": False, "logit_bias": [[asked["plain"], 1000.0]]}
    told = post("/completion", ask)["completion_probabilities"][0]["top_logprobs"]
    found.append({one["id"]: one["logprob"] for one in told})
print("ANSWER " + json.dumps(found), flush=True)
os._exit(0)
"""


def llama_log_probabilities(
    model: Path, adapters: Sequence[Path], rows: Sequence[Sequence[int]], *, tokens: int, plain: int
) -> list[dict[int, float]]:
    """The log probabilities of the likeliest tokens after each row; an error has what llama.cpp said.

    Args:
        plain: a token that is text by itself, which is made to follow: llama.cpp tells nothing after an end.
    """
    asked = {"rows": rows, "tokens": tokens, "plain": plain, "embeds": False}
    return [{int(key): value for key, value in row.items()} for row in _answers(model, adapters, asked)]


def llama_vectors(model: Path, adapters: Sequence[Path], rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """The vector of each row of tokens, of an encoder."""
    return [list(row) for row in _answers(model, adapters, {"rows": rows, "embeds": True})]


def _answers(model: Path, adapters: Sequence[Path], asked: dict[str, Any]) -> list[Any]:
    asked = {**asked, "model": str(model), "adapters": list(map(str, adapters))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], input=json.dumps(asked), capture_output=True, text=True, timeout=120
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    found: list[Any] = json.loads(answers[0].removeprefix("ANSWER "))
    return found
