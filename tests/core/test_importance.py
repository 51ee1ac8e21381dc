"""Importance matrices computed from a text, against a Llama in numpy and the layers of other families by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import DataError, EntrenarError, ModelError, NotFoundError, UsageError
from entrenar_core.importance import ImportanceMatrix, calibration, compute_importance, importance_for
from family_models import family_model
from tiny_models import CORPUS, tiny_bert, tiny_gpt2, tiny_llama

Array = NDArray[np.float64]
TEXT = "\n".join(CORPUS) + "\nspelled: </s> <pad>\n"
CHUNK = 16
LLAMA = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
GPT2 = {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}


def names_of(layers: str, modules: Mapping[str, str], count: int = 2) -> dict[str, str]:
    """With norms and an embedding among them, as a model has."""
    names = {
        f"{layers}.{n}.{ours}.weight": f"blk.{n}.{stored}.weight"
        for n in range(count)
        for ours, stored in modules.items()
    }
    return {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"} | names


NAMES = names_of("model.layers", LLAMA) | {"model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose texts start with a token, and whose weights are wide enough that all of them matter."""
    path = tiny_llama(tmp_path_factory.mktemp("importance") / "llama", tie_word_embeddings=False)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[start])
    tokenizer.save(str(path / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(path)
    return path


def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def expected_ids(folder: Path) -> NDArray[np.int64]:
    """By the library of tokenizers itself: a start before the text, then in the place of each chunk's first token."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    start = tokenizer.token_to_id("<s>")
    ids = [start, *tokenizer.encode(TEXT, add_special_tokens=False).ids]
    chunks = np.array(ids[: len(ids) // CHUNK * CHUNK]).reshape(-1, CHUNK)
    chunks[:, 0] = start
    return chunks


def normed(hidden: Array, weight: Array, epsilon: float = 1e-6) -> Array:
    return hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + epsilon) * weight


def turned(heads: Array, base: float = 10000.0) -> Array:
    """(heads, T, width): rotary positions, halves of a head together."""
    half = heads.shape[-1] // 2
    angles = np.arange(heads.shape[1])[:, None] * base ** (-np.arange(half) / half)
    first, second = heads[..., :half], heads[..., half:]
    sine, cosine = np.sin(angles), np.cos(angles)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


def llama_inputs(model: Any, ids: NDArray[np.int64]) -> dict[str, Array]:
    """What every matrix reads for one chunk, in float64."""
    weights = {name: weight.detach().double().numpy() for name, weight in model.named_parameters()}
    config, found = model.config, {}
    hidden = weights["model.embed_tokens.weight"][ids]
    for number in range(config.num_hidden_layers):
        layer = {
            name.removeprefix(f"model.layers.{number}.").removesuffix(".weight"): weight
            for name, weight in weights.items()
        }
        reads = normed(hidden, layer["input_layernorm"], config.rms_norm_eps)
        queries, keys, values = (
            (reads @ layer[f"self_attn.{name}_proj"].T).reshape(len(ids), -1, config.head_dim).swapaxes(0, 1)
            for name in "qkv"
        )
        groups = len(queries) // len(keys)
        queries, keys, values = turned(queries), turned(keys).repeat(groups, 0), values.repeat(groups, 0)
        scores = queries @ keys.swapaxes(1, 2) / np.sqrt(config.head_dim)
        scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        mixed = (attention @ values).swapaxes(0, 1).reshape(len(ids), -1)
        hidden = hidden + mixed @ layer["self_attn.o_proj"].T
        wide = normed(hidden, layer["post_attention_layernorm"], config.rms_norm_eps)
        gate = wide @ layer["mlp.gate_proj"].T
        neurons = gate / (1 + np.exp(-gate)) * (wide @ layer["mlp.up_proj"].T)
        hidden = hidden + neurons @ layer["mlp.down_proj"].T
        found |= {f"blk.{number}.{name}.weight": reads for name in ("attn_q", "attn_k", "attn_v")}
        found |= {f"blk.{number}.{name}.weight": wide for name in ("ffn_gate", "ffn_up")}
        found |= {f"blk.{number}.attn_output.weight": mixed, f"blk.{number}.ffn_down.weight": neurons}
    return found


def test_a_llama_has_the_mean_squares_of_all_that_its_matrices_read(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    told: list[tuple[int, int]] = []
    matrix = compute_importance(
        model, tokenizer, TEXT, names=NAMES, chunk=CHUNK, dataset="corpus", progress=lambda *state: told.append(state)
    )
    chunks = expected_ids(folder)
    assert len(chunks) > 8
    squares: dict[str, Any] = {}
    for ids in chunks:
        for name, read in llama_inputs(model, ids).items():
            squares[name] = squares.get(name, 0) + (read**2).sum(0)
    assert matrix.inputs.keys() == squares.keys(), "the head and the embedding have no entry"
    assert (matrix.chunk_count, matrix.chunk_size, matrix.datasets) == (len(chunks), CHUNK, ("corpus",))
    assert told[-1] == (len(chunks), len(chunks))
    for name, sums in squares.items():
        assert matrix.inputs[name].counts_M.tolist() == [chunks.size]
        means = matrix.means(name, len(sums))
        np.testing.assert_allclose(means, sums[None] / chunks.size, rtol=1e-4)


def assert_alike(first: ImportanceMatrix, second: ImportanceMatrix) -> None:
    assert first.inputs.keys() == second.inputs.keys()
    for name, inputs in first.inputs.items():
        np.testing.assert_allclose(inputs.sums_MI, second.inputs[name].sums_MI, rtol=1e-5)
        assert inputs.counts_M.tolist() == second.inputs[name].counts_M.tolist()


@pytest.mark.parametrize("at_once", [1, 3 * CHUNK])
def test_how_many_chunks_go_at_once_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    model, tokenizer = loaded(folder)
    all_at_once = compute_importance(model, tokenizer, TEXT, names=NAMES, chunk=CHUNK)
    monkeypatch.setattr(calibration, "_TOKENS_AT_ONCE", at_once)
    assert_alike(compute_importance(model, tokenizer, TEXT, names=NAMES, chunk=CHUNK), all_at_once)


def test_the_first_chunks_are_a_part_of_the_sums_and_the_model_stays_as_it_was(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    model.train()
    parts = [compute_importance(model, tokenizer, TEXT, names=NAMES, chunk=CHUNK, chunks=count) for count in (1, 2, 3)]
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [part.chunk_count for part in parts] == [1, 2, 3]
    for number, ids in enumerate(expected_ids(folder)[1:3]):
        for name, read in llama_inputs(model, ids).items():
            more = parts[number + 1].inputs[name].sums_MI - parts[number].inputs[name].sums_MI
            np.testing.assert_allclose(more[0], (read**2).sum(0), rtol=2e-3, atol=1e-5)


def test_a_gpt2_is_measured_where_its_fused_and_transposed_matrices_read(tmp_path: Path) -> None:
    folder = tiny_gpt2(tmp_path / "gpt2")
    model, tokenizer = loaded(folder)
    matrix = compute_importance(model, tokenizer, TEXT, names=names_of("transformer.h", GPT2), chunk=CHUNK)
    tokens = tokenizer(TEXT, split_special_tokens=True)["input_ids"]  # nothing is put before a text
    chunks = torch.tensor(tokens[: len(tokens) // CHUNK * CHUNK]).view(-1, CHUNK)
    with torch.no_grad():
        hidden = model(chunks, output_hidden_states=True).hidden_states
    for layer, state in enumerate(hidden[:-1]):
        rows = state.double().numpy().reshape(-1, state.shape[-1])
        rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
        norm = model.transformer.h[layer].ln_1
        rows = rows * norm.weight.detach().numpy() + norm.bias.detach().numpy()
        means = matrix.means(f"blk.{layer}.attn_qkv.weight", 32)
        np.testing.assert_allclose(means, (rows**2).mean(0, keepdims=True), rtol=1e-4)
    assert matrix.means("blk.1.ffn_down.weight", 128) is not None
    assert len(matrix.inputs) == 8


def test_an_encoder_starts_each_chunk_with_its_token_and_is_named_with_or_without_its_head(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    bare = names_of("encoder.layer", {"attention.self.query": "attn_q", "output.dense": "ffn_down"})
    headed = {f"bert.{ours}": stored for ours, stored in bare.items()}
    first, second = (compute_importance(model, tokenizer, TEXT, names=names, chunk=CHUNK) for names in (bare, headed))
    assert_alike(first, second)
    older = {"encoder.layer.0.attention.output.LayerNorm.gamma": "blk.0.attn_output_norm.weight"}
    assert_alike(compute_importance(model, tokenizer, TEXT, names=bare | older, chunk=CHUNK), first)
    ids = [tokenizer.cls_token_id, *tokenizer(TEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
    chunks = torch.tensor(ids[: len(ids) // CHUNK * CHUNK]).view(-1, CHUNK)
    chunks[:, 0] = tokenizer.cls_token_id
    with torch.no_grad():
        read = model(chunks, output_hidden_states=True).hidden_states[1]
    means = first.means("blk.1.attn_q.weight", 32)
    np.testing.assert_allclose(means, read.double().square().mean((0, 1)).numpy()[None], rtol=1e-4)


def test_a_folder_and_a_file_give_the_same_with_chunks_as_long_as_the_model_reads(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    matrix = importance_for(inspect_folder(folder), text, NAMES)
    assert (matrix.chunk_size, matrix.datasets) == (128, ("text.txt",))
    model, tokenizer = loaded(folder)
    assert_alike(matrix, compute_importance(model, tokenizer, TEXT, names=NAMES, chunk=128))


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"text": "too short"}, DataError, r"the text has \d+ tokens, and one chunk has 16"),
        ({"chunk": 129}, UsageError, "chunks of 129 tokens are more than the 128"),
        ({"chunk": 0}, UsageError, "0 tokens of a chunk"),
        ({"chunks": 0}, UsageError, "0 chunks"),
        ({"names": {"model.layers.7.mlp.up_proj.weight": "blk.7.ffn_up.weight"}}, ModelError, "no weight model"),
        ({"names": {"model.norm.weight": "output_norm.weight"}}, ModelError, "none of the names"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_on_is_said(
    folder: Path, settings: dict[str, Any], kind: type[EntrenarError], says: str
) -> None:
    model, tokenizer = loaded(folder)
    with pytest.raises(kind, match=says):
        compute_importance(model, tokenizer, **{"text": TEXT, "names": NAMES, "chunk": CHUNK} | settings)


def test_broken_weights_and_foreign_tokens_are_told(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = float("nan")
    with pytest.raises(ModelError, match=r"what blk\.0\.ffn_down\.weight reads is no number"):
        compute_importance(model, tokenizer, TEXT, names=NAMES, chunk=CHUNK)
    model.resize_token_embeddings(100)
    with pytest.raises(ModelError, match="and the model 100 embeddings"):
        compute_importance(model, tokenizer, TEXT, names=NAMES, chunk=CHUNK)


def test_experts_are_refused(folder: Path) -> None:
    model = family_model("mixtral", AutoModelForCausalLM)
    experts = next(name for name, weight in model.named_parameters() if weight.ndim == 3)
    with pytest.raises(ModelError, match="it is no linear layer, as are the matrices of experts"):
        compute_importance(
            model, AutoTokenizer.from_pretrained(folder), TEXT, names={experts: "blk.0.ffn_up_exps.weight"}, chunk=CHUNK
        )


def test_a_text_that_cannot_be_read_is_said(folder: Path, tmp_path: Path) -> None:
    artifact, file = inspect_folder(folder), tmp_path / "text.txt"
    with pytest.raises(NotFoundError, match=r"text\.txt does not exist"):
        importance_for(artifact, file, NAMES)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text in UTF-8"):
        importance_for(artifact, file, NAMES)
    with pytest.raises(DataError, match="cannot be read"):
        importance_for(artifact, tmp_path, NAMES)
