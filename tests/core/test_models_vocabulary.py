"""Two vocabularies are one when every token means the same, wherever its id is; and what differs is told."""

import json
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import ModelError
from entrenar_core.models.splitting import PROBES
from entrenar_core.models.token_map import MappedTeacher, TokenMap
from entrenar_core.models.tokenizer_facts import TokenizerFacts, Unread, facts_of, read_facts
from entrenar_core.models.tokenizers import load_tokenizer
from entrenar_core.models.vocabulary import (
    VocabularyFinding,
    diagnose,
    refusal,
    require_one_vocabulary,
    vocabulary_difference,
)
from tiny_models import tiny_bert, tiny_gguf, tiny_llama
from tiny_vocabularies import edit_tokenizer, renumbered, shuffled

Change = Callable[[dict[str, Any]], object]
TOKENS = string.ascii_letters


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "bert")


def read(folder: Path) -> TokenizerFacts:
    facts = read_facts(inspect_folder(folder))
    assert isinstance(facts, TokenizerFacts)
    return facts


def loaded(folder: Path) -> TokenizerFacts:
    return facts_of(load_tokenizer(inspect_folder(folder)))


def both(teacher: Path, student: Path) -> VocabularyFinding:
    """The finding, which is the same from the files as from the loaded tokenizers."""
    rows = {
        f"{part}_rows": inspect_folder(folder).architecture.vocab_size
        for part, folder in (("teacher", teacher), ("student", student))
    }
    finding = diagnose(loaded(teacher), loaded(student), **rows)
    assert diagnose(read(teacher), read(student), **rows) == finding
    return finding


def facts(tokens: dict[str, int]) -> TokenizerFacts:
    return TokenizerFacts(tokens, {}, {})


def bare(finding: VocabularyFinding) -> tuple[str, int]:
    return finding.verdict, finding.length


def test_the_same_tokenizer_elsewhere_is_one_vocabulary(llama: Path, tmp_path: Path) -> None:
    finding = both(llama, tiny_llama(tmp_path / "again"))
    assert bare(finding) == ("identical", 320)
    assert str(finding) == "identical, 320 tokens"
    assert finding.splitting.alike
    assert finding.teacher_ids is finding.difference is refusal(finding) is None
    assert finding.warnings() == finding.roles == ()
    require_one_vocabulary(finding)


def test_heads_are_padded_and_the_real_length_is_that_of_the_tokens(llama: Path, tmp_path: Path) -> None:
    same = {id_: id_ for id_ in range(320)}
    wide, wider = (renumbered(llama, tmp_path / str(rows), same, rows=rows) for rows in (352, 384))
    finding = both(wide, wider)
    assert bare(finding) == ("identical", 320)
    assert (finding.teacher.padding, finding.student.padding) == (32, 64)
    assert str(finding) == "identical, 320 tokens; heads padded to 352 (teacher) and 384 (student)"
    assert str(both(wide, wide)) == "identical, 320 tokens; heads padded to 352"
    assert str(both(wide, llama)) == "identical, 320 tokens; heads padded to 352 (teacher)"


def test_gaps_between_ids_are_told_and_count_for_the_length(llama: Path, tmp_path: Path) -> None:
    place = {id_: id_ + 7 * (id_ >= 100) for id_ in range(320)}
    finding = both(*(renumbered(llama, tmp_path / name, place) for name in "ab"))
    assert bare(finding) == ("identical", 327)
    assert (finding.teacher.tokens, finding.teacher.ids, finding.teacher.gaps) == (320, 327, 7)
    assert str(finding) == "identical, 320 tokens; 7 ids that no token has"


