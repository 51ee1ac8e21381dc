"""Quantised and spread models: every weight accounted for, codes as in the papers, numbers as of the whole model."""

import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import norm
from torch import nn

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import ModelError
from entrenar_core.models.calling import logits_of
from entrenar_core.models.loading import load_model
from entrenar_core.models.output_layer import output_layer_of
from entrenar_core.models.placing import Placing, is_quantized, is_spread, linear_layers, placed
from entrenar_core.models.recording import recording
from entrenar_core.training.assembly import shares_gpus
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama

CPU = torch.device("cpu")
CAUSAL, CLASSES = "causal-lm", "sequence-classification"
IDS_BT = torch.tensor([[5, 9, 100, 7, 8, 6, 4], [8, 3, 3, 20, 0, 0, 0]])
MASK_BT = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
PARTS = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "disk"}
SPLIT = {**PARTS, "model.rotary_emb": "cpu", "lm_head": "cpu"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_llama(folder / "llama", hidden_size=64, intermediate_size=128, initializer_range=0.1)
    tiny_gpt2(folder / "gpt2", n_embd=64, initializer_range=0.1)
    tiny_bert(folder / "bert", num_labels=3, hidden_size=64, intermediate_size=128, initializer_range=0.1)
    tiny_llama(folder / "narrow", intermediate_size=48)
    return folder


def load(folder: Path, task: str = CAUSAL, load_in: str | None = None, device_map: Any = None, **more: Any) -> Any:
    return load_model(inspect_folder(folder), task, placing=Placing(load_in, device_map, CPU), **more)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(model, IDS_BT, MASK_BT)


def nf4() -> numpy.ndarray[Any, Any]:
    """Dettmers et al. 2023, appendix E: quantiles of the normal distribution, eight above zero and seven below."""
    offset = 0.5 * (1 - 1 / 30 + 1 - 1 / 32)
    above = norm.ppf(numpy.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(numpy.linspace(offset, 0.5, 8)[:-1])
    found = numpy.sort(numpy.concatenate([above, [0.0], below]))
    return found / found.max()


FP4 = numpy.array([0, 0.0052, 0.6667, 1, 0.3333, 0.5, 0.1667, 0.25])
CODES = {"nf4": nf4(), "fp4": numpy.sort(numpy.concatenate([-FP4, FP4]))}


def rounded(weight: torch.Tensor, load_in: str) -> torch.Tensor:
    """What a weight is after quantisation: of 4 bits, in blocks of 64; of 8, by rows."""
    if load_in == "int8":
        scale = weight.abs().amax(-1, keepdim=True) / 127
        return (weight / scale).round() * scale
    blocks = weight.double().numpy().reshape(-1, 64)
    largest = numpy.abs(blocks).max(-1, keepdims=True)
    code = CODES[load_in]
    nearest = numpy.abs((blocks / largest)[..., None] - code).argmin(-1)
    return torch.tensor(code[nearest] * largest).float().reshape(weight.shape)


@pytest.mark.parametrize(("load_in", "tolerance"), [("nf4", 0.02), ("fp4", 0.02), ("int8", 0.03)])
@pytest.mark.parametrize(("name", "task"), [("llama", CAUSAL), ("gpt2", CAUSAL), ("bert", CLASSES)])
def test_a_quantised_model_is_the_model_with_rounded_weights(
    models: Path, name: str, task: str, load_in: str, tolerance: float, capfd: pytest.CaptureFixture[str]
) -> None:
    """To the precision at which bitsandbytes computes, which is 16 bits on some machines."""
    quantised = load(models / name, task, load_in)
    expected = load_model(inspect_folder(models / name), task)
    layers = [layer for layer, chosen in linear_layers(expected) if chosen]
    assert len(layers) == {"llama": 14, "gpt2": 8, "bert": 12}[name]
    for layer in layers:
        weight = expected.get_submodule(layer).weight
        turned = name == "gpt2"  # whose layers hold the matrix the other way round
        value = rounded((weight.T if turned else weight).detach().contiguous(), load_in)
        weight.data = value.T if turned else value
    whole = logits(load_model(inspect_folder(models / name), task))
    found, rounded_BTV = logits(quantised), logits(expected)
    assert capfd.readouterr() == ("", "")
    assert (found - rounded_BTV).norm() < tolerance * rounded_BTV.norm()
    if load_in != "int8":
        assert (found - whole).norm() > 2 * (found - rounded_BTV).norm(), "it is quantised"
    assert is_quantized(quantised)
    assert quantised.num_parameters() == expected.num_parameters()


def test_heads_embeddings_and_norms_are_not_quantised(models: Path) -> None:
    for name, task in (("llama", CAUSAL), ("bert", CLASSES)):
        quantised, whole = load(models / name, task, "nf4"), load_model(inspect_folder(models / name), task)
        chosen = {f"{layer}.weight" for layer, inside in linear_layers(whole) if inside}
        for weight, value in whole.state_dict().items():
            assert weight in chosen or torch.equal(quantised.state_dict()[weight], value), weight
    assert "classifier.weight" not in chosen


def test_the_output_layer_of_a_quantised_model_makes_its_logits(models: Path) -> None:
    assert output_layer_of(load(models / "llama", load_in="nf4"), IDS_BT, MASK_BT) is not None


def test_a_weight_that_is_missing_or_left_over_is_an_error_when_quantised(models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "llama", tmp_path / "llama"))
    weights = load_file(folder / "model.safetensors")
    gone = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for placing in ({"load_in": "nf4"}, {"load_in": "int8"}, {"device_map": SPLIT}):
        with pytest.raises(ModelError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
            load(folder, **placing)
    more = {"model.layers.1.mlp.up_proj.weight": gone, "model.layers.7.mlp.up_proj.weight": gone.clone()}
    save_file(weights | more, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"have, and the model does not, model\.layers\.7"):
        load(folder, load_in="nf4")


def test_a_model_that_is_too_narrow_says_so(models: Path) -> None:
    with pytest.raises(ModelError, match="no linear layer that"):
        load(models / "narrow", load_in="nf4")


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential", "cpu", {"": "cpu"}, SPLIT])
def test_a_model_says_the_same_wherever_its_parts_are(
    models: Path, device_map: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    model, whole = load(models / "llama", device_map=device_map), load_model(inspect_folder(models / "llama"), CAUSAL)
    placed(model, CPU)
    assert torch.equal(logits(model), logits(whole))
    assert is_spread(model) is (device_map is SPLIT)
    with recording(model, hidden_layers=[0, 1], attention_layers=[0]) as record:
        logits(model)
    with recording(whole, hidden_layers=[0, 1], attention_layers=[0]) as expected:
        logits(whole)
    assert all(torch.equal(record.hidden[layer], expected.hidden[layer]) for layer in (0, 1))
    assert torch.equal(record.attention[0].queries_BHTd, expected.attention[0].queries_BHTd)
    assert capfd.readouterr() == ("", "")


def test_what_is_on_disk_is_not_in_memory(models: Path) -> None:
    model = load(models / "llama", device_map=SPLIT)
    logits(model)
    where = {name: weight.device.type for name, weight in model.named_parameters()}
    assert where["model.layers.0.mlp.up_proj.weight"] == where["model.norm.weight"] == "meta"
    assert where["model.layers.1.mlp.up_proj.weight"] == "cpu"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"model": "cpu", "lm_hed": "cpu"}, "has no module lm_hed"),
        ({"model.layers": "cpu"}, r"says no place for model\.embed_tokens\.weight .*, and 1 others"),
        ({"": "disk"}, r"lm_head\.weight and model\.embed_tokens\.weight .* cannot be on disk"),
        ({"": 97}, "names cuda:97, and this machine has"),
        ({"": "cuda:97"}, "names cuda:97, and this machine has"),
    ],
)
def test_a_table_that_does_not_fit_the_model_or_the_machine_is_refused(models: Path, table: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said) as refused:
        load(models / "llama", device_map=table)
    assert refused.value.hint


def test_processes_do_not_share_gpus_with_each_other() -> None:
    assert shares_gpus("auto", 2, 2)
    assert shares_gpus({"model": 0, "lm_head": "cpu"}, 2, 1)
    assert not shares_gpus("auto", 1, 8)
    assert not shares_gpus("auto", 2, 0)
    assert not shares_gpus("cpu", 2, 8)
    assert not shares_gpus({"": "cpu"}, 2, 8)
    assert not shares_gpus(None, 2, 8)
