"""`validate` finds what `run` would refuse, at its place, and nothing that `run` would take."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrenar_core.config import parse_config
from entrenar_core.errors import ConfigError, EntrenarError, Problem
from entrenar_core.training.distillation import plan
from entrenar_distill.assembly import assemble
from entrenar_distill.reports import Check, Vocabulary, VocabularySide
from entrenar_distill.validation import validate
from hub_server import HubServer
from tiny_jobs import Models, classification, language, write_rows
from tiny_models import tiny_bert, tiny_gguf, tiny_llama
from tiny_vocabularies import edit_tokenizer, renumbered, shuffled

Job = dict[str, Any]
PROBE = "`teacher.finetune: {method: probe}`"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a head, as sentence encoders are stored."""
    return tiny_bert(tmp_path_factory.mktemp("encoder") / "encoder")


def problems(job: Job, *settings: str, file: Path) -> list[Problem]:
    """What is found in a job that is written as a YAML file of one setting per line."""
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    with pytest.raises(ConfigError) as found:
        checks(file, *settings)
    return [
        Problem(problem.message, problem.hint, (problem.where or "").replace(f"{file.parent}/", ""))
        for problem in found.value.problems
    ]


def checks(file: Path, *settings: str) -> dict[str, Check]:
    loaded = assemble(file, settings, {})
    report = validate(loaded.config, str(file), loaded.places)
    names = [check.name for check in report.checks]
    assert len(set(names)) == len(names)
    return dict(zip(names, report.checks, strict=True))


def checks_of(job: Job) -> dict[str, Check]:
    return {check.name: check for check in validate(parse_config(job), "job").checks}


def refusal(job: Job) -> EntrenarError:
    """What a run says of the job."""
    with pytest.raises(EntrenarError) as refused:
        plan(parse_config(job))
    return refused.value


def test_a_teacher_without_a_head_is_found_as_by_the_run(encoder: Path, models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, teacher={"model_id": str(encoder)}) | {"task": "sequence-classification"}
    (problem,) = problems(job, file=tmp_path / "c.yaml")
    assert problem.where == "c.yaml:2:3"
    assert problem.message == f"`teacher.model_id`: {refusal(job).message}"
    assert problem.hint == refusal(job).hint == f"fit it first: {PROBE}"
    assert problems({**job, "distillation": {"alpha": 0}}, file=tmp_path / "c.yaml"), (
        "it is compared with the student all the same"
    )
    assert checks_of({**job, "teacher": {**job["teacher"], "finetune": {"method": "probe"}}})


def test_a_task_that_cannot_be_told_is_not_guessed(encoder: Path, models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, teacher={"model_id": str(encoder)})
    (problem,) = problems(job, file=tmp_path / "c.yaml")
    assert (problem.where, problem.message, problem.hint) == ("c.yaml", refusal(job).message, refusal(job).hint)
    assert PROBE in str(problem.hint)
    assert "`task: causal-lm`" in str(problem.hint)
    job["student"] = {"model_id": str(models.small_classifier)}
    assert [problem.hint for problem in problems(job, file=tmp_path / "c.yaml")] == [f"fit it first: {PROBE}"]


def test_a_fitted_teacher_is_one_of_classes_and_of_rows_at_hand(encoder: Path, models: Models, tmp_path: Path) -> None:
    job = language(models, tmp_path, teacher={"finetune": {"method": "probe"}})
    del job["task"]
    (problem,) = problems(job, file=tmp_path / "c.yaml")
    assert problem.message == "`teacher.finetune` fits a classifier, and the task is causal-lm"
    assert problem.where == "c.yaml:3:3"
    job = classification(models, tmp_path, teacher={"model_id": str(encoder), "finetune": {"method": "probe"}})
    job["dataset"] |= {"streaming": True, "eval_rows": 4}
    (problem,) = problems(job, file=tmp_path / "c.yaml")
    assert problem.hint == "remove `dataset.streaming`"


