"""`compare`: what was added, removed, renamed, reshaped, retyped, and how far values moved."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from entrenar_common.tables import Table, for_terminal
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from entrenar_inspect.comparing import compare
from entrenar_inspect.comparison_views import comparison
from entrenar_inspect.reports.comparison import Comparison
from hub_server import HubServer

Check = Callable[..., dict[str, Any]]
Tensors = dict[str, torch.Tensor]


def compared(first: Path, second: Path, **how: Any) -> Comparison:
    with open_model(parse_reference(str(first))) as one, open_model(parse_reference(str(second))) as other:
        return compare(one, other, **how)


def pair(folder: Path, first: Tensors, second: Tensors) -> tuple[Path, Path]:
    for name, tensors in (("a", first), ("b", second)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    return folder / "a.safetensors", folder / "b.safetensors"


def changes(report: Comparison) -> list[tuple[Any, ...]]:
    return [(change.kind, change.name, change.now) for change in report.changes]


@pytest.fixture
def base() -> Tensors:
    torch.manual_seed(0)
    tensors = {"embed.weight": torch.randn(50, 8), "norm.weight": torch.randn(8)}
    tensors |= {f"layers.{layer}.{name}.weight": torch.randn(8, 8) for layer in range(3) for name in ("q", "k")}
    return tensors


def test_a_model_is_itself(llama: Path, tmp_path: Path) -> None:
    report = compared(llama, llama, values=True)
    assert (report.changes, report.beyond, report.failed) == ((), 0, False)
    assert report.in_common == 20


def test_whole_modules_are_told_as_one(base: Tensors, tmp_path: Path) -> None:
    more = {
        "layers.3.q.weight": torch.zeros(8, 8),
        "layers.3.k.weight": torch.zeros(8, 9),
        "pooler.bias": torch.zeros(3),
    }
    report = compared(*pair(tmp_path, base, {**base, **more}))
    assert changes(report) == [("added", "layers.3.*", None), ("added", "pooler.bias", None)]
    assert [change.parameters for change in report.changes] == [64 + 72, 3]
    assert changes(compared(*pair(tmp_path, {**base, **more}, base)))[0][:2] == ("removed", "layers.3.*")


def test_shapes_and_dtypes_that_changed_are_told(base: Tensors, tmp_path: Path) -> None:
    other = {**base, "embed.weight": torch.randn(60, 8), "norm.weight": base["norm.weight"].bfloat16()}
    report = compared(*pair(tmp_path, base, other))
    assert changes(report) == [("reshaped", "embed.weight", (60, 8)), ("retyped", "norm.weight", "F32 → BF16")]


def test_modules_that_are_retyped_alike_are_one_line(base: Tensors, tmp_path: Path) -> None:
    other = {name: tensor.bfloat16() if name.startswith("layers.1") else tensor for name, tensor in base.items()}
    report = compared(*pair(tmp_path, base, other))
    assert changes(report) == [("retyped", "layers.1.*", "F32 → BF16")]
    assert report.changes[0].parameters == 128


def test_a_model_that_is_retyped_as_a_whole_is_one_line(base: Tensors, tmp_path: Path) -> None:
    report = compared(*pair(tmp_path, base, {name: tensor.bfloat16() for name, tensor in base.items()}))
    assert changes(report) == [("retyped", "*", "F32 → BF16")]
    assert (report.changes[0].tensors, report.changes[0].parameters) == (8, 50 * 8 + 8 + 6 * 64)


def test_two_of_one_content_are_not_taken_for_each_other_twice(tmp_path: Path) -> None:
    zeros = torch.zeros(4, 4)
    report = compared(*pair(tmp_path, {"a": zeros, "b": zeros.clone()}, {"c": zeros.clone()}))
    assert sorted(change.kind for change in report.changes) == ["removed", "renamed"]


def test_values_are_compared_whatever_their_dtype(base: Tensors, tmp_path: Path) -> None:
    other = {name: tensor.bfloat16() for name, tensor in base.items()}
    report = compared(*pair(tmp_path, base, other), values=True, by_tensor=True)
    for row in report.tensors:
        one, two = base[row.name].double(), other[row.name].double()
        assert row.max_abs == pytest.approx(float((one - two).abs().max()), rel=1e-6)
        assert row.mean_abs == pytest.approx(float((one - two).abs().mean()), rel=1e-5)
        assert row.relative == pytest.approx(float((two - one).norm() / one.norm()), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0)
        assert row.cosine == pytest.approx(float(cosine), abs=1e-9)
    assert report.beyond == len(base)


def test_layers_are_told_apart(base: Tensors, tmp_path: Path) -> None:
    other = {**base, "layers.1.q.weight": base["layers.1.q.weight"] + 0.5}
    report = compared(*pair(tmp_path, base, other), values=True)
    assert {row.name: row.beyond for row in report.modules} == {
        "embed": 0, "layers.0": 0, "layers.1": 1, "layers.2": 0, "norm": 0,
    }  # fmt: skip
    moved = next(row for row in report.modules if row.name == "layers.1")
    assert moved.max_abs == pytest.approx(0.5, rel=1e-5)
    assert moved.mean_abs == pytest.approx(0.25, rel=1e-5), "of both its matrices"
    whole = torch.cat([base[f"layers.1.{name}.weight"].flatten() for name in "qk"])
    assert moved.relative == pytest.approx(float(0.5 * 8 / whole.norm()), rel=1e-5), "of both its matrices"


def test_the_unchanged_is_one_line_and_the_furthest_are_told(base: Tensors, tmp_path: Path) -> None:
    steps = {"layers.1.q.weight": 0.5, "layers.0.k.weight": 2.0, "norm.weight": 0.01, "embed.weight": 1e-6}
    other = {name: tensor * (1 + steps.get(name, 0)) for name, tensor in base.items()}
    report = compared(*pair(tmp_path, base, other), values=True, tolerance=1e-4)
    assert [row.name for row in report.furthest] == [
        "layers.0.k.weight", "layers.1.q.weight", "norm.weight", "embed.weight",
    ]  # fmt: skip
    assert [row.relative for row in report.furthest[:3]] == pytest.approx([2.0, 0.5, 0.01], rel=1e-4)
    assert {row.name: (row.beyond, row.moved) for row in report.modules} == {
        "embed": (0, 1), "layers.0": (1, 1), "layers.1": (1, 1), "layers.2": (0, 0), "norm": (1, 1),
    }  # fmt: skip
    _, table, furthest = comparison(report)
    assert isinstance(table, Table)
    assert isinstance(furthest, Table)
    assert [row[0] for row in table.rows] == ["embed", "layers.0", "layers.1", "norm"], "in the order of the model"
    assert table.notes[0] == "1 other module has the same values"
    assert furthest.rows[0][0] == "layers.0.k.weight"
    for block in (table, furthest):
        assert max(len(line) for line in for_terminal(block, 80, colour=False).splitlines()) <= 80
    by_tensor = compared(*pair(tmp_path, base, other), values=True, by_tensor=True)
    assert len(by_tensor.tensors) == len(base)
    assert comparison(by_tensor)[1].notes[0] == "4 other tensors have the same values"  # type: ignore[union-attr]


def test_a_tensor_that_was_zeros_is_the_furthest(base: Tensors, tmp_path: Path) -> None:
    zeros = {**base, "norm.weight": torch.zeros(8)}
    report = compared(*pair(tmp_path, zeros, {**base, "embed.weight": base["embed.weight"] * 5}), values=True)
    assert [(row.name, row.relative) for row in report.furthest] == [
        ("norm.weight", None), ("embed.weight", pytest.approx(4)),
    ]  # fmt: skip


@pytest.mark.parametrize("fail_on", ["value", "any"])
def test_where_nothing_can_be_compared_values_fail(
    tmp_path: Path, program: Any, capsys: pytest.CaptureFixture[str], fail_on: str
) -> None:
    first, second = pair(tmp_path, {"a": torch.ones(3)}, {"b": torch.ones(4)})
    assert program(["compare", str(first), str(second), "--fail-on", fail_on]) == 1
    assert "no value could be compared" in capsys.readouterr().out
    assert program(["compare", str(first), str(second), "--values"]) == 0, "only on request"


def test_values_that_are_complex_on_one_side_are_not_compared(tmp_path: Path, program: Any) -> None:
    first, second = pair(
        tmp_path,
        {"a": torch.ones(3), "b": torch.ones(2)},
        {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.complex64)},
    )
    report = compared(first, second, values=True, fail_on="value")
    assert (report.in_common, report.beyond, report.failed) == (2, 0, True)
    assert report.notes[-1] == "the values of b are of types that cannot be compared"


@pytest.mark.parametrize(
    ("what", "fail_on", "status"),
    [
        ("shape", None, 0),
        ("shape", "shape", 1),
        ("shape", "value", 1),
        ("gone", "value", 1),
        ("dtype", "shape", 0),
        ("dtype", "any", 1),
        ("value", "shape", 0),
        ("value", "any", 1),
        ("tolerated", "any", 0),
        ("value", "value", 1),
        ("tolerated", "value", 0),
        ("name", "shape", 0),
        ("name", "any", 1),
    ],
)
def test_the_exit_status_is_that_of_the_changes_asked_for(
    base: Tensors, tmp_path: Path, program: Any, what: str, fail_on: str | None, status: int
) -> None:
    norm = base["norm.weight"]
    other = {name: tensor for name, tensor in base.items() if name != "norm.weight"} | {
        "shape": {"norm.weight": torch.randn(9)},
        "gone": {},
        "dtype": {"norm.weight": norm.bfloat16()},
        "value": {"norm.weight": norm + 0.1},
        "tolerated": {"norm.weight": norm + 0.0005},
        "name": {"final.weight": norm},
    }[what]
    first, second = pair(tmp_path, base, other)
    flags = ["--fail-on", fail_on] if fail_on else []
    assert program(["compare", str(first), str(second), "--tolerance", "1e-3", *flags]) == status


def test_a_nan_on_one_side_is_a_difference(base: Tensors, tmp_path: Path) -> None:
    broken = base["norm.weight"].clone()
    broken[3] = float("nan")
    report = compared(*pair(tmp_path, base, {**base, "norm.weight": broken}), values=True, tolerance=1e9)
    assert report.beyond == 1
    assert {row.name: (row.beyond, row.non_finite) for row in report.modules if row.beyond} == {"norm": (1, 1)}
    shown = " ".join(str(cell) for row in comparison(report)[1].rows for cell in row)  # type: ignore[union-attr]
    assert "NaN or inf" in shown


def test_in_all_forms(base: Tensors, tmp_path: Path, program: Any, check_output: Check) -> None:
    first, second = pair(tmp_path, base, {**base, "extra": torch.zeros(2, 3), "embed.weight": torch.randn(60, 8)})
    report = check_output(
        program,
        ["compare", str(first), str(second), "--values"],
        values={"in_common": 7, "beyond": 0, "failed": False, "tolerance": 0.0},
        shows=["+   extra", "[2,3], 6 parameters", "[50,8] → [60,8]", "7 tensors are in both"],
        lines=["+\textra\tadded\t[2,3], 6 parameters"],
        quiet=["added extra", "reshaped embed.weight"],
    )
    assert [change["kind"] for change in report["changes"]] == ["added", "reshaped"]


def test_a_gguf_is_compared_with_what_it_was_converted_to(tmp_path: Path, program: Any) -> None:
    from entrenar_core.conversion import convert
    from entrenar_core.formats import WeightFormat
    from tiny_models import tiny_gguf

    path = tiny_gguf(tmp_path / "model.gguf")
    with open_model(parse_reference(str(path))) as model:
        convert(model, WeightFormat.APR, tmp_path / "model.apr")
    assert program(["compare", str(path), str(path), "--values", "--fail-on", "any"]) == 0


def test_on_the_hub_headers_are_compared(
    hub: HubServer, llama: Path, tmp_path: Path, program: Any, capsys: Any
) -> None:
    hub.add("org/one", llama)
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    shard = sorted(other.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    save_file({**tensors, name: torch.zeros(7)}, shard)
    assert program(["compare", "org/one", str(other), "--fail-on", "shape"]) == 1
    shown = capsys.readouterr().out
    assert f"~   {name}" in shown
    assert "one side is on the Hub" in shown
    assert program(["compare", "org/one", str(other), "--values"]) == 2
    assert "values of org/one are not here" in capsys.readouterr().err