def test_the_same_tokens_in_another_order_are_mapped(llama: Path, tmp_path: Path) -> None:
    teacher = renumbered(llama, tmp_path / "teacher", shuffled(320), rows=330)
    finding = both(teacher, llama)
    assert bare(finding) == ("permuted", 320)
    assert finding.teacher_ids == tuple(shuffled(320)[id_] for id_ in range(320))
    assert finding.splitting.alike, "ids in the rules of splitting are no difference"
    assert finding.splitting.parts == ()
    assert finding.roles == finding.warnings() == ()
    assert str(finding).startswith("the same tokens in another order, which is mapped, 320 tokens; heads padded to 330")
    require_one_vocabulary(finding)


def test_a_template_of_special_tokens_is_the_same_at_other_ids(bert: Path, tmp_path: Path) -> None:
    size = json.loads((bert / "config.json").read_text())["vocab_size"]
    finding = both(renumbered(bert, tmp_path / "teacher", shuffled(size)), bert)
    assert finding.verdict == "permuted"
    assert finding.splitting.alike
    assert finding.splitting.parts == ()


def test_ids_without_a_token_are_paired_with_each_other() -> None:
    teacher, student = {"a": 3, "b": 0, "c": 1}, {"a": 0, "b": 2, "c": 4}
    found = diagnose(facts(teacher), facts(student), teacher_rows=8, student_rows=8)
    assert bare(found) == ("permuted", 5)
    assert found.teacher_ids == (3, 2, 0, 4, 1), "the gap of the teacher, then its padding"
    assert diagnose(facts(teacher), facts(student), teacher_rows=5).verdict == "permuted"
    for rows in (3, 4):
        refused = diagnose(facts(teacher), facts(student), teacher_rows=rows)
        assert refused.verdict == "differing"
        assert refusal(refused)


def test_tokens_beyond_the_rows_shorten_the_vocabulary_and_are_told() -> None:
    tokens = {"a": 0, "b": 1, "c": 2, "d": 3}
    found = diagnose(facts(tokens), facts(tokens), teacher_rows=3, student_rows=4)
    assert bare(found) == ("identical", 3)
    assert found.teacher.rowless == 1
    assert "1 of the teacher's tokens have no row in its embedding" in str(found)
    assert "1 of the teacher's tokens" in found.warnings()[0]
    assert diagnose(facts(tokens), facts(tokens), student_rows=2).length == 2


def test_what_a_gguf_names_its_padding_is_no_token(tmp_path: Path) -> None:
    plain = facts({"<s>": 0, "a": 1, "b": 3})
    file = tiny_gguf(tmp_path / "padded.gguf", tokens=("<s>", "a", "[PAD2]", "b", "[PAD4]", "[PAD5]"))
    teacher = read(file)
    assert len(teacher.tokens) == 6
    found = diagnose(teacher, plain, teacher_rows=6, student_rows=4)
    assert bare(found) == ("identical", 4)
    assert (found.teacher.tokens, found.teacher.gaps, found.teacher.padding) == (3, 1, 2)
    assert diagnose(facts({"[PAD7]": 2, "a": 0}), facts({"a": 0})).verdict == "differing", "a token of that name"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda content: content["model"]["merges"].reverse(), "model"),
        (lambda content: content["pre_tokenizer"].update(add_prefix_space=True), "pre_tokenizer"),
        (lambda content: content.update(normalizer={"type": "Lowercase"}), "normalizer"),
        (
            lambda content: content.update(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [],
                    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
                }
            ),
            "post_processor",
        ),
    ],
)
def test_one_vocabulary_that_splits_otherwise_is_a_warning(
    change: Change, part: str, llama: Path, tmp_path: Path
) -> None:
    other = edit_tokenizer(tmp_path / "other", change, of=llama)
    finding = both(llama, other)
    assert finding.verdict == "identical"
    splitting = finding.splitting
    assert splitting.alike is False
    assert splitting.parts == (part,)
    assert splitting.text in PROBES
    tokenizers = [load_tokenizer(inspect_folder(folder)) for folder in (llama, other)]
    tokens = [tokenizer.convert_ids_to_tokens(tokenizer(splitting.text)["input_ids"]) for tokenizer in tokenizers]
    assert tokens == [list(splitting.teacher_tokens), list(splitting.student_tokens)]
    assert tokens[0] != tokens[1]
    earlier = PROBES[: PROBES.index(splitting.text)]
    assert all(a(text)["input_ids"] == b(text)["input_ids"] for text in earlier for a, b in [tokenizers])
    (warning,) = finding.warnings()
    assert f"({part})" in warning
    assert splitting.text[:20] in warning.encode().decode("unicode_escape")
    assert "texts are split differently, such as" in str(finding)
    require_one_vocabulary(finding)


