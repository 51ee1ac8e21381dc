"""How fast adapters are merged, inspected, extracted and trained, and in how much memory, each beside a program that
does as much.

A model of 2 GB in bfloat16 with the shapes of Llama-2-7B's layers: an adapter of its q, k, v and o merged and saved,
beside peft's `merge_and_unload` with transformers' `save_pretrained`, and beside `cp` of the same file. An adapter of
rank 64 of all 128 such matrices of the 7B model inspected. An adapter of rank 64 extracted from two models, beside
`torch.linalg.svd` of each difference. Steps of a training beside a loop by hand with peft, in turns. Every
side is a process of its own, its imports not counted; files lie in the page cache; sides take turns; medians of the
rounds. Extra memory is the peak above that after the imports.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MERGE_RATIO, MERGE_MEMORY, COPY_RATIO, INSPECT_S, TRAIN_RATIO = 3.0, 0.25, 1.5, 5.0, 0.95
HIDDEN, NEURONS, VOCABULARY, LAYERS_7B = 4096, 11008, 8000, 32
RANK = 64
ALL = "qkvo"
Side = dict[str, float]


def llama(folder: Path, layers: int) -> Path:
    """Random bfloat16 weights in the shapes of Llama-2-7B's layers, with a smaller vocabulary."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    folder.mkdir()
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Any:
        return (torch.randn(*shape, generator=generator) * 0.02).bfloat16()

    tensors = {"model.embed_tokens.weight": drawn(VOCABULARY, HIDDEN), "lm_head.weight": drawn(VOCABULARY, HIDDEN)}
    tensors["model.norm.weight"] = torch.ones(HIDDEN).bfloat16()
    for layer in range(layers):
        place = f"model.layers.{layer}"
        tensors |= {f"{place}.self_attn.{name}_proj.weight": drawn(HIDDEN, HIDDEN) for name in ALL}
        tensors |= {f"{place}.mlp.{name}_proj.weight": drawn(NEURONS, HIDDEN) for name in ("gate", "up")}
        tensors[f"{place}.mlp.down_proj.weight"] = drawn(HIDDEN, NEURONS)
        tensors |= {
            f"{place}.{name}_layernorm.weight": torch.ones(HIDDEN).bfloat16() for name in ("input", "post_attention")
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=NEURONS, num_hidden_layers=layers, num_attention_heads=32,
        vocab_size=VOCABULARY, tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    return folder


def adapter(folder: Path, layers: int, rank: int) -> Path:
    """Random matrices for q, k, v and o, as peft saves them."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    generator = torch.Generator().manual_seed(rank)
    tensors = {}
    for layer in range(layers):
        for name in ALL:
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}_proj"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, HIDDEN, generator=generator) * 0.01
            tensors[f"{module}.lora_B.weight"] = torch.randn(HIDDEN, rank, generator=generator) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = [f"{name}_proj" for name in ALL]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def changed(folder: Path, base: Path, layers: int) -> Path:
    """A model of which q, k, v and o have moved in every direction, the less the further."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for layer in range(layers):
        for name in ALL:
            key = f"model.layers.{layer}.self_attn.{name}_proj.weight"
            left, right = (torch.randn(HIDDEN, 256, generator=generator) for _ in range(2))
            change = (left / torch.arange(1, 257)) @ right.T + torch.randn(HIDDEN, HIDDEN, generator=generator)
            tensors[key] = (tensors[key].float() + 1e-3 * change).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _open(path: Path) -> Any:
    from entrenar_core.references import PathReference
    from entrenar_core.stored_model import open_model

    return open_model(PathReference(str(path)))


def merge(base: Path, lora: Path, output: Path) -> Callable[[], Any]:
    import torch  # noqa: F401 - no import is to be counted, whoever makes it

    import entrenar_core.adapters.merged_values
    import entrenar_core.formats.safetensors_writer  # noqa: F401
    from entrenar_core.adapters.merging import write_merged
    from entrenar_core.adapters.planning import plan_merge
    from entrenar_core.adapters.reading import adapter_of

    return lambda: write_merged(plan_merge(_open(base), [(adapter_of(_open(lora)), 1.0)]), output)


def merge_by_peft(base: Path, lora: Path, output: Path) -> Callable[[], Any]:
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def work() -> None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        PeftModel.from_pretrained(model, lora).merge_and_unload().save_pretrained(output)

    return work


def inspect(lora: Path) -> Callable[[], Any]:
    import torch  # noqa: F401

    from entrenar_core.adapters.analysis import analyse
    from entrenar_core.adapters.reading import adapter_of

    return lambda: analyse(adapter_of(_open(lora)))


def extract(base: Path, tuned: Path, output: Path) -> Callable[[], Any]:
    import torch  # noqa: F401

    import entrenar_core.adapters.factoring  # noqa: F401
    from entrenar_core.adapters.extracting import Extraction
    from entrenar_core.adapters.extracting import extract as extracted

    return lambda: extracted(_open(base), _open(tuned), output, Extraction(rank=RANK))


def extract_by_svd(base: Path, tuned: Path, output: Path) -> Callable[[], Any]:
    """The whole decomposition of every difference, cut."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    def work() -> None:
        found = {}
        with safe_open(base / "model.safetensors", "pt") as one, safe_open(tuned / "model.safetensors", "pt") as other:
            for name in (name for name in one.keys() if "_proj" in name):  # noqa: SIM118 - it is no dictionary
                difference = other.get_tensor(name).float() - one.get_tensor(name).float()
                if difference.any():
                    u, s, v = torch.linalg.svd(difference, full_matrices=False)
                    root = s[:RANK].sqrt()
                    found[f"{name}.lora_B"], found[f"{name}.lora_A"] = u[:, :RANK] * root, root[:, None] * v[:RANK]
        output.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, output / "adapter_model.safetensors")

    return work


def copy(base: Path, output: Path) -> Callable[[], Any]:
    output.mkdir()
    return lambda: subprocess.run(["cp", str(base / "model.safetensors"), str(output)], check=True)


MAKE: dict[str, Callable[..., Any]] = {
    "llama": lambda folder, layers: llama(folder, int(str(layers))),
    "adapter": lambda folder, layers, rank: adapter(folder, int(str(layers)), int(str(rank))),
    "changed": lambda folder, base, layers: changed(folder, base, int(str(layers))),
}
WORK: dict[str, Callable[..., Callable[[], Any]]] = {
    "merge": merge, "peft": merge_by_peft, "cp": copy, "inspect": inspect, "extract": extract, "svd": extract_by_svd,
}  # fmt: skip
WRITES = ("merge", "peft", "cp", "extract", "svd")


def peak_bytes() -> int:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(what: str, paths: list[Path]) -> Side:
    """Imports, then does the work and says what it took."""
    if what in MAKE:
        MAKE[what](*paths)
        return {}
    if what == "train":
        from peers.tuning import steps_per_second

        return {
            f"LoRA of a Llama of {name}": ratio for name, (_, _, ratio) in steps_per_second(int(str(paths[0]))).items()
        }
    job, before = WORK[what](*paths), peak_bytes()
    if what in WRITES:
        settle(paths[:-1], paths[-1])
    began, busy = time.perf_counter(), time.process_time()
    job()
    return {
        "s": time.perf_counter() - began,
        "cpu_s": time.process_time() - busy,
        "extra_bytes": peak_bytes() - before,
    }


def worked(what: str, *arguments: object) -> Side:
    """What a job took, in a process of its own."""
    command = [sys.executable, __file__, "--worker", what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr}")
    found: Side = json.loads(done.stdout.splitlines()[-1])
    return found


def fresh(job: str, *inputs: Path, output: Path) -> Side:
    """A side that writes, to where nothing is."""
    try:
        return worked(job, *inputs, output)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def settle(inputs: list[Path], output: Path) -> None:
    """Inputs are in the page cache, and as much as the largest was written and removed just before: so no side waits
    for pages that a virtual machine gave back while it imported, or for those that another has not written out.
    """
    files = [file for path in inputs for file in path.glob("*.safetensors")]
    for file in files:
        subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)
    os.sync()
    spare = output.with_name("spare")
    for _ in range(2):
        subprocess.run(["cp", str(max(files, key=lambda file: file.stat().st_size)), str(spare)], check=True)
        spare.unlink()


def in_turns(sides: dict[str, Callable[[], Side]], rounds: int) -> dict[str, Side]:
    """Medians of every side, which take turns; a round before is not counted."""
    found: dict[str, list[Side]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            result = side()
            if turn or not rounds:
                found[name].append(result)
                print(f"  {name}: {result['s']:.2f} s", file=sys.stderr, flush=True)
    return {
        name: {key: statistics.median(one[key] for one in results) for key in results[0]}
        for name, results in found.items()
    }


Figure = tuple[str, float, float | None, bool]
"""What it is of, the figure, its aim if there is one, and whether that is met."""


def at_least(what: str, figure: float, aim: float | None) -> Figure:
    """A figure that should be as large."""
    return what, figure, aim, aim is None or figure >= aim


def at_most(what: str, figure: float, aim: float | None) -> Figure:
    """A figure that should be no larger."""
    return what, figure, aim, aim is None or figure <= aim


def merging(folder: Path, layers: int, rounds: int) -> tuple[dict[str, Side], list[Figure]]:
    """Into a model of 2 GB. The aims of time are of rank 16: the products of rank 64 alone take a core about as long as
    the copy.
    """
    base, output = folder / "base", folder / "merged"
    sides: dict[str, Callable[[], Side]] = {"cp": lambda: fresh("cp", base, output=output)}
    for rank in (16, RANK):
        lora = folder / f"lora-{rank}"
        worked("adapter", lora, layers, rank)
        sides[f"merge, rank {rank}"] = lambda lora=lora: fresh("merge", base, lora, output=output)  # type: ignore[misc]
        sides[f"peft, rank {rank}"] = lambda lora=lora: fresh("peft", base, lora, output=output)  # type: ignore[misc]
    found = in_turns(sides, rounds)
    figures: list[Figure] = []
    for rank in (16, RANK):
        ours, theirs = found[f"merge, rank {rank}"], found[f"peft, rank {rank}"]
        memory = ours["extra_bytes"] / theirs["extra_bytes"]
        faster, copies = (MERGE_RATIO, COPY_RATIO) if rank == 16 else (None, None)
        figures += [
            at_least(f"merge of rank {rank}, times as fast as peft", theirs["s"] / ours["s"], faster),
            at_most(f"merge of rank {rank}, of the time of cp", ours["s"] / found["cp"]["s"], copies),
            at_most(f"merge of rank {rank}, of peft's extra memory", memory, MERGE_MEMORY),
        ]
    return found, figures


def inspecting(folder: Path, layers: int, rounds: int) -> tuple[dict[str, Side], list[Figure]]:
    """Of rank 64, of q, k, v and o of all layers of the 7B model."""
    lora = folder / "lora-7b"
    worked("adapter", lora, LAYERS_7B if layers > 1 else layers, RANK)
    found = in_turns({"inspect": lambda: worked("inspect", lora)}, rounds)
    return found, [at_most("inspect 128 modules of rank 64, s", found["inspect"]["s"], INSPECT_S)]


def extracting(folder: Path, _layers: int, rounds: int) -> tuple[dict[str, Side], list[Figure]]:
    """At rank 64, from two models of one layer that differ in its q, k, v and o."""
    base, tuned, output = folder / "layer", folder / "tuned", folder / "extracted"
    worked("llama", base, 1)
    worked("changed", tuned, base, 1)
    sides = {
        "extract": lambda: fresh("extract", base, tuned, output=output),
        "svd": lambda: fresh("svd", base, tuned, output=output),
    }
    found = in_turns(sides, rounds)
    faster = found["svd"]["s"] / found["extract"]["s"]
    return found, [at_least("extract at rank 64, times as fast as whole decompositions", faster, 1.0)]


def trains(_folder: Path, layers: int, rounds: int) -> tuple[dict[str, Side], list[Figure]]:
    """Beside a loop by hand with peft, step by step in turns."""
    found = worked("train", 200 if rounds and layers > 1 else 40)
    return {}, [at_least(f"{name}, of the steps a second by hand", ratio, TRAIN_RATIO) for name, ratio in found.items()]


SECTIONS = {"merge": merging, "inspect": inspecting, "extract": extracting, "train": trains}


def main() -> int:
    """Measures, prints a line for each figure, and returns 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=5, help="of the model: 5 are 2 GB")
    parser.add_argument("--section", choices=SECTIONS, nargs="*", default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", action="store_true", help="results as JSON")
    parser.add_argument("--worker", nargs="+", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(work(options.worker[0], list(map(Path, options.worker[1:])))))
        return 0
    rounds = 0 if options.quick else options.rounds
    sides: dict[str, Side] = {}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        worked("llama", folder / "base", options.layers)
        for name in options.section:
            found, judged = SECTIONS[name](folder, options.layers, rounds)
            sides |= found
            figures += judged
    met = all(fine for *_, fine in figures)
    if options.json:
        from peers.machine import machine

        print(json.dumps({"machine": machine(), "sides": sides, "figures": figures, "met": met}, indent=1))
        return int(not met)
    for name, side in sides.items():
        print(
            f"{name}: {side['s']:.2f} s ({side['cpu_s']:.2f} s of processors), {side['extra_bytes'] / 1e6:.0f} MB more"
        )
    for what, figure, aim, fine in figures:
        print(f"{what}: {figure:.2f}{'' if aim is None else f' (aim {aim:g})'}{'' if fine else ' FAILED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
