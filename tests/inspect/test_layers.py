"""`layers`: the tree of any model, with layers that are alike taken together, and the values of its tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from entrenar_core.errors import ModelError
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from entrenar_inspect import opening
from entrenar_inspect.layers import list_layers
from entrenar_inspect.reports.layers import LayersReport

Check = Callable[..., dict[str, Any]]


def listed(path: Path, **how: Any) -> LayersReport:
    with open_model(parse_reference(str(path)), allow_pickle=path.suffix == ".pt") as model:
        return list_layers(model, **how)


def names(report: LayersReport) -> list[tuple[str, int]]:
    return [(row.name, row.copies) for row in report.rows]


def test_each_level_opens_what_the_one_before_showed(llama: Path) -> None:
    assert names(listed(llama)) == [("model.embed_tokens", 1), ("model.layers.0–1", 2), ("model.norm", 1)]
    assert names(listed(llama, depth=2))[1:-1] == [
        ("model.layers.0–1.input_layernorm", 2),
        ("model.layers.0–1.mlp", 2),
        ("model.layers.0–1.post_attention_layernorm", 2),
        ("model.layers.0–1.self_attn", 2),
    ]
    deepest = listed(llama, depth=9)
    assert ("model.layers.0–1.mlp.down_proj.weight", 2) in names(deepest)
    assert all(row.shape is not None for row in deepest.rows)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_sums_are_those_of_the_model(llama: Path, depth: int) -> None:
    tensors = [tensor for file in llama.glob("*.safetensors") for tensor in load_file(file).values()]
    report = listed(llama, depth=depth)
    assert report.tensors == len(tensors)
    assert report.parameters == sum(tensor.numel() for tensor in tensors)
    assert report.size_bytes == 4 * report.parameters


def test_what_differs_is_not_taken_together(tmp_path: Path) -> None:
    shapes = {0: (2, 3), 1: (2, 3), 2: (4, 3), 3: (2, 3), 5: (2, 3), 10: (2, 3), 11: (2, 3)}
    save_file({f"h.{layer}.w": torch.zeros(shape) for layer, shape in shapes.items()}, tmp_path / "x.safetensors")
    expected = [("h.0–1", 2), ("h.2", 1), ("h.3", 1), ("h.5", 1), ("h.10–11", 2)]
    assert names(listed(tmp_path / "x.safetensors")) == expected


def test_lists_within_lists_are_opened(tmp_path: Path) -> None:
    tensors = {f"h.{layer}.experts.{expert}.w": torch.zeros(2) for layer in range(2) for expert in range(3)}
    save_file({**tensors, "out": torch.zeros(3), "0": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert ("h.0–1", 2) in names(listed(tmp_path / "x.safetensors"))
    assert ("h.0–1.experts.0–2", 6) in names(listed(tmp_path / "x.safetensors", depth=3))


def test_a_name_of_a_thousand_parts_is_one_name(tmp_path: Path) -> None:
    save_file({".".join(["a"] * 1000): torch.zeros(2), "..": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert listed(tmp_path / "x.safetensors", depth=5).parameters == 3


@pytest.mark.parametrize("statistics", [False, True])
def test_a_module_that_is_a_tensor_itself_has_a_row_for_it(tmp_path: Path, statistics: bool) -> None:
    tensors = {"layers": torch.zeros(2, 3), "layers.0.w": torch.zeros(4), "layers.1.w": torch.zeros(4)}
    save_file(tensors, tmp_path / "x.safetensors")
    layers = [("layers.0", 1), ("layers.1", 1)] if statistics else [("layers.0–1", 2)]
    assert names(listed(tmp_path / "x.safetensors", statistics=statistics)) == [("layers", 1), *layers]


def test_quantised_weights_are_listed_beside_what_belongs_to_them(tmp_path: Path) -> None:
    inside = {
        "weight": torch.zeros(8, 1, dtype=torch.uint8),
        "weight.absmax": torch.zeros(2),
        "weight.quant_map": torch.zeros(16),
    }
    tensors = {f"h.{layer}.q_proj.{name}": tensor.clone() for layer in range(2) for name, tensor in inside.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    report = listed(tmp_path / "x.safetensors", depth=5)
    assert names(report) == [(f"h.0–1.q_proj.{name}", 2) for name in inside]
    assert [row.parameters for row in report.rows] == [16, 0, 0]
    assert report.parameters == 32


def test_names_that_are_empty_or_start_with_a_dot_are_listed(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(2) for name in ("", ".0", ".1", ".a")}
    save_file(tensors, tmp_path / "x.safetensors")
    assert {row.name for row in listed(tmp_path / "x.safetensors").rows} == {"", ".0", ".1", ".a"}
    save_file({name: torch.zeros(2) for name in ("", ".0", ".1")}, tmp_path / "y.safetensors")
    assert names(listed(tmp_path / "y.safetensors")) == [("", 1), (".0–1", 2)]


def test_what_is_no_number_of_a_list_is_a_name(tmp_path: Path) -> None:
    tensors = {f"h.{number}.w": torch.zeros(2) for number in ("1", "9" * 5000, "9" * 5001)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert names(listed(tmp_path / "x.safetensors")) == [("h", 1)]
    assert len(listed(tmp_path / "x.safetensors", depth=3).rows) == 3


PARTS = st.sampled_from(["0", "1", "2", "weight", "absmax", "", "9" * 12])
NAMES = st.sets(st.lists(PARTS, min_size=1, max_size=4).map(".".join), min_size=1, max_size=12)


@example(called={"h.0.w", "h.1.w", "h.2.w"}, sizes=[1] * 12, is_one=True)
@example(called={"h", "h.0", "h.1", "h.0.w", "h.1.w", ""}, sizes=[2] * 12, is_one=False)
@given(called=NAMES, sizes=st.lists(st.integers(1, 2), min_size=12, max_size=12), is_one=st.booleans())
def test_rows_add_up_to_the_model(
    called: set[str], sizes: list[int], is_one: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of any names, at every depth; also where all tensors are one (`is_one`), which counts once."""
    path = tmp_path_factory.mktemp("named") / "x.pt"
    tied = torch.zeros(3)
    torch.save(
        {name: tied if is_one else torch.zeros(size) for name, size in zip(sorted(called), sizes, strict=False)}, path
    )
    stored = [3] * len(called) if is_one else sizes[: len(called)]
    for depth in range(1, 8):
        for alike in (True, False):
            report = listed(path, depth=depth, statistics=not alike)
            assert report.tensors == len(called)
            assert sum(row.copies * row.tensors for row in report.rows) == report.tensors
            assert sum(row.copies * row.parameters for row in report.rows) == report.parameters
            assert sum(row.copies * row.size_bytes for row in report.rows) == report.size_bytes == 4 * sum(stored)