def test_a_model_of_the_hub_that_says_nothing_leads_to_no_problem(
    hub: HubServer, models: Models, tmp_path: Path
) -> None:
    gguf = tiny_gguf(tmp_path / "x.gguf").read_bytes()
    hub.add("org/quantized", {"x.gguf": gguf, "config.json": b"{}"})
    hub.add("org/encoder", {"model.safetensors": b"x", "config.json": b'{"model_type": "bert"}'})
    labelled = {"dataset": {"label_column": "label", "labelled_rows": 8}}
    job = classification(models, tmp_path, **labelled, teacher={"model_id": "org/quantized"})
    found = checks_of(job)
    assert {name for name, check in found.items() if check.status == "skipped"} == {"teacher", "columns"}
    assert "hangs on the task" in found["columns"].detail
    with pytest.raises(ConfigError, match="the task cannot be told"):
        checks_of(classification(models, tmp_path, teacher={"model_id": "org/encoder"}))
    hub.refuses_with = 503
    assert checks_of(classification(models, tmp_path, **labelled, teacher={"model_id": "org/encoder"}))


def test_the_weights_that_a_run_would_fetch_are_looked_up(hub: HubServer, models: Models, tmp_path: Path) -> None:
    config = (models.llama / "config.json").read_bytes()
    hub.add("org/many", {"a.gguf": b"a", "b.gguf": b"b", "config.json": config})
    hub.add("org/pickled", {"pytorch_model.bin": b"x", "config.json": config})
    for source, message in (
        ({"model_id": "org/many"}, "org/many holds 2 gguf files: a.gguf, b.gguf"),
        ({"model_id": "org/many", "format": "safetensors"}, "org/many has no safetensors weights"),
        ({"model_id": "org/many", "files": ["c.gguf"]}, "org/many has no weights called c.gguf"),
        ({"model_id": "org/pickled"}, "org/pickled: pytorch_model.bin is a pickle"),
    ):
        (problem,) = problems(language(models, tmp_path) | {"teacher": source}, file=tmp_path / "c.yaml")
        assert problem.message.startswith(f"`teacher.model_id`: {message}")
        assert problem.where == "c.yaml:2:3"
    assert checks_of(language(models, tmp_path) | {"teacher": {"model_id": "org/many", "files": ["a.gguf"]}})
    assert checks_of(language(models, tmp_path) | {"teacher": {"model_id": "org/pickled", "allow_pickle": True}})
    assert hub.fetched() == {"config.json"}


def test_a_split_that_is_not_there_is_told_by_its_setting(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path)
    job["dataset"] |= {"eval_split": "test"}
    (problem,) = problems(job, file=tmp_path / "c.yaml")
    assert problem == Problem(
        "`dataset.eval_split`: there is no split test", "found by the names of the files: train", "c.yaml:10:3"
    )
    (problem,) = problems(job, "dataset.split=training", "dataset.eval_split=null", file=tmp_path / "c.yaml")
    assert problem.where == "--set dataset.split"
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "test.jsonl")
    job["dataset"]["path"] = str(tmp_path / "*.jsonl")
    assert checks_of(job)["columns"].detail == "text, label"
    (problem,) = problems(
        job, "dataset.path=null", "dataset.name=stdlib-docs", "dataset.max_length=16", file=tmp_path / "c.yaml"
    )
    assert problem.message == "`dataset.eval_split`: there is no split test"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stdlib-docstring", "did you mean the built-in `stdlib-docstrings`?"),
        ("org/stdlib-docstring", ""),
        ("imdb", ""),
    ],
)
def test_the_name_of_a_built_in_that_is_nearly_right_is_suggested(
    models: Models, name: str, hint: str, tmp_path: Path
) -> None:
    job = classification(models, tmp_path) | {"dataset": {"name": name, "max_length": 16}}
    check = checks_of(job)["columns"]
    assert check.status == "skipped"
    assert check.detail == "the columns of a Hub data set show when it is read" + (f"; {hint}" if hint else "")


