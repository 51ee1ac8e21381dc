"""Deep supervision: what exits learn, against logits that are made by hand, and runs in which they do."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cached_jobs import Job, job, sure_models
from entrenar_core import parse_config
from entrenar_core.data.collating import Batch
from entrenar_core.errors import ConfigError, EntrenarError
from entrenar_core.models.loading import load_model
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.training.assembly import make_accelerator, make_student
from entrenar_core.training.exit_terms import ExitTerm
from entrenar_core.training.losses import make_objective
from entrenar_core.training.preparing import prepare
from entrenar_core.training.step import DistillationStep
from entrenar_distill.cli import main
from tiny_jobs import Models, build_models, classification, merged, write_config, write_rows
from tiny_models import tiny_bert, tiny_llama
from watched_runs import run, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return sure_models(tmp_path_factory.mktemp("sure"))


@pytest.fixture(scope="module")
def deep(sure: Models) -> str:
    """A student with layers inside."""
    return str(tiny_llama(sure.llama.parent / "deep", num_hidden_layers=3, seed=7, initializer_range=0.2))


def with_exits(file: Job, deep: str, **exits: Any) -> Job:
    return merged(file, {"distillation": {"exits": exits}}) | {"student": {"model_id": deep}}


def stepped(file: Job) -> tuple[DistillationStep, Batch, LiveTeacher]:
    prepared = prepare(parse_config(file))
    model = load_model(prepared.teacher, prepared.task, label_names=prepared.label_names)
    live = LiveTeacher(model, make_accelerator(prepared.config), prepared.counting, prepared.output_layer(model))
    student = make_student(prepared, model)
    objective = make_objective(prepared.terms, prepared, student, live)
    step = DistillationStep(student, objective, prepared.output_layer(student)).eval()
    return step, prepared.collator([prepared.train_tokens[index] for index in range(6)]), live


def term_and_total(step: DistillationStep, batch: Batch, live: LiveTeacher) -> tuple[ExitTerm, Tensor]:
    """The exits' part of the loss alone, before its weight, with a graph."""
    now = step.objective.at(0, 10, step.objective.counts([batch]))
    only = [present if index == len(now) - 1 else type(present)(0.0, 1.0, 0) for index, present in enumerate(now)]
    found = step(batch, live.listening(step.objective.wants(1))(batch), only)
    term = step.objective.exits[0]
    return term, found.loss / now[-1].weight


def by_hand(step: DistillationStep, term: ExitTerm, batch: Batch, layer: int) -> Tensor:
    """The logits of an exit at the positions that count, (N, V), in the model's own way."""
    output = step.student(
        input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, output_hidden_states=True
    )
    given = term.exits[term.layers.index(layer)](output.hidden_states[layer + 1])
    if step.output is not None:
        logits = step.student.get_output_embeddings()(given)
        return step.objective.counting.rows(logits, batch)
    mask = batch.attention_mask_BT.unsqueeze(-1)
    return (given * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize(
    "exits",
    [
        {"learn_from": "final"},
        {"learn_from": "teacher", "layers": [1], "temperature": 3.0},
        {"learn_from": "teacher", "divergence": "reverse_kl", "weight": 0.7},
        {"learn_from": "labels"},
    ],
)
@pytest.mark.parametrize("classes", [False, True])
def test_the_loss_of_exits_is_that_of_their_own_logits(
    exits: Job, classes: bool, sure: Models, deep: str, tmp_path: Path
) -> None:
    if classes:
        models = build_models(tmp_path / "models")
        student = tiny_bert(tmp_path / "deep", num_labels=2, num_hidden_layers=3, seed=4, initializer_range=0.2)
        file = with_exits(classification(models, tmp_path), str(student), **exits)
    else:
        file = with_exits(job(sure, tmp_path), deep, **exits)
    step, batch, live = stepped(file)
    term, total = term_and_total(step, batch, live)
    counting, temperature = step.objective.counting, exits.get("temperature", 2.0)
    labels_N = counting.labels(batch)
    output = step.student(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT)
    final = counting.rows(output.logits[..., : counting.vocabulary], batch).detach()
    target = final if exits["learn_from"] == "final" else live.rows(batch).of(slice(None))
    p = (target / temperature).softmax(-1)
    expected = []
    for layer in exits.get("layers", [0, 1]):
        logits = by_hand(step, term, batch, layer)[:, : target.shape[-1]]
        q = (logits / temperature).log_softmax(-1)
        if exits["learn_from"] == "labels":
            expected.append(cross_entropy(logits, labels_N, ignore_index=-100))
        elif exits.get("divergence") == "reverse_kl":
            expected.append((q.exp() * (q - p.log())).sum(-1).mean() * temperature**2)
        else:
            expected.append((p * (p.log() - q)).sum(-1).mean() * temperature**2)
    mean = torch.stack(expected).mean()
    torch.testing.assert_close(total, mean, rtol=1e-4, atol=1e-5)
    parameters = [parameter for parameter in step.parameters() if parameter.requires_grad]
    ours, theirs = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (total, mean))
    for parameter, mine, other in zip(parameters, ours, theirs, strict=True):
        mine, other = (torch.zeros_like(parameter) if one is None else one for one in (mine, other))
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_exits_learn_and_are_not_part_of_the_result(sure: Models, deep: str, tmp_path: Path) -> None:
    for learn_from in ("final", "teacher", "labels"):
        file = with_exits(job(sure, tmp_path, training={"epochs": 8}), deep, learn_from=learn_from, weight=1.0)
        _, watch = run(file)
        told = [step.losses["exits"] for step in watch.steps]
        assert sum(told[-5:]) < 0.8 * sum(told[:5])
        assert not [name for name in weights(tmp_path) if "exit" in name]