def test_other_settings_that_split_all_probes_alike_are_no_warning(llama: Path, tmp_path: Path) -> None:
    finding = both(
        llama, edit_tokenizer(tmp_path / "x", lambda content: content["model"].update(fuse_unk=True), of=llama)
    )
    assert finding.splitting.alike
    assert finding.splitting.parts == ("model",)
    assert finding.warnings() == ()


def test_merges_in_their_older_spelling_are_the_same(llama: Path, tmp_path: Path) -> None:
    def older(content: dict[str, Any]) -> None:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]

    file = edit_tokenizer(tmp_path / "older", older, of=llama)
    assert isinstance(json.loads((file / "tokenizer.json").read_text())["model"]["merges"][0], str)
    assert both(llama, file).splitting.parts == ()


def test_the_scores_of_a_unigram_decide_how_it_splits(llama: Path, tmp_path: Path) -> None:
    pieces = ["<s>", "</s>", "<pad>", *string.ascii_lowercase, " ", "th", "he"]

    def unigram(first: float) -> Change:
        scores = [[piece, first if piece == "th" else -1.0] for piece in pieces]
        return lambda content: content.update(
            model={"type": "Unigram", "unk_id": 0, "vocab": scores}, pre_tokenizer=None, decoder=None
        )

    one, other = (edit_tokenizer(tmp_path / str(score), unigram(score), of=llama) for score in (-1.0, -9.0))
    finding = both(one, other)
    assert finding.verdict == "identical"
    assert finding.splitting.alike is False
    assert finding.splitting.parts == ("model",)
    assert both(one, one).splitting.alike


def test_a_special_token_with_another_part_is_told(llama: Path, tmp_path: Path) -> None:
    other = edit_tokenizer(tmp_path / "other", lambda _: 0, of=llama)
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<s>", "pad_token": None}))
    finding = both(llama, other)
    assert [(role.role, role.teacher, role.student) for role in finding.roles] == [
        ("eos", "</s>", "<s>"),
        ("pad", "<pad>", "<s>"),
    ]
    assert "another eos token" in str(finding)
    (warning,) = finding.warnings()
    assert "texts end with '<s>' for the student, and with '</s>' for the teacher" in warning


def test_a_token_of_one_side_only_is_a_difference(llama: Path) -> None:
    longer = load_tokenizer(inspect_folder(llama))
    longer.add_tokens(["<extra>"])
    finding = diagnose(facts_of(longer), loaded(llama))
    assert finding.difference
    assert finding.difference.only_teacher == (("<extra>", 320),)
    assert finding.difference.only_student == finding.difference.moved == ()
    back = diagnose(loaded(llama), facts_of(longer))
    assert back.difference
    assert back.difference.only_student == (("<extra>", 320),)
    assert finding.warnings() == ()


def test_two_tokens_that_swap_their_ids_have_moved() -> None:
    difference = vocabulary_difference({"a": 0, "b": 1, "c": 2}, {"b": 0, "a": 1, "c": 2})
    assert difference
    assert difference.moved == (("a", 0, 1), ("b", 1, 0))