def test_in_all_forms(llama: Path, program: Any, check_output: Check) -> None:
    report = check_output(
        program,
        ["layers", str(llama), "--verbose", "--filter", "*layers.1.mlp*"],
        values={"tensors": 3, "parameters": 3 * 32 * 64, "by_tensor": True, "filter": "*layers.1.mlp*"},
        shows=["model.layers.1.mlp.down_proj.weight", "32 × 64", "2.0K", "8.2 kB"],
        lines=["model.layers.1.mlp.down_proj.weight\t1\t32 × 64\tF32\t2048\t8192"],
    )
    assert [row["shape"] for row in report["rows"]] == [[32, 64], [64, 32], [64, 32]]


def test_a_pattern_that_nothing_matches_says_what_names_are_like(llama: Path, program: Any, capsys: Any) -> None:
    assert program(["layers", str(llama), "--filter", "q_proj"]) == 1
    error = capsys.readouterr().err
    assert "error: no tensor is called like q_proj" in error
    assert "hint: names look like model." in error


def test_statistics_are_those_of_the_values(tmp_path: Path, program: Any, check_output: Check) -> None:
    torch.manual_seed(0)
    weights = torch.randn(50, 40)
    weights[0, :10] = 0
    weights[1, 0], weights[1, 1], weights[2, 0] = 30.0, float("nan"), float("inf")
    tensors = {"w": weights, "half": weights.bfloat16(), "ids": torch.arange(7)}
    save_file(tensors, tmp_path / "x.safetensors")
    report = check_output(
        program, ["layers", str(tmp_path / "x.safetensors"), "--stats"], values={}, shows=["NaN", "█"]
    )
    for row in report["rows"]:
        found, values = row["statistics"], tensors[row["name"]].double().numpy().ravel()
        finite = values[np.isfinite(values)]
        assert (found["count"], found["nan"], found["inf"]) == (
            len(values), int(np.isnan(values).sum()), int(np.isinf(values).sum()),
        )  # fmt: skip
        told = found["finite"]
        for key, value in (("mean", finite.mean()), ("std", finite.std()), ("minimum", finite.min())):
            assert told[key] == pytest.approx(value, rel=1e-6)
        assert told["zeros"] == int((finite == 0).sum())
        assert sum(told["histogram"]) == len(finite)


