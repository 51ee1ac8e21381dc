"""Model cards: what the Hub and llama.cpp's own reader find in them, and that a stranger's card breaks nothing."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core import ExportSettings, export
from entrenar_core.architectures import architecture_of
from entrenar_core.artifact import ModelArtifact, inspect_folder
from entrenar_core.exporting.card import CardFacts, card_facts, gguf_card_metadata, shared_license, title
from entrenar_core.exporting.card_files import (
    parse_card,
)
from entrenar_core.exporting.card_measured import ExportedFile, Measured
from entrenar_core.exporting.card_reports import card_of_export, exported_files
from entrenar_core.exporting.card_writing import export_card
from entrenar_core.exporting.result import ExportReport
from entrenar_core.formats import WeightFormat
from entrenar_core.references import HubReference
from entrenar_core.reports import ModelFacts, RunReport, Scores
from entrenar_core.training.card import model_card
from entrenar_core.units import bound
from entrenar_core.verification.comparing import Distances
from entrenar_core.verification.limits import limits_of
from entrenar_core.verification.result import ClassAgreement, Predictions, TextAgreement, VectorAgreement, Verification
from exported_models import exported_model

FRONT = """\
# kept as it is
license: apache-2.0
language:
- en
- no
base_model: org/tiny-llama-v1.1-1b
datasets: [org/some-data, "https://huggingface.co/org/other-data"]
tags:
- chat   # with a remark
pipeline_tag: text-generation
library_name: transformers
model-index:
- name: x
  results:
  - task: {type: text-generation}
    dataset: {type: d, name: d}
    metrics:
    - {type: accuracy, value: 0.5}