def test_a_setting_that_the_task_does_not_read_is_found_without_the_data(models: Models, tmp_path: Path) -> None:
    job = language(models, tmp_path) | {"dataset": {"name": "org/data", "max_length": 16, "label_column": "x"}}
    (problem,) = problems(job, file=tmp_path / "c.yaml")
    assert problem.message == "`dataset.label_column` is not read: causal-lm reads text_column"


def test_a_warm_up_longer_than_the_run_is_told(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, training={"max_steps": 10, "warmup_steps": 2000})
    check = checks_of(job)["schedule"]
    assert check.status == "ok"
    assert check.detail == "the warm-up of 2,000 steps is longer than the run of 10: the rate stays below its peak"
    for training in ({"max_steps": 10, "warmup_steps": 10}, {"warmup_steps": 2000}):
        assert "schedule" not in checks_of(classification(models, tmp_path, training=training))


PLACED: list[tuple[Callable[[Job], object], tuple[str, ...], str, str]] = [
    (lambda job: job["dataset"].update(text_column="txt"), (), "c.yaml:10:3", "`dataset.text_column`: the data has no"),
    (lambda _: 0, ("dataset.text_column=txt",), "--set dataset.text_column", "the data has no column `txt`"),
    (lambda job: job["dataset"].update(max_length=500), (), "c.yaml:9:3", "`dataset.max_length` 500 is more than"),
    (lambda job: job["dataset"].pop("max_length"), (), "c.yaml", "`dataset.max_length` 512 is more than"),
    (lambda job: job["teacher"].update(model_id="/no"), (), "c.yaml:2:3", "`teacher.model_id`: /no does not exist"),
    (lambda _: 0, ("teacher.model_id=/no",), "--set teacher.model_id", "/no does not exist"),
    (lambda _: 0, ("dataset.path=/no.csv",), "--set dataset.path", "/no.csv: no such file or folder"),
    (lambda _: 0, ("dataset={path: /no.csv}",), "--set dataset", "`dataset.path`: /no.csv: no such file"),
    (lambda job: job["student"].update(architecture="brt"), (), "c.yaml:7:3", "`student.architecture`: `brt` is not"),
    (
        lambda job: job.update(student={"architecture": "distilbrt"}),
        (),
        "c.yaml:4:3",
        "`student.architecture`: `distilbrt` is not a model family",
    ),
]


@pytest.mark.parametrize(("change", "settings", "where", "message"), PLACED)
def test_a_problem_is_told_at_its_place_and_names_its_setting_once(
    change: Callable[[Job], object], settings: tuple[str, ...], where: str, message: str, models: Models, tmp_path: Path
) -> None:
    job = classification(models, tmp_path)
    change(job)
    found = problems(job, *settings, file=tmp_path / "c.yaml")
    (problem,) = [problem for problem in found if problem.message.startswith(message)]
    assert problem.where == where
    assert problem.hint


@pytest.mark.parametrize(
    ("kind", "what"), [(language, "tokens: 320"), (classification, "classes: 2")], ids=["language", "classification"]
)
def test_a_selection_of_more_than_there_are_is_told_at_its_place(
    kind: Callable[..., Job], what: str, models: Models, tmp_path: Path
) -> None:
    job = kind(models, tmp_path, distillation={"top_k": 321, "entropy_threshold": 6.0})
    job["teacher"].pop("finetune", None)
    job["teacher"].setdefault("dtype", "float32")
    top_k, threshold = problems(job, file=tmp_path / "c.yaml")
    text = (tmp_path / "c.yaml").read_text().splitlines()
    assert top_k.message == f"`distillation.top_k` 321 is more than there are {what}"
    assert "`distillation.entropy_threshold` 6 lets nothing through" in threshold.message
    places = [text[int((problem.where or "").split(":")[1]) - 1].strip() for problem in (top_k, threshold)]
    assert places == ["top_k: 321", "entropy_threshold: 6.0"]
    said = refusal(job)
    assert isinstance(said, ConfigError)
    assert [problem.message for problem in said.problems] == [top_k.message, threshold.message], "a run says the same"