def test_statistics_of_modules_are_those_of_all_their_weights(bert: Path, program: Any, check_output: Check) -> None:
    report = check_output(
        program,
        ["layers", str(bert), "--stats", "--depth", "2"],
        values={"by_tensor": False},
        shows=["encoder.layer.0.attention", "encoder.layer.1.attention", "--verbose tells of each tensor"],
    )
    tensors = load_file(bert / "model.safetensors")
    for row in report["rows"]:
        inside = [
            tensor for name, tensor in tensors.items() if name.startswith(f"{row['name']}.") or name == row["name"]
        ]
        assert row["copies"] == 1, "layers that are alike have other values"
        assert row["tensors"] == len(inside)
        values = torch.cat([tensor.flatten() for tensor in inside]).double().numpy()
        told = row["statistics"]["finite"]
        assert row["statistics"]["count"] == len(values)
        assert told["mean"] == pytest.approx(values.mean(), rel=1e-6, abs=1e-9)
        assert told["std"] == pytest.approx(values.std(), rel=1e-6)
        assert (told["minimum"], told["maximum"]) == (values.min(), values.max())
        assert told["zeros"] == (values == 0).sum()
    assert sum(row["statistics"]["count"] for row in report["rows"]) == report["parameters"]


def test_indices_are_left_out_of_modules_and_told_alone(tmp_path: Path) -> None:
    weights = {"emb.weight": torch.full((3, 2), 0.5), "emb.ids": torch.arange(9), "ids.all": torch.arange(9)}
    save_file(weights, tmp_path / "x.safetensors")
    report = listed(tmp_path / "x.safetensors", statistics=True)
    found = {row.name: row.statistics for row in report.rows}
    assert report.notes == ("statistics leave out 1 tensor without floats",)
    for name, count, mean in (("emb", 6, 0.5), ("ids", 9, 4.0)):
        told = found[name]
        assert told is not None
        assert told.finite is not None
        assert (told.count, told.finite.mean) == (count, mean)


def test_verbose_and_ranks_list_tensors(bert: Path) -> None:
    for how in ({"by_tensor": True, "statistics": True}, {"rank": True, "statistics": True, "depth": 2}):
        report = listed(bert, pattern="*layer.0.attention.self*", **how)
        assert report.by_tensor
        assert [row.tensors for row in report.rows] == [1] * 6
        assert all(row.statistics and row.statistics.finite and row.statistics.finite.histogram for row in report.rows)