def test_masked_words_and_tagged_ones_have_exits_too(tmp_path: Path) -> None:
    teacher = tiny_bert(tmp_path / "teacher", head="MaskedLM", initializer_range=0.4)
    student = tiny_bert(tmp_path / "student", head="MaskedLM", num_hidden_layers=2, seed=3)
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"{n} the fox jumps over the dog"} for n in range(40)])
    file: Job = {
        "teacher": {"model_id": str(teacher)},
        "student": {"model_id": str(student)},
        "distillation": {"exits": {"learn_from": "teacher"}},
        "dataset": {"path": str(rows), "max_length": 16},
        "training": {"epochs": 4, "batch_size": 8, "learning_rate": 0.01},
        "output": {"dir": str(tmp_path / "out")},
    }
    _, watch = run(file)
    assert watch.steps[-1].losses["exits"] < watch.steps[0].losses["exits"]


def test_a_cut_of_the_batch_changes_nothing(sure: Models, deep: str, tmp_path: Path) -> None:
    results = []
    for size, passes in ((8, 1), (2, 4)):
        training = {"max_steps": 3, "batch_size": size, "gradient_accumulation": passes}
        file = with_exits(job(sure, tmp_path, training=training), deep, learn_from="final", weight=1.0)
        results.append([step.loss for step in run(file)[1].steps])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_exits_that_are_not_enabled_take_no_part(sure: Models, deep: str, tmp_path: Path) -> None:
    _, watch = run(with_exits(job(sure, tmp_path, training={"max_steps": 1}), deep, enabled=False))
    assert "exits" not in watch.steps[0].losses


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ({"layers": [2]}, "layer 2 of the student is the last, which answers anyway"),
        ({"layers": [5]}, "layer 5 of the student is not there: it has 3"),
        ({"layers": []}, "should be a list of layers"),
        ({"learn_from": "me"}, "did you mean|choose"),
    ],
)
def test_exits_that_cannot_be_are_refused(
    exits: Job, message: str, sure: Models, deep: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = with_exits(job(sure, tmp_path), deep, **exits)
    with pytest.raises(EntrenarError):
        run(file)
    assert main(["validate", str(write_config(tmp_path / "job.yaml", file))]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_sentence_encoders_have_none(tmp_path: Path) -> None:
    teacher = tiny_bert(tmp_path / "teacher", seed=1)
    file: Job = {
        "task": "embedding",
        "teacher": {"model_id": str(teacher)},
        "student": {"init_from": {"hidden_size": 16}},
        "distillation": {"exits": {}},
        "dataset": {"path": str(write_rows(tmp_path / "rows.jsonl")), "max_length": 24},
        "output": {"dir": str(tmp_path / "out")},
    }
    with pytest.raises(ConfigError, match="the task embedding compares vectors"):
        run(file)