def test_the_task_that_was_found_is_told(models: Models, tmp_path: Path) -> None:
    job = language(models, tmp_path)
    assert checks_of(job)["task"].detail == "causal-lm"
    del job["task"]
    assert checks_of(job)["task"].detail == "causal-lm, as the models are made for it"


def test_problems_come_in_the_order_of_the_file(models: Models, tmp_path: Path) -> None:
    job = classification(models, tmp_path, dataset={"max_length": 999}, output={"dir": str(tmp_path / "rows.jsonl")})
    job["teacher"]["model_id"] = str(models.llama)
    job["student"] = {"init_from": {"teacher_layers": 9}}
    found = problems(job, "dataset.text_column=txt", "task=causal-lm", file=tmp_path / "c.yaml")
    assert [problem.where for problem in found] == [
        "c.yaml:5:5",
        "c.yaml:8:3",
        "c.yaml:14:3",
        "--set dataset.text_column",
    ]


def test_losses_between_layers_are_checked_against_both_models_at_their_places(models: Models, tmp_path: Path) -> None:
    losses = [{"name": "forward_kl"}, {"name": "hidden_mse", "layers": [[0, 7]]}]
    job = classification(models, tmp_path, distillation={"losses": losses})
    (problem,) = problems(job, file=tmp_path / "c.yaml")
    text = (tmp_path / "c.yaml").read_text().splitlines()
    assert problem.where is not None
    assert text[int(problem.where.split(":")[1]) - 1].strip() == "layers:"
    assert "`distillation.losses[1].layers`" in problem.message
    assert problem.message in refusal(job).message, "a run says the same"
    other = classification(models, tmp_path)
    other["student"] = {"model_id": str(models.other_classifier)}
    other["distillation"] = {"attention": {}}
    (problem,) = problems(other, file=tmp_path / "c.yaml")
    assert "the vocabularies of teacher" in problem.message
    assert (problem.hint or "").endswith(
        "or remove `distillation.attention`, so that the teacher reads the texts by itself"
    )


