"""Advisors: errors of quantisation against bitsandbytes' own, gradients against autograd, ranks of known spectra."""

from pathlib import Path
from typing import Any

import pytest
import torch

from entrenar_common.progress import Progress
from entrenar_core.errors import UsageError
from entrenar_lora.advising import advise
from entrenar_lora.advising.gradients import Gradients, directions, gradients_of, module_advice, rank_advice
from entrenar_lora.advising.quantisation import GAUSSIAN_NF4, errors_of, quantisation_advice
from entrenar_lora.planning import Wanted, plan
from entrenar_lora.resolving import resolved
from tiny_models import tiny_llama

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}


def test_gaussian_weights_are_off_by_what_is_known() -> None:
    found = errors_of(torch.randn(512, 512, generator=torch.Generator().manual_seed(0)))
    assert found["nf4"] == pytest.approx(GAUSSIAN_NF4, rel=0.03)
    assert found["fp4"] == pytest.approx(0.122, rel=0.05)
    assert found["int8"] < 0.02


def test_weights_that_stand_out_spoil_their_blocks() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    weight[:, ::64] *= 40
    plain = weight.clone()
    plain[:, ::64] /= 40
    spoilt = torch.linalg.vector_norm(plain[:, 1:]) / torch.linalg.vector_norm(weight)
    assert errors_of(weight)["nf4"] > 2 * float(spoilt) * errors_of(plain)["nf4"]


def test_the_rows_of_8_bits_are_those_of_bitsandbytes() -> None:
    from bitsandbytes import functional

    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(1)).half().float()
    packed, scales, _ = functional.int8_vectorwise_quant(weight.half())
    back = functional.int8_vectorwise_dequant(packed, scales)
    length = torch.linalg.vector_norm(weight)
    expected = float(torch.linalg.vector_norm(back - weight) / length)
    assert errors_of(weight)["int8"] == pytest.approx(expected, rel=0.02)


def test_every_matrix_that_would_be_quantised_is_measured(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, **SIZES)
    found = quantisation_advice(resolved(str(folder)))
    assert found.measured
    assert found.matrices == 14
    assert found.overall["int8"] < found.overall["nf4"] < found.overall["fp4"]
    assert len(found.worst) == 3
    assert found.says


def test_of_a_configuration_alone_nothing_is_measured() -> None:
    found = quantisation_advice(resolved("7B"))
    assert not found.measured
    assert found.why_not == "the weights are not at hand"
    with Progress() as progress, pytest.raises(UsageError, match="only its configuration"):
        advise(resolved("7B"), "stdlib-docstrings", 4, 16, progress, gradients=True)


@pytest.mark.parametrize(("energy", "expected"), [(0.5, 1), (0.9, 2), (0.95, 3), (1.0, 3)])
def test_directions_are_those_of_the_spectrum(energy: float, expected: int) -> None:
    """Squares are 64, 29 and 7 of 100."""
    q, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    matrix = q[:, :3] @ torch.diag(torch.tensor([64.0, 29.0, 7.0], dtype=torch.float64).sqrt()) @ q[:3]
    assert directions(matrix, energy) == expected


def test_modules_are_told_by_their_gradients_and_a_rank_holds_for_most() -> None:
    torch.manual_seed(0)
    low = torch.randn(16, 2) @ torch.randn(2, 16)
    found = Gradients(3, {
        "model.layers.0.self_attn.q_proj": low, "model.layers.1.self_attn.q_proj": low,
        "model.layers.0.mlp.up_proj": 0.01 * torch.randn(32, 16), "model.layers.1.mlp.up_proj": torch.zeros(32, 16),
    })  # fmt: skip
    modules = module_advice(found)
    assert modules.suggested == ("q_proj",)
    assert [(one.name, one.matrices, one.parameters) for one in modules.scores] == [
        ("q_proj", 2, 512), ("up_proj", 2, 1024),
    ]  # fmt: skip
    norm = float(torch.linalg.vector_norm(torch.stack([low, low])))
    assert modules.scores[0].gradient_norm == pytest.approx(norm)
    rank = rank_advice(Gradients(3, {name: one for name, one in found.matrices.items() if "q_proj" in name}))
    assert rank.largest <= 2
    assert rank.suggested in (1, 2)


def test_gradients_are_those_of_autograd(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path, **SIZES)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}, {"input_ids": [9, 10, 11], "labels": [9, 10, 11]}]
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        model(input_ids=ids, labels=ids).loss.backward()
    expected = {name: module.weight.grad for name, module in model.named_modules() if name.endswith("_proj")}
    found = gradients_of(AutoModelForCausalLM.from_pretrained(folder).eval(), rows, "causal-lm", None)
    assert found.rows == 2
    assert sorted(found.matrices) == sorted(expected)
    for name, grad in found.matrices.items():
        torch.testing.assert_close(grad, expected[name])


def test_sample_rows_decide_what_was_left_open(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", **SIZES)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "row {number} says something of its own"}}\n' for number in range(12)))
    wanted = Wanted(
        vram="2GB", dataset=str(rows), sample=4, sequence_length=16, batch_size=1, method="lora", quality="fast"
    )
    found = plan(str(folder), wanted)
    assert found.advice is not None
    assert found.advice.modules is not None
    assert found.advice.rank is not None
    assert found.chosen is not None
    assert set(found.chosen.modules) == set(found.advice.modules.suggested)
    assert found.chosen.rank is not None
    assert found.chosen.rank <= max(4, found.advice.rank.suggested)
