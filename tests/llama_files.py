"""GGUF files of tiny Llama and BERT folders, by hand with the `gguf` package: what an export has to equal."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Change = Callable[[str, Any], Any]
"""From the name and the values of a tensor to other values."""
Tokens = Callable[[list[str]], list[str]]
_CONTROL, _NORMAL = 3, 1


def llama_file(
    folder: Path, target: Path, *, kind: str = "F32", change: Change = lambda _, x: x, tokens: Tokens = lambda x: x
) -> Path:
    """The GGUF of a Llama folder with a byte-level BPE; matrices are quantised to `kind`, a name of the gguf package.

    `change` is made to every tensor as the GGUF has it, `tokens` to the list of tokens.
    """
    import gguf

    config = _json(folder / "config.json")
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    _write_byte_level(writer, folder, tokens)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, values in _weights(folder).items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        if stored.endswith(("attn_q.weight", "attn_k.weight")):
            values = _paired(values, heads if "attn_q" in stored else kv_heads)
        _add(writer, stored, change(stored, values), kind)
    return _close(writer, target)


def bert_file(folder: Path, target: Path, *, pooling: int = 1, kind: str = "F32") -> Path:
    """The GGUF of a BERT folder with a WordPiece tokenizer, which pools by the mean unless told otherwise."""
    import gguf

    config = _json(folder / "config.json")
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_token_type_count(config["type_vocab_size"])
    _write_word_piece(writer, folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, values in _weights(folder).items():
        name = name.removeprefix("bert.")
        if name.startswith(("pooler", "cls")) or name.endswith("position_ids"):
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        _add(writer, stored, values, kind if stored.startswith("blk") else "F32")
    return _close(writer, target)


def _write_byte_level(writer: Any, folder: Path, tokens: Tokens) -> None:
    content = _json(folder / "tokenizer.json")
    special = {token["id"]: token["content"] for token in content["added_tokens"]}
    by_id = {id_: token for token, id_ in content["model"]["vocab"].items()} | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens([by_id[id_] for id_ in range(len(by_id))]))
    writer.add_token_types([_CONTROL if id_ in special else _NORMAL for id_ in range(len(by_id))])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    ids = {token: id_ for id_, token in special.items()}
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["</s>"])
    writer.add_add_bos_token(False)


def _write_word_piece(writer: Any, folder: Path) -> None:
    vocabulary = _json(folder / "tokenizer.json")["model"]["vocab"]
    by_id = {id_: token for token, id_ in vocabulary.items()}
    tokens = [by_id[id_] for id_ in range(len(by_id))]
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([x if x in special else x[2:] if x.startswith("##") else f"\u2581{x}" for x in tokens])
    writer.add_token_types([_CONTROL if token in special else _NORMAL for token in tokens])
    writer.add_bos_token_id(vocabulary["[CLS]"])
    writer.add_sep_token_id(vocabulary["[SEP]"])
    writer.add_pad_token_id(vocabulary["[PAD]"])
    writer.add_unk_token_id(vocabulary["[UNK]"])
    writer.add_mask_token_id(vocabulary["[MASK]"])


def _paired(values: Any, heads: int) -> Any:
    """llama.cpp turns pairs of neighbours, transformers halves of a head."""
    return values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def _add(writer: Any, name: str, values: Any, kind: str) -> None:
    import gguf

    wanted = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
    quantised = gguf.quants.quantize(values, wanted)
    writer.add_tensor(name, quantised, raw_dtype=wanted)


def _weights(folder: Path) -> Mapping[str, Any]:
    from safetensors.numpy import load_file

    return {name: values.astype("float32") for name, values in load_file(folder / "model.safetensors").items()}


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _close(writer: Any, target: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