def test_a_folder_of_other_files_is_no_place_for_the_result(models: Models, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    (problem,) = problems(classification(models, tmp_path), file=tmp_path / "c.yaml")
    assert "thesis.txt" in problem.message
    assert problem.where == "c.yaml:15:3"


def test_rows_that_only_a_library_unpacks_are_not_looked_at(models: Models, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "packed.jsonl").rename(tmp_path / "packed.jsonl.zst")
    check = checks_of(classification(models, tmp_path, dataset={"path": str(file)}))["columns"]
    assert check == Check("columns", "skipped", "the columns of a .zst file show when it is read")


def vocabulary_of(job: Job) -> tuple[str, Vocabulary | None]:
    report = validate(parse_config(job), "job")
    return next(check.detail for check in report.checks if check.name == "vocabulary"), report.vocabulary


def test_a_student_that_is_built_takes_the_vocabulary_of_the_teacher(models: Models, tmp_path: Path) -> None:
    wide = renumbered(models.llama, tmp_path / "wide", {id_: id_ for id_ in range(320)}, rows=384)
    detail, found = vocabulary_of(language(models, tmp_path, teacher={"model_id": str(wide)}))
    assert detail == "identical, 320 tokens; heads padded to 384"
    assert found == Vocabulary(
        verdict="identical",
        length=320,
        teacher=VocabularySide(str(wide), tokens=320, ids=320, gaps=0, rows=384, padding=64),
        student=VocabularySide("the student", tokens=320, ids=320, gaps=0, rows=384, padding=64),
        only_teacher=0,
        only_student=0,
        moved=0,
        roles_differing=(),
        split_alike=True,
        split_text=None,
        parts_differing=(),
        warnings=(),
    )
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    detail, _ = vocabulary_of(language(models, tmp_path, teacher={"model_id": str(wide)}) | {"student": sizes})
    assert detail == "identical, 320 tokens; heads padded to 384 (teacher)"


def test_the_same_tokens_in_another_order_are_no_problem(models: Models, tmp_path: Path) -> None:
    other = renumbered(models.llama, tmp_path / "other", shuffled(320))
    edit_tokenizer(other, lambda content: content["model"]["merges"].reverse())
    job = language(models, tmp_path, teacher={"model_id": str(other)})
    detail, found = vocabulary_of(job | {"student": {"model_id": str(models.small_llama)}})
    assert detail.startswith("the same tokens in another order, which is mapped, 320 tokens; texts are split diff")
    assert found
    assert (found.verdict, found.length, found.moved, found.split_alike) == ("permuted", 320, 0, False)
    assert found.split_text
    assert found.parts_differing == ("model",)
    assert len(found.warnings) == 1


def test_a_difference_is_a_problem_where_tokens_are_compared_and_told_elsewhere(models: Models, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", tokenizer_texts=("other words",), vocab_size=280)
    job = language(models, tmp_path) | {"student": {"model_id": str(other)}}
    (problem,) = problems(job, file=tmp_path / "c.yaml")
    assert problem.where == "c.yaml:4:3"
    assert problem.message == f"`student.model_id`: {refusal(job).message}"
    assert problem.hint == refusal(job).hint
    job = classification(models, tmp_path) | {"student": {"model_id": str(models.other_classifier)}}
    detail, found = vocabulary_of(job)
    assert detail.startswith("differing; teacher 193 tokens, student 160; ")
    assert detail.endswith("; the teacher reads the texts by itself")
    assert found
    assert (found.verdict, found.length, found.split_alike) == ("differing", None, None)
    assert found.only_teacher - found.only_student == 33
    assert not found.warnings
    job["dataset"] |= {"streaming": True, "eval_rows": 4}
    job["training"] |= {"max_steps": 2}
    (problem,) = problems(job, file=tmp_path / "c.yaml")
    assert problem.hint == refusal(job).hint
    assert "`dataset.streaming`" in str(problem.hint)


def test_a_model_without_a_tokenizer_is_found_as_by_the_run(models: Models, tmp_path: Path) -> None:
    for part, job in (
        ("teacher", language(models, tmp_path)),
        ("student", language(models, tmp_path) | {"student": {"model_id": str(models.small_llama)}}),
    ):
        bare = edit_tokenizer(tmp_path / part, lambda _: 0, of=Path(job[part]["model_id"]))
        for file in bare.glob("tokenizer*"):
            file.unlink()
        job[part] = {"model_id": str(bare)}
        (problem,) = problems(job, file=tmp_path / "c.yaml")
        assert problem.message == f"`{part}.model_id`: {refusal(job).message}"
        assert problem.hint == refusal(job).hint


def test_what_shows_only_when_it_is_loaded_is_not_compared(hub: HubServer, models: Models, tmp_path: Path) -> None:
    hub.add("org/large", {"model.safetensors": b"x", "config.json": (models.llama / "config.json").read_bytes()})
    plain = edit_tokenizer(tmp_path / "plain", lambda _: 0, of=models.llama)
    (plain / "tokenizer.json").rename(plain / "vocab.json")
    for teacher, reason in (
        ({"model_id": "org/large"}, "the tokenizer of org/large shows when it is fetched"),
        ({"model_id": str(plain)}, f"{plain} has no tokenizer.json, and its other files are read when it is loaded"),
        (
            {"model_id": str(models.llama), "trust_remote_code": True},
            f"the tokenizer of {models.llama} may be code of its own",
        ),
    ):
        report = validate(parse_config(language(models, tmp_path, teacher=teacher)), "job")
        assert Check("vocabulary", "skipped", f"not compared: {reason}") in report.checks
        assert report.vocabulary is None
