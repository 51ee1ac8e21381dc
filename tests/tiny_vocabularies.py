"""Tiny models with the vocabulary of another one that was changed: other ids, more rows, other rules of splitting."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_ROWS = ("embed_tokens.weight", "lm_head.weight", "word_embeddings.weight")


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object], *, of: Path | None = None) -> Path:
    """The folder, or a copy of another one in its place, with `change` made to the content of tokenizer.json."""
    if of is not None:
        shutil.copytree(of, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def renumbered(source: Path, target: Path, place: Mapping[int, int], *, rows: int | None = None) -> Path:
    """A copy of a model that gives the token `id` the id `place[id]`, and says the same of every text.

    Its embedding and head have `rows` rows, by default up to the highest id; those of no token are random and large.
    """
    import torch
    from safetensors.torch import load_file, save_file

    def renumber(content: dict[str, Any]) -> None:
        content["model"]["vocab"] = {token: place[id_] for token, id_ in content["model"]["vocab"].items()}
        for token in content["added_tokens"]:
            token["id"] = place[token["id"]]
        for token in (content["post_processor"] or {}).get("special_tokens", {}).values():
            token["ids"] = [place[id_] for id_ in token["ids"]]

    edit_tokenizer(target, renumber, of=source)
    rows = rows or max(place.values()) + 1
    weights = load_file(target / "model.safetensors")
    old, new = (torch.tensor(ids) for ids in zip(*place.items(), strict=True))
    for name, tensor in weights.items():
        if name.endswith(_ROWS):
            weights[name] = 9 * torch.randn(rows, tensor.shape[1], generator=torch.Generator().manual_seed(3))
            weights[name][new] = tensor[old]
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config[name] = None if config.get(name) is None else place[config[name]]
    (target / "config.json").write_text(json.dumps(config | {"vocab_size": rows}), encoding="utf-8")
    (target / "generation_config.json").unlink(missing_ok=True)
    return target


def shuffled(size: int, *, seed: int = 0) -> dict[int, int]:
    """Every id below `size` at another place."""
    import random

    places = list(range(size))
    random.Random(seed).shuffle(places)
    return dict(enumerate(places))
