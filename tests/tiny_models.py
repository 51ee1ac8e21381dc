"""Tiny real models and tokenizers, written as folders that `transformers` loads: config, weights, tokenizer.

Everything is seeded, so a folder holds the same bytes whenever it is built. A further keyword is a setting of the
config class, for a test that needs another depth, width or vocabulary, or `max_shard_size`, to get several files.
"""

import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

BPE_ENTRIES, WORDPIECE_ENTRIES = 320, 256
CORPUS = (
    "the quick brown fox jumps over the lazy dog and runs away from the river",
    "a teacher gives the student soft targets and the student learns from them",
    "open the file, read every line of it, and write the result to a folder",
    "numbers such as 1, 22 and 333 are split into pieces; so are (brackets) and dots.",
    "where the model is small, the tokenizer is small too, but it is a real one",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_tokenizer(
    folder: Path,
    *,
    kind: Literal["bpe", "wordpiece"] = "bpe",
    texts: Iterable[str] = CORPUS,
    vocab_size: int = BPE_ENTRIES,
    model_max_length: int = 128,
) -> Any:
    """Trains a tokenizer on `texts`, saves it in `folder` and returns it as `PreTrainedTokenizerFast`.

    `bpe` is the byte-level kind of GPT-2 and Llama 3: every text can be encoded, so it has at least 259 entries, and
    there is a chat template. `wordpiece` is the kind of BERT.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer, specials = _byte_level_bpe(texts, vocab_size) if kind == "bpe" else _word_piece(texts, vocab_size)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=model_max_length, **specials)
    if kind == "bpe":
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return fast


def _byte_level_bpe(texts: Iterable[str], vocab_size: int) -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer, specials


def _word_piece(texts: Iterable[str], vocab_size: int) -> tuple[Any, dict[str, str]]:
    """Characters, their continuations, then the most frequent words: the library's trainer orders ids at random."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)) if len(word) > 1
    )
    characters = string.ascii_lowercase + string.digits + string.punctuation
    frequent = sorted(words, key=lambda word: (-words[word], word))
    pieces = [*names.values(), *characters, *(f"##{character}" for character in characters), *frequent][:vocab_size]
    tokenizer = Tokenizer(models.WordPiece({piece: id_ for id_, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, pieces.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer, {f"{name}_token": token for name, token in names.items()}


def _write(
    folder: Path, model_class: Any, config_class: Any, tokenizer: Any, settings: dict[str, Any], seed: int
) -> Path:
    import torch

    settings = {"vocab_size": len(tokenizer)} | settings
    if settings["vocab_size"] < len(tokenizer):
        raise ValueError(f"vocab_size {settings['vocab_size']} is smaller than the tokenizer's {len(tokenizer)}")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shards = {"max_shard_size": settings.pop("max_shard_size", "1GB")}
        model_class(config_class(**ids | settings)).eval().save_pretrained(folder, **shards)
    return folder


def tiny_llama(folder: Path, *, seed: int = 0, tokenizer_texts: Iterable[str] = CORPUS, **sizes: Any) -> Path:
    """A `LlamaForCausalLM` of 29,000 weights: 2 layers, hidden 32, 4 heads, 2 KV heads, a byte-level BPE."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(folder, texts=tokenizer_texts, vocab_size=sizes.get("vocab_size", BPE_ENTRIES))
    defaults = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    return _write(folder, LlamaForCausalLM, LlamaConfig, tokenizer, defaults | sizes, seed)


def tiny_gpt2(folder: Path, *, seed: int = 0, tokenizer_texts: Iterable[str] = CORPUS, **sizes: Any) -> Path:
    """A `GPT2LMHeadModel` of 40,000 weights: 2 layers, hidden 32, 4 heads, a byte-level BPE."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer(folder, texts=tokenizer_texts, vocab_size=sizes.get("vocab_size", BPE_ENTRIES))
    defaults = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    return _write(folder, GPT2LMHeadModel, GPT2Config, tokenizer, defaults | sizes, seed)


def tiny_bert(
    folder: Path,
    *,
    num_labels: int | None = None,
    head: Literal["SequenceClassification", "TokenClassification", "MaskedLM"] | None = None,
    seed: int = 0,
    tokenizer_texts: Iterable[str] = CORPUS,
    **sizes: Any,
) -> Path:
    """A BERT of 30,000 weights: 2 layers, hidden 32, 4 heads, a WordPiece vocabulary.

    With `num_labels` a `BertForSequenceClassification`, unless `head` says otherwise; without either, a bare
    `BertModel`, as sentence encoders are stored.
    """
    import transformers

    tokenizer = tiny_tokenizer(
        folder, kind="wordpiece", texts=tokenizer_texts, vocab_size=sizes.get("vocab_size", WORDPIECE_ENTRIES)
    )
    defaults = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    if num_labels is not None:
        defaults["num_labels"] = num_labels
    head = head or (None if num_labels is None else "SequenceClassification")
    model_class = transformers.BertModel if head is None else getattr(transformers, f"BertFor{head}")
    return _write(folder, model_class, transformers.BertConfig, tokenizer, defaults | sizes, seed)


def tiny_gguf(path: Path, *, layers: int = 2, hidden_size: int = 32, tokens: Iterable[str] = ("<s>", "a", "b")) -> Path:
    """A sound GGUF with the metadata, vocabulary and some tensors of a Llama: for reading, not for running."""
    import gguf
    import numpy

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_embedding_length(hidden_size)
    writer.add_feed_forward_length(2 * hidden_size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(tokens))
    random = numpy.random.default_rng(0)
    for layer in range(layers):
        for name in ("attn_q", "attn_output"):
            weights = random.normal(size=(hidden_size, hidden_size)).astype(numpy.float32)
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights)
    weights = random.normal(size=(hidden_size, hidden_size)).astype(numpy.float32)
    quantized = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
