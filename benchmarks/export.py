"""How fast a model of half a billion weights is written as a quantised GGUF, beside the routines that only quantise.

`entrenar-distill export` from its start to its end, and the same export called in Python, reading, checking, planning
and writing included, against the gguf package's quantiser in numpy and against ggml's own routine on as many threads,
which both have their weights in memory: matrices of the types and shapes that the export chose, in float32. What is
called in Python is timed without importing it, on every side: ours exports a tiny model first. The model lies in the
page cache, and what was written before is on the disk. Sides take turns; medians of the rounds.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from inspection import run

KINDS = ("q8_0", "q4_0", "q4_k_m", "q6_k")
IN_NUMPY = ("q8_0", "q4_0")
"""What the gguf package can quantise to."""
K_QUANT_RATIO, NUMPY_RATIO, PEAK_BYTES = 1.1, 1.0, 500_000_000
BLOCK_VALUES = 1 << 18
PROGRAM = Path(sys.executable).with_name("entrenar-distill")


class Size(NamedTuple):
    """Of a Llama with heads of 128, three of which share keys and values."""

    layers: int
    hidden: int
    neurons: int
    vocabulary: int


LARGE, TINY = Size(16, 1536, 4096, 32_000), Size(1, 384, 512, 1024)  # 501 million weights, and two


def shapes(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a Llama."""
    layers, hidden, neurons, vocabulary = size
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        place = f"model.layers.{layer}"
        for name in "qo":
            yield f"{place}.self_attn.{name}_proj.weight", (hidden, hidden)
        for name in "kv":
            yield f"{place}.self_attn.{name}_proj.weight", (hidden // 3, hidden)
        for name in ("gate", "up"):
            yield f"{place}.mlp.{name}_proj.weight", (neurons, hidden)
        yield f"{place}.mlp.down_proj.weight", (hidden, neurons)
        for name in ("input", "post_attention"):
            yield f"{place}.{name}_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def build(folder: Path, size: Size = LARGE) -> dict[str, float]:
    """Writes a Llama of random bfloat16 weights, with a tokenizer of fewer tokens than it has embeddings."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=list(specials.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.neurons,
        num_hidden_layers=size.layers, num_attention_heads=size.hidden // 128,
        num_key_value_heads=size.hidden // 384, max_position_embeddings=2048,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=2, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.empty(shape).normal_(1.0 if "norm" in name else 0.0, 0.02, generator=generator).bfloat16()
        for name, shape in shapes(size)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {
        "weights": sum(tensor.numel() for tensor in tensors.values()),
        "largest_bytes": max(tensor.nbytes for tensor in tensors.values()),
    }


def quantised(file: Path) -> list[tuple[int, int, int]]:
    """The type, rows and columns of the matrices in a GGUF."""
    import gguf

    return [
        (int(tensor.tensor_type), *(int(size) for size in tensor.shape[::-1]))  # type: ignore[misc]
        for tensor in gguf.GGUFReader(file).tensors
        if len(tensor.shape) == 2
    ]


def weights_for(matrices: list[tuple[int, int, int]]) -> Any:
    """As many random numbers as the largest matrix has, which all of them take theirs from."""
    import numpy as np

    largest = max(rows * columns for _, rows, columns in matrices)
    return np.random.default_rng(0).standard_normal(largest, np.float32) * np.float32(0.02)


def in_python(file: Path, _: int) -> dict[str, float]:
    """Our own library for the model beside a file, to the mix that the file is named after."""
    from entrenar_core import ExportSettings, export
    from entrenar_core.artifact import inspect_folder
    from entrenar_core.formats import WeightFormat

    settings, output = ExportSettings(WeightFormat.GGUF, quantize=file.stem), file.with_name("called.gguf")
    for name in ("tiny", "model"):
        output.unlink(missing_ok=True)
        model = inspect_folder(file.parent / name)
        began = time.perf_counter()
        export(model, output, settings)
        taken = time.perf_counter() - began
    output.unlink()
    return {"s": taken}


def in_numpy(file: Path, _: int) -> dict[str, float]:
    """The gguf package for the matrices of a file whose type it can make, one after the other."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    matrices = [matrix for matrix in quantised(file) if GGMLQuantizationType(matrix[0]).name.lower() in IN_NUMPY]
    weights = weights_for(matrices)
    began = time.perf_counter()
    for kind, rows, columns in matrices:
        quantize(weights[: rows * columns].reshape(rows, columns), GGMLQuantizationType(kind))
    return {"s": time.perf_counter() - began, "weights": sum(rows * columns for _, rows, columns in matrices)}


def bare(file: Path, threads: int) -> dict[str, float]:
    """ggml's routine for the matrices of a file, a block of rows at a time in each thread."""
    import ctypes
    from concurrent.futures import ThreadPoolExecutor
    from importlib.util import find_spec

    import numpy as np

    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise SystemExit("the package xllamacpp is not installed")
    routine = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("*.so")))).ggml_quantize_chunk
    routine.restype = ctypes.c_size_t
    routine.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    matrices = quantised(file)
    weights = weights_for(matrices)
    output = np.empty(weights.nbytes, np.uint8)
    output.fill(1)  # or its pages would be made while the clock runs

    def quantise(kind: int, first: int, rows: int, columns: int) -> None:
        routine(kind, weights.ctypes.data, output.ctypes.data, first * columns, rows, columns, None)

    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        for kind, rows, columns in matrices:
            parts = threads * -(-rows * columns // (threads * BLOCK_VALUES))  # which end at the same time
            size = -(-rows // parts)
            blocks = [(kind, first, min(size, rows - first), columns) for first in range(0, rows, size)]
            list(pool.map(quantise, *zip(*blocks, strict=True)))
        return {"s": time.perf_counter() - began}


SIDES: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "entrenar in Python": in_python,
    "numpy": in_numpy,
    "ggml": bare,
}


def worker(what: str, path: Path, threads: int) -> dict[str, float]:
    """Imports, then does the work and says what it took."""
    from peers.measuring import peak_bytes

    found = build(path, LARGE if path.name == "model" else TINY) if what == "build" else SIDES[what](path, threads)
    return {**found, "peak_bytes": peak_bytes()}


def worked(what: str, path: Path, threads: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--worker", what, str(path), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def exported(model: Path, kind: str, output: Path, cache: Path) -> dict[str, float]:
    """Our side: the whole command, whose output is written anew."""
    output.unlink(missing_ok=True)
    command = [str(PROGRAM), "export", "--input", str(model), "--format", "gguf", "--quantize", kind]
    return run([*command, "--output", str(output)], cache)


def measured(folder: Path, kinds: list[str], threads: int, rounds: int) -> dict[str, Any]:
    """Medians of every side, which take turns, and what they were given."""
    model = folder / "model"
    for one in (folder / "tiny", model):
        one.mkdir()
        given = worked("build", one, threads)
    exported(model, kinds[0], folder / "first.gguf", folder / "compiled")  # compiles what is imported
    found: dict[str, list[dict[str, float]]] = {}
    for turn in range(1, rounds + 1):
        for name, result in itertools.chain.from_iterable(one_turn(folder, kind, threads) for kind in kinds):
            result = {"weights": given["weights"]} | result
            found.setdefault(name, []).append(result | {"weights_per_s": result["weights"] / result["s"]})
            print(f"  round {turn} of {rounds}: {name}: {result['s']:.2f} s", file=sys.stderr, flush=True)
    sides = {name: medians(results) for name, results in found.items()}
    return {"weights": given["weights"], "largest_bytes": given["largest_bytes"], "threads": threads, "sides": sides}


def one_turn(folder: Path, kind: str, threads: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Every side once, for one type; the peers do what the export of this turn did."""
    output = folder / f"{kind}.gguf"
    settle(folder)
    yield f"{kind}, entrenar", exported(folder / "model", kind, output, folder / "compiled")
    for name in SIDES:
        if name != "numpy" or kind in IN_NUMPY:
            settle(folder)
            yield f"{kind}, {name}", worked(name, output, threads)
    output.unlink()


def settle(folder: Path) -> None:
    """Waits for the disk, and has the model in the page cache: a machine may have given its pages to others."""
    os.sync()
    run(["cat", str(folder / "model" / "model.safetensors")])


def medians(results: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure by itself."""
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def judged(found: dict[str, Any], kinds: list[str]) -> list[tuple[str, float, float, bool]]:
    """Every figure with its aim, and whether it is met: what is measured, how much, the aim, met."""
    figures: list[tuple[str, float, float, bool]] = []
    sides, peak_aim = found["sides"], (PEAK_BYTES + found["largest_bytes"]) / 1e6
    for kind in kinds:
        ours = sides[f"{kind}, entrenar"]
        if kind in IN_NUMPY:
            rate = ours["weights_per_s"] / sides[f"{kind}, numpy"]["weights_per_s"]
            figures.append((f"{kind}, of the rate of numpy", rate, NUMPY_RATIO, rate >= NUMPY_RATIO))
        else:
            ratio = sides[f"{kind}, entrenar in Python"]["s"] / sides[f"{kind}, ggml"]["s"]
            figures.append((f"{kind}, of the time of ggml's routine", ratio, K_QUANT_RATIO, ratio <= K_QUANT_RATIO))
        peak = ours["peak_bytes"] / 1e6
        figures.append((f"{kind}, peak in MB", peak, peak_aim, peak <= peak_aim))
    return figures


def main() -> int:
    """Measures, prints a line for each figure, and returns 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of ggml's routine, as many as ours has")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", action="store_true", help="results as JSON")
    parser.add_argument("--worker", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(worker(options.worker[0], Path(options.worker[1]), options.threads)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), options.kinds, options.threads, 1 if options.quick else options.rounds)
    figures = judged(found, options.kinds)
    met = all(fine for *_, fine in figures)
    if options.json:
        from peers.machine import machine

        print(json.dumps({"machine": machine(), **found, "figures": figures, "met": met}, indent=1))
        return int(not met)
    for name, side in found["sides"].items():
        rate, peak = side["weights_per_s"] / 1e6, side["peak_bytes"] / 1e6
        print(f"{name}: {side['s']:.2f} s, {rate:.1f} million weights/s, peak {peak:.0f} MB")
    for what, figure, aim, fine in figures:
        print(f"{what}: {figure:.2f} (aim {aim:g}){'' if fine else ' FAILED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
