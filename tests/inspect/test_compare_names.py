"""`compare` of models whose tensors have other names: with another beginning, by modules, and by content."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from entrenar_inspect.comparing import compare
from entrenar_inspect.reports.comparison import Comparison
from hub_server import HubServer

Tensors = dict[str, torch.Tensor]


def compared(folder: Path, first: Tensors, second: Tensors, **how: Any) -> Comparison:
    for name, tensors in (("a", first), ("b", second)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    one, other = (parse_reference(str(folder / f"{name}.safetensors")) for name in "ab")
    with open_model(one) as a, open_model(other) as b:
        return compare(a, b, **how)


def changes(report: Comparison) -> list[tuple[Any, ...]]:
    return [(change.kind, change.name, change.now, change.tensors, change.by) for change in report.changes]


def tensors(*names: str, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 6, generator=generator) for name in names}


@pytest.fixture
def base() -> Tensors:
    layers = [f"layers.{layer}.{part}.weight" for layer in range(12) for part in ("attn.q", "attn.k", "mlp")]
    return tensors("embed.weight", *layers, "norm.weight")


@pytest.mark.parametrize("beginning", ["module.", "model.", "bert.", "_orig_mod.", "base_model.model.", "a.b.c.d."])
def test_a_beginning_of_all_names_is_one_line(base: Tensors, tmp_path: Path, beginning: str) -> None:
    other = {beginning + name: tensor for name, tensor in base.items()}
    assert changes(compared(tmp_path, base, other)) == [("renamed", "*", f"{beginning}*", 38, "names")]
    report = compared(tmp_path, other, base, fail_on="shape")
    assert changes(report) == [("renamed", f"{beginning}*", "*", 38, "names")]
    assert (report.in_common, report.failed) == (38, False)
    assert compared(tmp_path, other, base, fail_on="any").failed


def test_bodies_of_two_families_are_one_line(base: Tensors, tmp_path: Path) -> None:
    first = {f"bert.{name}": tensor for name, tensor in base.items()}
    second = {f"roberta.{name}": tensor * 2 for name, tensor in base.items()}
    first |= tensors("cls.predictions.bias")
    second |= tensors("classifier.dense.weight", seed=1)
    assert changes(compared(tmp_path, first, second)) == [
        ("removed", "cls.predictions.bias", None, 1, None),
        ("added", "classifier.dense.weight", None, 1, None),
        ("renamed", "bert.*", "roberta.*", 38, "names"),
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [("language_model.model.", "model.language_model."), ("model._orig_mod.", "model."), ("a.b.c.", "d.")],
)
def test_what_was_moved_inside_of_names_is_one_line(base: Tensors, tmp_path: Path, before: str, after: str) -> None:
    first = {before + name: tensor for name, tensor in base.items()}
    second = {after + name: tensor * 2 for name, tensor in base.items()}
    assert changes(compared(tmp_path, first, second)) == [("renamed", f"{before}*", f"{after}*", 38, "names")]


def test_values_are_compared_under_the_new_names(base: Tensors, tmp_path: Path) -> None:
    """With what one side lacks, has in another shape, and in another dtype."""
    moved = {**base, "layers.7.mlp.weight": base["layers.7.mlp.weight"] * 3}
    del moved["norm.weight"]
    moved["embed.weight"] = torch.randn(9, 6)
    moved["layers.2.mlp.weight"] = base["layers.2.mlp.weight"].double()
    other = {f"model.{name}": tensor for name, tensor in moved.items()} | tensors("lm_head.weight", seed=5)
    report = compared(tmp_path, base, other, values=True)
    assert changes(report) == [
        ("removed", "norm.weight", None, 1, None),
        ("added", "lm_head.weight", None, 1, None),
        ("renamed", "*", "model.*", 37, "names"),
        ("reshaped", "embed.weight", (9, 6), 1, None),
        ("retyped", "layers.2.mlp.weight", "F32 → F64", 1, None),
    ]
    assert (report.in_common, report.beyond) == (36, 1)
    assert [(row.name, row.relative) for row in report.furthest] == [("layers.7.mlp.weight", pytest.approx(2))]


def test_a_few_names_that_end_alike_are_no_renaming(base: Tensors, tmp_path: Path) -> None:
    """Heads of one shape, such as `pooler.dense` and `classifier.dense`, are two things unless contents agree."""
    first = base | tensors("pooler.dense.weight", "pooler.dense.bias", seed=1)
    second = base | tensors("classifier.dense.weight", "classifier.dense.bias", seed=2)
    report = compared(tmp_path, first, second)
    assert [change[:2] for change in changes(report)] == [("removed", "pooler.*"), ("added", "classifier.*")]


def test_names_alone_are_not_believed_where_shapes_disagree(base: Tensors, tmp_path: Path) -> None:
    other = {f"model.{name}": torch.zeros(5, 7) for name in base}
    assert {change[0] for change in changes(compared(tmp_path, base, other))} == {"removed", "added"}


def test_modules_that_were_renamed_alike_are_one_line(base: Tensors, tmp_path: Path) -> None:
    inner = {"layers": "encoder.blocks", "attn": "attention", "mlp": "ffn"}
    renamed = {".".join(inner.get(part, part) for part in name.split(".")): tensor for name, tensor in base.items()}
    assert changes(compared(tmp_path, base, renamed)) == [
        ("renamed", "layers.*.attn.*", "encoder.blocks.*.attention.*", 24, "content"),
        ("renamed", "layers.*.mlp.*", "encoder.blocks.*.ffn.*", 12, "content"),
    ]


def test_one_renamed_tensor_has_its_whole_names(base: Tensors, tmp_path: Path) -> None:
    other = {name if name != "norm.weight" else "final.weight": tensor for name, tensor in base.items()}
    assert changes(compared(tmp_path, base, other)) == [("renamed", "norm.weight", "final.weight", 1, "content")]


def test_layers_in_another_order_are_told_one_by_one(tmp_path: Path) -> None:
    first = tensors("embed.weight", "a.0.weight", "a.1.weight")
    second = {"embed.weight": first["embed.weight"], "b.0.w": first["a.1.weight"], "b.1.w": first["a.0.weight"]}
    assert changes(compared(tmp_path, first, second)) == [
        ("renamed", "a.0.weight", "b.1.w", 1, "content"),
        ("renamed", "a.1.weight", "b.0.w", 1, "content"),
    ]


def test_what_has_a_common_content_goes_where_names_are_alike(tmp_path: Path) -> None:
    """Biases are zeros in all layers, and come in another order."""
    names = [f"{layer}.{part}.bias" for layer in range(3) for part in "qk"]
    first = {f"layers.{name}": torch.zeros(4) for name in names} | tensors("embed.weight")
    second = {f"blocks.{name}": torch.zeros(4) for name in reversed(names)} | tensors("embed.weight")
    first |= tensors(*(f"x.{number}" for number in range(20)))
    second |= tensors(*(f"x.{number}" for number in range(20)))
    assert changes(compared(tmp_path, first, second)) == [("renamed", "layers.*", "blocks.*", 6, "content")]


def test_on_the_hub_a_beginning_is_found_too(hub: HubServer, base: Tensors, tmp_path: Path, program: Any) -> None:
    (tmp_path / "repository").mkdir()
    save_file({f"model.{name}": tensor for name, tensor in base.items()}, tmp_path / "repository/model.safetensors")
    save_file(base, tmp_path / "b.safetensors")
    hub.add("org/one", tmp_path / "repository")
    with open_model(parse_reference("org/one")) as one, open_model(parse_reference(f"{tmp_path}/b.safetensors")) as two:
        assert changes(compare(one, two)) == [("renamed", "model.*", "*", 38, "names")]


def test_a_renaming_is_one_line_for_a_reader(base: Tensors, tmp_path: Path, program: Any, capsys: Any) -> None:
    compared(tmp_path, {f"model.{name}": tensor for name, tensor in base.items()}, base)
    assert program(["compare", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "→   model.*   renamed   *: 38 tensors" in shown
    assert "by names and shapes alone" in shown