def test_vocabularies_of_two_kinds_are_refused_with_counts_and_settings(llama: Path, bert: Path) -> None:
    finding = both(llama, bert)
    with pytest.raises(ModelError) as raised:
        require_one_vocabulary(finding)
    message, hint = raised.value.message, str(raised.value.hint)
    assert f"teacher (320 tokens) and student ({finding.student.tokens:,} tokens) differ" in message
    assert "only the teacher has '<s>' (0), '</s>' (1), '<pad>' (2) and " in message
    assert "only the student has '[PAD]' (0)" in message
    assert len(message) < 500
    assert "`student.init_from`" in hint
    assert "`student.hidden_size`" in hint
    assert "streaming" not in hint
    also = "; or remove `dataset.streaming`"
    assert str(refusal(finding, also=also)[1]).endswith(also)  # type: ignore[index]
    assert str(finding).startswith(f"differing; teacher 320 tokens, student {finding.student.tokens}; only the teacher")


def test_a_tokenizer_that_only_loading_tells_is_not_compared(llama: Path, tmp_path: Path) -> None:
    def reason(folder: Path) -> str:
        found = read_facts(inspect_folder(folder))
        assert isinstance(found, Unread)
        return found.reason

    plain = edit_tokenizer(tmp_path / "plain", lambda _: 0, of=llama)
    (plain / "tokenizer.json").rename(plain / "vocab.json")
    assert reason(plain) == f"{plain} has no tokenizer.json, and its other files are read when it is loaded"
    odd = edit_tokenizer(tmp_path / "odd", lambda content: content["model"].update(vocab="abc"), of=llama)
    assert "has no vocabulary of a known form" in reason(odd)
    named = edit_tokenizer(tmp_path / "named", lambda _: 0, of=llama)
    config = json.loads((named / "tokenizer_config.json").read_text())
    (named / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<new>"}))
    assert "names '<new>', which is not in its tokenizer.json" in reason(named)
    assert "<new>" in loaded(named).tokens, "transformers adds it"


def test_a_gguf_of_pieces_spelled_otherwise_is_not_compared(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "bert.gguf")
    content = file.read_bytes()
    file.write_bytes(content.replace(b"gpt2", b"bert"))
    found = read_facts(inspect_folder(file))
    assert isinstance(found, Unread)
    assert "the kind 'bert'" in found.reason


def test_how_a_gguf_splits_is_compared_with_another_gguf_only(tmp_path: Path, llama: Path) -> None:
    one, other = (tiny_gguf(tmp_path / f"{name}.gguf") for name in "ab")
    assert diagnose(read(one), read(other)).splitting.alike
    splitting = diagnose(read(one), TokenizerFacts(read(one).tokens, {}, {}, split=read(llama).split)).splitting
    assert splitting.alike is None
    assert splitting.unknown == "tokenizers in GGUF and tokenizer.json are compared when they are loaded"
    assert "splitting not compared: " in str(diagnose(read(one), facts(dict(read(one).tokens))))


def test_a_broken_tokenizer_is_an_error_and_a_missing_one_too(llama: Path, tmp_path: Path) -> None:
    broken = edit_tokenizer(tmp_path / "broken", lambda _: 0, of=llama)
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        read_facts(inspect_folder(broken))
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        read_facts(inspect_folder(broken))


def test_rules_that_the_library_cannot_load_leave_the_splitting_open(llama: Path, tmp_path: Path) -> None:
    odd = edit_tokenizer(tmp_path / "odd", lambda content: content.update(pre_tokenizer={"type": "None"}), of=llama)
    finding = diagnose(read(llama), read(odd))
    assert finding.verdict == "identical"
    assert finding.splitting.alike is None
    assert "cannot be loaded" in str(finding)


def test_vocabularies_are_compared_without_torch(llama: Path, tmp_path: Path) -> None:
    other = edit_tokenizer(tmp_path / "other", lambda content: content["model"]["merges"].reverse(), of=llama)
    code = (
        "import sys; from pathlib import Path; from entrenar_core.artifact import inspect_folder\n"
        "from entrenar_core.models.tokenizer_facts import read_facts\n"
        "from entrenar_core.models.vocabulary import diagnose\n"
        "found = diagnose(*(read_facts(inspect_folder(Path(name))) for name in sys.argv[1:]))\n"
        "assert found.splitting.alike is False\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(llama), str(other)], check=True, timeout=60)


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, int]]:
    """The same tokens with ids of their own in both, and gaps."""
    size = draw(st.integers(1, 12))
    sides = [draw(st.lists(st.integers(0, 15), min_size=size, max_size=size, unique=True)) for _ in range(2)]
    teacher, student = (dict(zip(TOKENS, ids, strict=False)) for ids in sides)
    return teacher, student


