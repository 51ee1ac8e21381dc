"""The probe against scipy's minimum of the same objective, and embeddings that depend on the texts alone."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import scipy.optimize
import scipy.special
import torch
from safetensors.torch import save_file
from torch import Tensor

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import DataError, ModelError, OutputError
from entrenar_core.models.loading import load_model
from entrenar_core.models.tokenizers import load_tokenizer
from entrenar_core.teachers import probe as probing
from entrenar_core.teachers.probe import STRENGTHS, Probe, ProbeClassifier, embed, fit_probe, load_probe, save_probe
from tiny_models import CORPUS, tiny_bert, tiny_gpt2

TEXTS = [*CORPUS, "", "a", *(text[: 3 * cut] for cut, text in enumerate(CORPUS, start=2)), "a"]


@pytest.fixture(scope="module", params=[tiny_bert, tiny_gpt2])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    artifact = inspect_folder(request.param(tmp_path_factory.mktemp("encoder") / "model"))
    model = load_model(artifact, "sequence-classification", seed=0)
    return model.base_model, load_tokenizer(artifact)


def embedded(encoder: tuple[Any, Any], texts: list[str], batch_size: int = 4, max_length: int = 32) -> Tensor:
    return embed(*encoder, texts, batch_size=batch_size, max_length=max_length, device="cpu")


def clusters(rows: int = 60, classes: int = 4, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    rows_NH = centres[labels] + 0.7 * torch.randn(rows, width, generator=generator)
    return torch.nn.functional.normalize(rows_NH, dim=-1), labels


def test_an_embedding_is_the_mean_over_the_texts_own_tokens(encoder: tuple[Any, Any]) -> None:
    body, tokenizer = encoder
    found = embedded(encoder, TEXTS)
    for text, embedding in zip(TEXTS, found, strict=True):
        ids = tokenizer(text, truncation=True, max_length=32)["input_ids"] or [tokenizer.pad_token_id]
        with torch.no_grad():
            hidden = body(input_ids=torch.tensor([ids])).last_hidden_state[0]
        mean = hidden.double().mean(0)
        torch.testing.assert_close(embedding.double(), mean / mean.norm(), atol=2e-6, rtol=0)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_the_order_of_the_texts_changes_no_bit(encoder: tuple[Any, Any]) -> None:
    order = torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = embedded(encoder, [TEXTS[row] for row in order])
    assert torch.equal(shuffled, embedded(encoder, TEXTS)[order])


def test_batches_and_the_longest_length_are_honoured(encoder: tuple[Any, Any]) -> None:
    widths: list[tuple[int, int]] = []
    body = encoder[0]
    hook = body.register_forward_pre_hook(
        lambda _, __, named: widths.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    embedded(encoder, TEXTS, batch_size=5, max_length=9)
    hook.remove()
    assert [rows for rows, _ in widths] == [5, 5, 3]
    assert widths == sorted(widths, key=lambda shape: shape[1])
    assert widths[-1][1] == 9


def test_dropout_is_off_while_embedding_and_the_mode_stays(encoder: tuple[Any, Any]) -> None:
    body = encoder[0].train()
    assert torch.equal(embedded(encoder, TEXTS), embedded(encoder, TEXTS))
    assert body.training
    body.eval()
    embedded(encoder, TEXTS)
    assert not body.training


def test_embeddings_that_are_no_numbers_and_no_texts_are_errors(encoder: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="no texts"):
        embedded(encoder, [])
    weight = encoder[0].get_input_embeddings().weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="finite"):
        embedded(encoder, TEXTS)
    with torch.no_grad():
        weight.copy_(kept)


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_the_fit_is_the_minimum_that_scipy_finds(l2: float) -> None:
    rows_NH, labels_N = clusters()
    x = numpy.hstack([rows_NH.double().numpy(), numpy.ones((60, 1))])
    one_hot = numpy.eye(4)[labels_N.numpy()]

    def objective(flat: numpy.ndarray) -> tuple[float, numpy.ndarray]:
        weight = flat.reshape(4, 7)
        scores = x @ weight.T
        value = (scipy.special.logsumexp(scores, axis=1) - (scores * one_hot).sum(1)).mean() + l2 / 2 * (flat**2).sum()
        slope = (scipy.special.softmax(scores, axis=1) - one_hot).T @ x / len(x) + l2 * weight
        return float(value), slope.ravel()

    best = scipy.optimize.minimize(objective, numpy.zeros(28), jac=True, method="BFGS", options={"gtol": 1e-10})
    probe = fit_probe(rows_NH, labels_N, 4, l2=l2, seed=0)
    found = numpy.hstack([probe.weight_CH.numpy(), probe.bias_C.numpy()[:, None]])
    assert found == pytest.approx(best.x.reshape(4, 7), rel=1e-4, abs=1e-5)
    assert probe.l2 == l2
    assert probe.weight_CH.dtype == probe.bias_C.dtype == torch.float32


def test_cross_validation_takes_the_penalty_with_the_best_likelihood_of_unseen_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strengths = STRENGTHS[:9]
    monkeypatch.setattr(probing, "STRENGTHS", strengths)
    rows_NH, labels_N = clusters(rows=80)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    likelihood = dict.fromkeys(strengths, 0.0)
    for fold in order.chunk(5):
        rest = torch.tensor([row for row in range(80) if row not in fold.tolist()])
        for l2 in strengths:
            probe = fit_probe(rows_NH[rest], labels_N[rest], 4, l2=l2, seed=0)
            scores = (rows_NH[fold] @ probe.weight_CH.T + probe.bias_C).double().numpy()
            chosen = scipy.special.log_softmax(scores, axis=1)[range(len(fold)), labels_N[fold].numpy()]
            likelihood[l2] += chosen.sum()
    best = max(likelihood, key=lambda l2: likelihood[l2])
    assert strengths[0] > best > strengths[-1], "the example should have its best penalty inside the grid"
    assert fit_probe(rows_NH, labels_N, 4, seed=3).l2 == best


def test_labels_that_say_nothing_get_the_strongest_penalty() -> None:
    rows_NH = clusters(rows=200)[0]
    noise_N = torch.randint(4, (200,), generator=torch.Generator().manual_seed(9))
    assert fit_probe(rows_NH, noise_N, 4, seed=0).l2 >= 1e-2


def test_the_same_seed_gives_the_same_bits() -> None:
    rows_NH, labels_N = clusters()
    one, same = (fit_probe(rows_NH, labels_N, 4, seed=7) for _ in range(2))
    assert torch.equal(one.weight_CH, same.weight_CH)
    assert torch.equal(one.bias_C, same.bias_C)


def test_a_class_without_labelled_rows_is_improbable_and_finite() -> None:
    rows_NH, labels_N = clusters()
    for l2 in (None, 1e-6):
        probe = fit_probe(rows_NH, labels_N, 6, l2=l2, seed=0)
        assert probe.weight_CH.isfinite().all()
        assert probe.bias_C.isfinite().all()
        shares = (rows_NH @ probe.weight_CH.T + probe.bias_C).softmax(-1)
        assert shares[:, 4:].max() < 0.2
        assert (shares.argmax(-1) == labels_N).float().mean() > 0.8


@pytest.mark.parametrize(("labels", "l2"), [([], 0.1), ([1], None), ([0, 4], 0.1), ([-1, 0], 0.1)])
def test_labels_that_cannot_be_fitted_are_errors(labels: list[int], l2: float | None) -> None:
    with pytest.raises(DataError):
        fit_probe(torch.ones(len(labels), 3), torch.tensor(labels, dtype=torch.long), 4, l2=l2, seed=0)


def test_the_classifier_is_the_pipeline_in_one_model(encoder: tuple[Any, Any]) -> None:
    body, tokenizer = encoder
    found = embedded(encoder, TEXTS, batch_size=len(TEXTS))
    probe = fit_probe(found, torch.arange(len(TEXTS)) % 3, 3, l2=1e-4, seed=0)
    classifier = ProbeClassifier(body, probe).eval()
    tokenizer.padding_side = "right"
    texts = [text or tokenizer.pad_token for text in TEXTS] if not tokenizer("")["input_ids"] else TEXTS
    batch = tokenizer(texts, padding=True, return_tensors="pt", truncation=True, max_length=32)
    logits_BC = classifier(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(logits_BC, found @ probe.weight_CH.T + probe.bias_C, atol=1e-5, rtol=1e-5)
    assert logits_BC.shape == (len(TEXTS), 3)
    assert [name for name, _ in classifier.named_parameters() if not name.startswith("body.")] == [
        "weight_CH",
        "bias_C",
    ]


def test_a_saved_probe_comes_back_with_its_bits(tmp_path: Path) -> None:
    probe = fit_probe(*clusters(), 4, l2=1 / 3, seed=0)
    save_probe(probe, tmp_path / "probe.safetensors")
    back = load_probe(tmp_path / "probe.safetensors")
    assert torch.equal(back.weight_CH, probe.weight_CH)
    assert torch.equal(back.bias_C, probe.bias_C)
    assert back.l2 == probe.l2
    assert [file.name for file in tmp_path.iterdir()] == ["probe.safetensors"]


def test_a_file_that_is_no_probe_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "probe.safetensors"
    with pytest.raises(ModelError, match=r"probe\.safetensors"):
        load_probe(file)
    file.write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ModelError, match="no sound probe"):
        load_probe(file)
    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, file)
    with pytest.raises(ModelError, match="is no probe"):
        load_probe(file)
    save_probe(Probe(torch.zeros(2, 3), torch.zeros(5), 0.1), file)
    with pytest.raises(ModelError, match="do not fit"):
        load_probe(file)


def test_a_probe_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    for file in (tmp_path / "taken", tmp_path / "nowhere" / "probe.safetensors"):
        with pytest.raises(OutputError, match="cannot be written"):
            save_probe(Probe(torch.zeros(2, 3), torch.zeros(2), 0.1), file)
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