"""
BODY = "\n# A model\n\nWith ~~~ odd `things` in it.\n"
Q4 = ExportedFile("m-Q4_K_M.gguf", "gguf", 123_456_789, "Q4_K_M", 4.85, Measured(2048, 0.0213, True, 0.941, 8.5, 8.42))
F16 = ExportedFile("m-f16.gguf", "gguf", 400_000_000, "F16", 16.0)


def folder_with(tmp_path: Path, card: str, name: str = "my-model-7b") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "README.md").write_text(card)
    return folder


@pytest.fixture
def known(tmp_path: Path) -> Path:
    return folder_with(tmp_path, f"---\n{FRONT}---\n{BODY}")


def data_of(card: str) -> ModelCardData:
    """The front matter as huggingface_hub reads it."""
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData)
    return data


def plain(facts: CardFacts) -> Mapping[str, Any]:
    return {key: value.value for key, value in gguf_card_metadata(facts).items()}


def test_facts_are_those_of_the_card(known: Path) -> None:
    facts = card_facts(known)
    assert facts == CardFacts(
        name="My Model 7b",
        license="apache-2.0",
        base_models=("org/tiny-llama-v1.1-1b",),
        datasets=("org/some-data", "https://huggingface.co/org/other-data"),
        tags=("chat",),
        languages=("en", "no"),
        pipeline_tag="text-generation",
    )
    assert card_facts(known, repo_id="big-org/other-name").organization == "Big Org"
    assert card_facts(known, repo_id="big-org/other-name").url == "https://huggingface.co/big-org/other-name"


def test_the_keys_of_a_gguf_are_those_of_llama_cpps_converter(known: Path) -> None:
    theirs, ours = gguf.Metadata.load(model_path=known), plain(card_facts(known))
    assert ours["general.name"] == theirs.name
    assert ours["general.license"] == theirs.license
    assert list(ours["general.tags"]) == theirs.tags
    assert list(ours["general.languages"]) == theirs.languages
    assert theirs.base_models is not None
    assert theirs.datasets is not None
    for kind, entries in (("base_model", theirs.base_models), ("dataset", theirs.datasets)):
        assert ours[f"general.{kind}.count"] == len(entries)
        for place, entry in enumerate(entries):
            for key in ("name", "organization"):
                assert ours[f"general.{kind}.{place}.{key}"] == entry[key]
    assert ours["general.base_model.0.repo_url"] == theirs.base_models[0]["repo_url"]
    assert ours["general.dataset.0.repo_url"] == "https://huggingface.co/datasets/org/some-data", "where it really is"
    known_keys = {
        key.format(id=place)
        for group in (gguf.Keys.General,)
        for key in vars(group).values()
        if isinstance(key, str)
        for place in (0, 1)
    }
    assert set(ours) <= known_keys


@given(words=st.lists(st.from_regex(r"[A-Za-z0-9.]{1,6}", fullmatch=True), min_size=1, max_size=5))
def test_titles_are_those_of_llama_cpps_converter(words: list[str]) -> None:
    name = "-".join(words)
    assert title(name) == gguf.Metadata.id_to_title(name)


def test_without_a_card_there_is_a_name_and_nothing_is_made_up(tmp_path: Path) -> None:
    folder = tmp_path / "some-model"
    folder.mkdir()
    assert plain(card_facts(folder)) == {"general.name": "Some Model"}
    (folder / "config.json").write_text('{"_name_or_path": "org/real-name"}')
    assert card_facts(folder).name == "Real Name"
    (folder / "config.json").write_text('{"_name_or_path": "/home/someone/model"}')
    (folder / "report.json").write_text('{"student": {"name": "/home/someone/small"}}')
    assert card_facts(folder).name == "Small Distilled"
    card = export_card(folder, [F16])
    data = data_of(card)
    assert (data.license, data.base_model, data.language, data.eval_results) == (None, None, None, None)
    assert data.tags == ["gguf"]
    assert "under\nwhich licence, has to be looked up" in card


def test_a_card_that_is_there_stays_and_says_what_was_quantised(known: Path) -> None:
    card = export_card(known, [Q4], repo_id="org/my-model-7b")
    data = data_of(card)
    assert data.base_model == ["org/my-model-7b"]
    assert data.to_dict()["base_model_relation"] == "quantized"
    assert data.tags == ["chat", "gguf"]
    assert (data.license, data.library_name, data.eval_results) == ("apache-2.0", None, None)
    assert "# kept as it is\nlicense: apache-2.0\nlanguage:\n- en\n- no\n" in card
    assert BODY.rstrip() in card
    assert "| m-Q4\\_K" not in card
    assert "| m-Q4_K_M.gguf | gguf | Q4_K_M | 4.85 | 123 MB |" in card
    assert "| m-Q4_K_M.gguf | 2,048 | 0.0213 | 94.1 % | 8.50 | 8.42 |" in card
    assert "llama-cli -m m-Q4_K_M.gguf\n" in card


def test_a_copy_in_another_format_is_not_called_quantised_and_keeps_its_scores(known: Path) -> None:
    card = export_card(known, [F16], repo_id="org/my-model-7b")
    data = data_of(card)
    assert "base_model_relation" not in data.to_dict()
    assert data.eval_results is not None
    assert data.eval_results[0].metric_value == 0.5
    whole = export_card(known, [ExportedFile("model.safetensors", "safetensors", 10, "BF16")])
    assert parse_card(whole).front == FRONT, "nothing that is not needed"
    assert "AutoModelForCausalLM.from_pretrained" in whole


def test_an_export_again_replaces_what_was_said_of_the_files(known: Path, tmp_path: Path) -> None:
    first = export_card(known, [Q4, F16])
    assert "Not measured: `m-f16.gguf`." in first
    again = folder_with(tmp_path, first, "again")
    assert export_card(again, [Q4, F16]) == first
    other = export_card(again, [ExportedFile("model.onnx", "onnx", 10)])
    assert "m-f16" not in other
    assert "InferenceSession('model.onnx')" in other


def test_the_report_of_an_export_gives_its_card(known: Path, tmp_path: Path) -> None:
    llama = architecture_of({"model_type": "llama"})
    reference = HubReference("org/my-model-7b")
    artifact = ModelArtifact(reference, known, (), 0, WeightFormat.SAFETENSORS, {}, llama, None)
    far = Distances(0.02, 1.0, 0.95, 0.1, 2.0, 0.01, 0.01)
    seen = Predictions(512, 20, 0.99, is_exact=False, distances=far, original_perplexity=8.0, perplexity=8.1)
    texts = TextAgreement(10, 10)
    output = tmp_path / "small.gguf"
    output.write_bytes(bytes(4000))
    report = ExportReport(
        source="org/my-model-7b", source_format="safetensors", output=output, format="gguf", files=("small.gguf",),
        size_bytes=4000, quantization="q4_k_m", types={"Q4_K": 4, "F32": 9}, bits_per_weight=4.9,
        verification=Verification("q4_k_m", limits_of("q4_k_m"), texts, seen, None),
    )  # fmt: skip
    card = card_of_export(report, artifact)
    assert data_of(card).base_model == ["org/my-model-7b"]
    assert "| small.gguf | gguf | Q4_K_M | 4.90 | 4.0 kB |" in card
    assert "| small.gguf | 512 | at least 0.0200 | 95.0 % | 8.10 | 8.00 |" in card
    vectors = VectorAgreement(10, "mean", 0.99991, 0.99999)
    encoder = replace(
        report, verification=Verification("f16", limits_of("f16"), texts, None, vectors), quantization=None
    )
    assert "have a cosine of 0.99991 or more" in card_of_export(encoder, artifact)
    assert [file.quantization for file in exported_files(encoder)] == ["F32"]


def test_the_card_of_a_run_tells_no_folder_of_this_machine_once_exported(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, f"# Of {tmp_path}/teacher\n")
    (folder / "run.json").write_text('{"status": "complete"}')
    assert "# Of teacher\n" in export_card(folder, [F16])


def test_sentence_encoders_are_loaded_as_such(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "---\npipeline_tag: sentence-similarity\n---\n")
    card = export_card(folder, [ExportedFile("m.gguf", "gguf", 1), ExportedFile("m.safetensors", "safetensors", 1)])
    assert "llama-embedding -m m.gguf" in card
    assert "SentenceTransformer(" in card


def test_a_gguf_of_an_encoder_is_run_as_one_wherever_it_is(tmp_path: Path) -> None:
    """Of a folder that has no config.json, as that of a GGUF."""
    artifact = inspect_folder(exported_model(tmp_path / "model", "bert"))
    report = export(artifact, tmp_path / "out", ExportSettings(WeightFormat.GGUF))
    card = (tmp_path / "out" / "README.md").read_text()
    assert report.files == ("model.gguf", "README.md")
    assert "llama-embedding -m model.gguf" in card
    assert "llama-cli" not in card


def test_what_eight_bits_moved_is_told_of_a_graph_of_eight_bits(tmp_path: Path) -> None:
    graph = ExportedFile("m.onnx", "onnx", 10, difference=1.21e-5)
    assert "with `m.onnx` is 2e-05 at most from what torch does" in export_card(tmp_path, [graph])
    small = ExportedFile("m.int8.onnx", "onnx", 10, "INT8", moved=0.0512)
    card = export_card(tmp_path, [small])
    assert "Eight bits moved what onnxruntime computes with `m.int8.onnx` by 5.1 % of what torch does" in card
    assert "at most" not in card


def test_a_classifier_that_was_verified_is_told(tmp_path: Path) -> None:
    classes = ExportedFile("m.gguf", "gguf", 10, "Q4_0", classes=ClassAgreement(42, 3, 3, 0.00132, 0.1, 38 / 42))
    card = export_card(tmp_path, [classes])
    assert "`m.gguf` gives 90.5 % of 42 texts the same class: a KL divergence of 0.0013 nats." in card
    assert "Not measured" not in card


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0"), (2e-5, "2e-05"), (2.01e-5, "3e-05"), (0.0995, "1e-01")])
def test_a_bound_is_not_rounded_down(value: float, shown: str) -> None:
    assert bound(value) == shown


def test_the_card_of_a_run_does_not_load_what_is_not_there(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "# Ours\n\n## Loading\n\n```python\n# code\n```\n\n## Settings\n\nas they were\n")
    (folder / "run.json").write_text('{"status": "complete"}')
    assert "## Loading" not in export_card(folder, [F16])
    assert "## Settings" in export_card(folder, [F16])
    assert "## Loading" in export_card(folder, [ExportedFile("model.safetensors", "safetensors", 10, "BF16")])


def test_a_licence_is_taken_over_only_where_all_agree(known: Path, tmp_path: Path) -> None:
    mit, other = (
        CardFacts("a", license="mit"),
        CardFacts("b", license="other", license_name="own", license_link="LICENSE"),
    )
    assert shared_license([mit, CardFacts("c", license="mit")]) == {"license": "mit"}
    assert shared_license([other]) == {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    assert shared_license([mit, other]) == shared_license([mit, CardFacts("d")]) == shared_license([]) == {}
    bare = tmp_path / "bare"
    bare.mkdir()
    assert data_of(export_card(bare, [F16], license=shared_license([mit]))).license == "mit"
    assert data_of(export_card(known, [F16], license=shared_license([mit]))).license == "apache-2.0"


def run_report(folder: Path, **changes: Any) -> RunReport:
    scores = Scores(200, 200, 0.5, 0.8125, agreement=0.9)
    values: dict[str, Any] = {
        "task": "sequence-classification", "output_dir": folder, "dataset": "org/tickets", "train_rows": 1800,
        "labelled_rows": None, "eval_rows": 200, "seed": 7, "steps": 10, "selected_step": 10, "initial_loss": 2.0,
        "final_loss": 0.1, "teacher": ModelFacts("org/large", 22_700_000, 90_900_000),
        "student": ModelFacts("org/small", 4_400_000, 17_600_000), "teacher_scores": scores, "student_before": scores,
        "student_scores": scores, "baseline_scores": None, "majority_accuracy": None, "retention": 1.0,
        "perplexity_ratio": None, "train_s": 1.0, "examples_per_s": 1.0, "files": (),
    }  # fmt: skip
    return RunReport(**{**values, **changes})


def test_the_card_of_a_run_says_to_the_hub_what_was_measured(tmp_path: Path) -> None:
    data = data_of(model_card(run_report(tmp_path), "a: 1"))
    assert (data.base_model, data.datasets) == (["org/small", "org/large"], ["org/tickets"])
    assert data.metrics == ["accuracy"]
    assert data.eval_results is not None
    (result,) = data.eval_results
    assert (result.task_type, result.dataset_name, result.metric_type, result.metric_value) == (
        "text-classification",
        "org/tickets",
        "accuracy",
        0.8125,
    )
    causal = run_report(
        tmp_path, task="causal-lm", student_scores=Scores(200, 9000, 2.0, 0.5, perplexity=7.3890561, kl=0.1)
    )
    measured = data_of(model_card(causal, "a: 1")).eval_results
    assert {one.metric_type: one.metric_value for one in measured or ()} == {"perplexity": 7.38906, "accuracy": 0.5}


def test_the_card_of_a_run_on_local_models_links_nothing_and_takes_their_licence(tmp_path: Path) -> None:
    teacher, student = (
        folder_with(tmp_path, f"---\nlicense: {licence}\n---\n", name)
        for licence, name in (("mit", "teacher"), ("mit", "student"))
    )
    report = run_report(
        tmp_path,
        dataset=str(tmp_path / "rows.jsonl"),
        teacher=ModelFacts(str(teacher), 10, 10),
        student=ModelFacts(str(student), 10, 10),
    )
    data = data_of(model_card(report, "a: 1"))
    assert (data.license, data.base_model, data.datasets) == ("mit", None, None)
    assert str(tmp_path) not in parse_card(model_card(report, "a: 1")).front
    (student / "README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    assert data_of(model_card(report, "a: 1")).license is None
    described = run_report(tmp_path, student=ModelFacts("6 layers of the teacher", 10, 10))
    assert data_of(model_card(described, "a: 1")).base_model == ["org/large"]


def test_names_in_the_card_of_a_run_are_no_markup(tmp_path: Path) -> None:
    card = model_card(run_report(tmp_path, dataset="<img src=x>\n---\n# [a](b) | `c`"), "a: 1")
    assert "<img" not in parse_card(card).body
    assert "\n# [a]" not in card
    assert data_of(card).eval_results