@given(sides=vocabularies(), rows=st.integers(1, 40))
def test_every_token_is_mapped_to_itself_or_all_is_refused(
    sides: tuple[dict[str, int], dict[str, int]], rows: int
) -> None:
    teacher, student = sides
    found = diagnose(facts(teacher), facts(student), teacher_rows=rows)
    if teacher == student:
        assert bare(found) == ("identical", min(rows, max(student.values()) + 1))
        return
    gaps = set(range(max(student.values()))) - set(student.values())
    free = set(range(rows)) - set(teacher.values())
    served = max(teacher.values()) < rows and len(gaps) <= len(free)
    assert found.verdict == ("permuted" if served else "differing")
    if served:
        ids = found.teacher_ids
        assert ids
        assert found.length == len(ids) == max(student.values()) + 1
        assert len(set(ids)) == len(ids)
        assert max(ids) < rows
        assert all(ids[student[token]] == teacher[token] for token in student)


@given(size=st.integers(1, 9), padding=st.integers(0, 4), seed=st.integers(0, 99))
def test_a_mapped_head_gives_the_mapped_logits(size: int, padding: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randperm(size, generator=chance).tolist()
    token_map = TokenMap.of(ids)
    weight_VH = torch.randn(size + padding, 5, generator=chance)
    bias_V = torch.randn(size + padding, generator=chance)
    hidden_BTH = torch.randn(2, 3, 5, generator=chance)
    logits = hidden_BTH @ weight_VH.T + bias_V
    mapped = token_map.logits_to_student(logits)
    assert mapped.shape == (2, 3, size)
    for student, teacher in enumerate(ids):
        assert torch.equal(mapped[..., student], logits[..., teacher])
        assert token_map.to_teacher(torch.tensor([[student]])).tolist() == [[teacher]]
    head = hidden_BTH @ token_map.head_rows(weight_VH).T + token_map.head_rows(bias_V)
    torch.testing.assert_close(head, mapped)


@pytest.mark.parametrize("ids", [[0, 0], [1, -1]])
def test_a_map_that_loses_a_token_is_no_map(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="distinct"):
        TokenMap.of(ids)


def test_a_mapped_teacher_says_what_the_teacher_in_the_students_order_says(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    teacher = AutoModelForCausalLM.from_pretrained(
        renumbered(llama, tmp_path / "teacher", shuffled(320), rows=330), local_files_only=True
    )
    ids = TokenMap.of([shuffled(320)[id_] for id_ in range(320)])
    mapped = MappedTeacher(teacher, ids, over_tokens=True).eval()
    plain = AutoModelForCausalLM.from_pretrained(llama, local_files_only=True).eval()
    input_ids = torch.randint(320, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    with torch.no_grad():
        torch.testing.assert_close(
            mapped(input_ids=input_ids, attention_mask=mask).logits,
            plain(input_ids=input_ids, attention_mask=mask).logits,
        )
    assert set(dict(mapped.named_parameters())) == {f"model.{name}" for name, _ in teacher.named_parameters()}
    assert "teacher_ids_V" not in mapped.state_dict()


def test_the_logits_of_a_classifier_have_no_order_of_tokens() -> None:
    class Counting(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            answer = torch.stack([input_ids.sum(-1), attention_mask.sum(-1)], -1)
            return type("Output", (), {"logits": answer})

    mapped = MappedTeacher(Counting(), TokenMap.of([5, 3, 4]), over_tokens=False)
    ids = torch.tensor([[0, 1], [2, 2]])
    assert mapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.tolist() == [[8, 2], [8, 2]]