def test_effective_ranks_are_those_of_the_singular_values(tmp_path: Path, program: Any, check_output: Check) -> None:
    torch.manual_seed(0)
    tensors = {"low": torch.randn(60, 5) @ torch.randn(5, 40), "full": torch.randn(60, 40), "row": torch.zeros(9)}
    save_file(tensors, tmp_path / "x.safetensors")
    report = check_output(
        program, ["layers", str(tmp_path / "x.safetensors"), "--rank"], values={}, shows=["stable rank"]
    )
    for row in report["rows"]:
        if row["name"] == "row":
            assert row["rank"] is None
            continue
        spectrum = np.linalg.svd(tensors[row["name"]].double().numpy(), compute_uv=False)
        share = spectrum / spectrum.sum()
        share = share[share > 0]
        assert row["rank"]["entropy_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=0.02)
        assert row["rank"]["stable_rank"] == pytest.approx((spectrum**2).sum() / spectrum[0] ** 2, rel=0.02)


def test_a_tensor_that_has_no_rank_leaves_the_others_theirs(tmp_path: Path, program: Any, check_output: Check) -> None:
    broken = {f"m{number}": torch.full((3, 3), float("nan")) for number in range(7)}
    save_file({**broken, "ok": torch.eye(4)}, tmp_path / "x.safetensors")
    told = "no effective rank of m0, m1, m2, m3, m4 and 2 more, each of which has values that are NaN or infinite"
    report = check_output(
        program,
        ["layers", str(tmp_path / "x.safetensors"), "--rank"],
        values={"notes": [told]},
        shows=["m0       3 × 3                -         -             -"],
    )
    for row in report["rows"]:
        assert row["unmeasured"] == ([] if row["name"] == "ok" else ["rank"])
        assert (row["rank"] is None) == (row["name"] != "ok")
    assert report["rows"][-1]["rank"]["entropy_rank"] == pytest.approx(4)


def test_a_tensor_that_has_no_statistics_leaves_the_others_theirs(tmp_path: Path, program: Any, capsys: Any) -> None:
    huge = torch.tensor([[1e200, -1e200]], dtype=torch.float64)
    save_file({"a.huge": huge, "a.ok": torch.ones(3), "b": huge.clone()}, tmp_path / "x.safetensors")
    report = listed(tmp_path / "x.safetensors", statistics=True)
    assert report.notes == (
        "no statistics of a.huge, b, each of which has values so large that their squares are beyond float64",
    )
    together, alone = report.rows
    assert together.statistics is not None
    assert (together.statistics.count, together.unmeasured) == (3, ())
    assert (alone.statistics, alone.unmeasured) == (None, ("statistics",))
    assert program(["layers", str(tmp_path / "x.safetensors"), "--stats", "--filter", "b"]) == 0
    assert "-     -     -     -" in capsys.readouterr().out


def test_a_type_of_unknown_values_is_told_of(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("odd", np.zeros((2, 292), np.uint8), raw_dtype=GGMLQuantizationType.Q8_K)
    writer.add_tensor("ok", np.ones((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = listed(tmp_path / "x.gguf", statistics=True, rank=True)
    why = "of odd, which is of the type Q8_K, whose values are not known"
    assert report.notes == (f"no statistics {why}", f"no effective rank {why}")
    assert [row.unmeasured for row in report.rows] == [("statistics", "rank"), ()]


def test_a_file_that_ends_too_early_is_no_matter_of_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4, 4), "b": torch.ones(4, 4)}, path)
    with open_model(parse_reference(str(path))) as model:
        path.write_bytes(path.read_bytes()[:-8])
        for how in ({"statistics": True}, {"rank": True}):
            with pytest.raises(ModelError, match="too early"):
                list_layers(model, **how)


def test_progress_is_shown_only_where_values_are_read(llama: Path, program: Any, monkeypatch: Any) -> None:
    opened = []
    real = opening.reading

    def reading(*args: Any, **how: Any) -> Any:
        opened.append(args[0])
        return real(*args, **how)

    monkeypatch.setattr(opening, "reading", reading)
    for more, times in (([], 0), (["--verbose"], 0), (["--stats"], 1), (["--rank"], 2)):
        assert program(["layers", str(llama), *more]) == 0
        assert len(opened) == times
