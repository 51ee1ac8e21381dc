"""Names of tensors as patterns with numbers, and as a tree of modules."""

from collections.abc import Iterator

import pytest
from gguf import MODEL_ARCH, get_tensor_name_map
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import checkpoint
from entrenar_core.architectures.detection import Module, detect, grouped
from entrenar_core.architectures.naming import MAX_DEPTH, experts_in, layers_in, numbered

PARTS = st.sampled_from(["model", "layers", "0", "1", "7", "10", "01", "", "*", "weight", "x y"])
NAMES = st.lists(st.lists(PARTS, min_size=1, max_size=8).map(".".join), unique=True, max_size=40)


def modules(module: Module) -> Iterator[Module]:
    yield module
    for child in module.children.values():
        yield from modules(child)


@given(NAMES)
def test_every_name_comes_back_from_its_pattern_and_numbers(names: list[str]) -> None:
    found = numbered(names)
    assert sorted(name for same in found.values() for name in same.values()) == sorted(names)
    for pattern, same in found.items():
        for numbers, name in same.items():
            if pattern.startswith("\\"):
                assert (pattern, numbers) == (f"\\{name}", ())
            else:
                assert pattern.replace("*", "{}").format(*numbers) == name


@given(NAMES)
def test_every_name_is_once_in_the_tree_below_its_path(names: list[str]) -> None:
    seen = [(module.path, name) for module in modules(grouped(names)) for name in module.tensors]
    assert sorted(name for _, name in seen) == sorted(names)
    for path, name in seen:
        assert name.rpartition(".")[0] == path


def test_layers_stand_in_the_order_of_their_numbers() -> None:
    tree = grouped([f"model.layers.{layer}.mlp.weight" for layer in (10, 2, 0)] + ["model.layers.extra", "head"])
    layers = tree.children["model"].children["layers"]
    assert (layers.path, layers.indices, list(layers.children)) == ("model.layers", (0, 2, 10), ["0", "2", "10"])
    assert layers.tensors == ("model.layers.extra",)
    assert tree.tensors == ("head",)
    assert layers.children["10"].children["mlp"].tensors == ("model.layers.10.mlp.weight",)


def test_a_tensor_may_have_others_behind_its_name() -> None:
    tree = grouped(["q.weight", "q.weight.absmax"])
    assert tree.children["q"].tensors == ("q.weight",)
    assert tree.children["q"].children["weight"].tensors == ("q.weight.absmax",)


def test_names_of_gguf_files_have_their_layers() -> None:
    map_ = get_tensor_name_map(MODEL_ARCH.LLAMA, 3)
    names = {map_.get_name(name, (".weight",)) for name in checkpoint("llama", "AutoModelForCausalLM").shapes}
    assert None not in names
    tree = grouped(sorted(str(name) for name in names))
    assert tree.children["blk"].indices == (0, 1, 2)
    assert "attn_q" in tree.children["blk"].children["0"].children
    assert detect({str(name): (24, 24) for name in names}) is None


def test_a_name_of_any_depth_is_grouped() -> None:
    deep = ".".join("abc"[number % 3] for number in range(4_000))
    depths = [module.path.count(".") for module in modules(grouped([deep, ".", ""]))]
    assert max(depths) == MAX_DEPTH - 1


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        ([f"stack.{layer}.{part}" for layer in range(7) for part in ("a", "b")], 7),
        ([f"tower.{layer}.w" for layer in range(3)] + [f"trunk.{layer}.w" for layer in range(5)], 5),
        ([f"stages.{stage}.blocks.{block}.w" for stage in range(4) for block in range(18)], 4),
        ([f"features.{place}.weight" for place in (0, 3, 6, 7, 10)], None),
        ([f"net.{place}.weight" for place in (0, 2, 4)], 3),
        ([f"shard.{place}.weight" for place in range(20, 29)], 9),
        (["net.0.weight", "net.1.bias"], None),
        (["weight", "a.b", "*.c", ""], None),
        ([], None),
        (["x.0.w", "x.1.w", f"x.{10**8}.w"], None),
    ],
)
def test_layers_of_any_model_are_its_modules_that_are_numbered_and_alike(names: list[str], layers: int | None) -> None:
    assert layers_in(numbered(names)) == layers


def test_routed_experts_of_any_model_are_told_by_their_names() -> None:
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up.weight" for layer in (1, 2) for expert in range(6)]
    others = ["model.layers.1.mlp.shared_experts.up.weight", "experts.weight", "model.layers.0.mlp.up.weight"]
    assert experts_in(numbered(names + others)) == (tuple(names), 6)
    assert experts_in(numbered(others)) == ((), 0)
