"""Whether a teacher and a student mean the same by every token, found before anything is loaded or trained.

Vocabularies are compared id by id, and never by their sizes: heads are padded to round numbers of rows, to others in
other sizes of one model (Qwen 2.5: 151,936 or 152,064 rows for 151,665 tokens). What lies beyond the highest id of a
token is padding and is cut off. The same tokens in another order are served by mapping ids. Anything else is
refused where losses compare tokens.

Nothing here needs torch or transformers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal

from entrenar_core.errors import ModelError
from entrenar_core.models.splitting import Splitting, compare_splitting
from entrenar_core.models.tokenizer_facts import ROLES, TokenizerFacts

_SHOWN = 3
_TEXT_SHOWN = 24


@dataclass(frozen=True, slots=True)
class VocabularyDifference:
    """Where the vocabularies of a teacher and a student part, each in the order of ids.

    `only_teacher` and `only_student` are tokens that the other lacks, with their ids; `moved` are tokens that both
    have, with the teacher's id and the student's.
    """

    only_teacher: tuple[tuple[str, int], ...]
    only_student: tuple[tuple[str, int], ...]
    moved: tuple[tuple[str, int, int], ...]

    def __str__(self) -> str:
        parts = [
            _some("only the teacher has", [f"{token!r} ({id_})" for token, id_ in self.only_teacher]),
            _some("only the student has", [f"{token!r} ({id_})" for token, id_ in self.only_student]),
            _some("other ids have", [f"{token!r} ({id_}, {other})" for token, id_, other in self.moved]),
        ]
        return "; ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class VocabularySize:
    """How many `tokens` a tokenizer has, and how many `ids` up to the highest of them; `rows` of the model's head.

    `gaps` are ids that no token has; `rowless` tokens have an id beyond the rows. `rows` is None where the model's
    configuration does not say.
    """

    tokens: int
    ids: int
    rows: int | None
    gaps: int
    rowless: int

    @property
    def padding(self) -> int | None:
        """Rows beyond the last token."""
        return None if self.rows is None else max(self.rows - self.ids, 0)


@dataclass(frozen=True, slots=True)
class RoleDifference:
    """A special token that is another one in the student. None: there is none."""

    role: str
    teacher: str | None
    student: str | None


@dataclass(frozen=True, slots=True)
class VocabularyFinding:
    """What the comparison found.

    `length` is the real one: so many columns of both models' logits, in the student's order, stand for the same
    tokens. `teacher_ids` has the teacher's id for each of the student's, where the verdict is `permuted`, and
    `difference` says what differs, where it is `differing`.
    """

    verdict: Literal["identical", "permuted", "differing"]
    teacher: VocabularySize
    student: VocabularySize
    length: int
    difference: VocabularyDifference | None
    teacher_ids: tuple[int, ...] | None
    roles: tuple[RoleDifference, ...]
    splitting: Splitting

    def __str__(self) -> str:
        if self.difference is not None:
            sizes = f"teacher {self.teacher.tokens:,} tokens, student {self.student.tokens:,}"
            return "; ".join(("differing", sizes, str(self.difference), *_rowless(self)))
        order = "identical" if self.verdict == "identical" else "the same tokens in another order, which is mapped"
        parts = [f"{order}, {self.student.tokens:,} tokens", *_padded(self), *_gaps(self), *_told(self)]
        return "; ".join(parts)

    def warnings(self) -> tuple[str, ...]:
        """What does not stop a run, and may spoil it."""
        if self.difference is not None:
            return ()
        found = []
        if self.splitting.alike is False:
            found.append(
                f"teacher and student split texts differently, such as {_shortened(self.splitting.text or '')!r} "
                f"({' and '.join(self.splitting.parts) or 'special tokens'}): the teacher reads tokens in an order "
                "that it was not trained on"
            )
        found += [
            f"texts end with {difference.student!r} for the student, and with {difference.teacher!r} for the teacher, "
            "which reads the student's"
            for difference in self.roles
            if difference.role == "eos" and difference.student is not None
        ]
        return (*found, *(f"{text}: a text that holds one cannot be read" for text in _rowless(self)))


def diagnose(
    teacher: TokenizerFacts,
    student: TokenizerFacts,
    *,
    teacher_rows: int | None = None,
    student_rows: int | None = None,
) -> VocabularyFinding:
    """Compares two tokenizers, and the vocabularies with the rows of the models' heads, where these are known.

    With the same tokens in another order, an id that no token of the student has is paired with one that no token of
    the teacher has. Where the teacher has no row left for it, or none for a token, the vocabularies are not the same.
    """
    theirs, ours = _without_padding(teacher.tokens), _without_padding(student.tokens)
    sizes = _size(theirs, teacher_rows), _size(ours, student_rows)
    difference, teacher_ids = vocabulary_difference(theirs, ours), None
    length = min(sizes[1].ids, student_rows or sizes[1].ids)
    if difference is None:
        length = min(length, teacher_rows or length)
    elif not difference.only_teacher and not difference.only_student:
        teacher_ids = _teacher_ids(theirs, ours, length, teacher_rows)
    served = difference is None or teacher_ids is not None
    roles = tuple(
        RoleDifference(role, teacher.roles.get(role), student.roles.get(role))
        for role in ROLES
        if teacher.roles.get(role) != student.roles.get(role)
    )
    return VocabularyFinding(
        "identical" if difference is None else "permuted" if served else "differing",
        *sizes,
        length,
        None if served else difference,
        teacher_ids,
        roles,
        compare_splitting(teacher, student) if served else Splitting(None),
    )


def vocabulary_difference(teacher: Mapping[str, int], student: Mapping[str, int]) -> VocabularyDifference | None:
    """Compares two vocabularies, tokens with their ids; None when every id means the same in both."""
    if teacher == student:
        return None
    by_id = sorted(teacher.items(), key=lambda item: item[1])
    return VocabularyDifference(
        tuple((token, id_) for token, id_ in by_id if token not in student),
        tuple(sorted(((t, id_) for t, id_ in student.items() if t not in teacher), key=lambda item: item[1])),
        tuple((token, id_, student[token]) for token, id_ in by_id if student.get(token, id_) != id_),
    )


def refusal(finding: VocabularyFinding, *, also: str = "") -> tuple[str, str] | None:
    """What is wrong with vocabularies that losses over tokens cannot compare, and what to do; None if they can.

    `also` is another way out, added to the hint (see reading.py).
    """
    if finding.difference is None:
        return None
    parts = (
        f"the vocabularies of teacher ({finding.teacher.tokens:,} tokens) and student "
        f"({finding.student.tokens:,} tokens) differ: {finding.difference}",
        *_rowless(finding),
    )
    hint = (
        "take a student with the teacher's tokenizer, or instead of `student.model_id` give its sizes "
        "(`student.hidden_size`, `num_layers`, `num_heads`) or `student.init_from`, which take the tokenizer over"
    )
    return "; ".join(parts), hint + also


def require_one_vocabulary(finding: VocabularyFinding, *, also: str = "") -> None:
    """Holds the student to the teacher's vocabulary, as losses over tokens need; `also` as in `refusal`.

    Raises:
        ModelError: some token is in one of them only; the message counts them and shows the first few.
    """
    if problem := refusal(finding, also=also):
        raise ModelError(*problem)


def _some(which: str, tokens: list[str]) -> str:
    more = f" and {len(tokens) - _SHOWN:,} more" if len(tokens) > _SHOWN else ""
    return f"{which} {', '.join(tokens[:_SHOWN])}{more}" if tokens else ""


def _without_padding(tokens: Mapping[str, int]) -> Mapping[str, int]:
    """llama.cpp's converter names every id that no token has `[PAD<id>]`; in a GGUF they are no tokens either."""
    fill = {token for token, id_ in tokens.items() if token.startswith("[PAD") and token == f"[PAD{id_}]"}
    return {token: id_ for token, id_ in tokens.items() if token not in fill} if fill else tokens


def _size(tokens: Mapping[str, int], rows: int | None) -> VocabularySize:
    used = set(tokens.values())
    ids = max(used, default=-1) + 1
    rowless = 0 if rows is None else sum(id_ >= rows for id_ in tokens.values())
    return VocabularySize(len(tokens), ids, rows, ids - len(used), rowless)


def _teacher_ids(
    teacher: Mapping[str, int], student: Mapping[str, int], length: int, teacher_rows: int | None
) -> tuple[int, ...] | None:
    if teacher_rows is not None and length > teacher_rows:
        return None
    place = {id_: teacher[token] for token, id_ in student.items()}
    used = set(teacher.values())
    spare = (id_ for id_ in count() if id_ not in used)
    ids = tuple(place[id_] if id_ in place else next(spare) for id_ in range(length))
    inside = teacher_rows is None or max(ids, default=-1) < teacher_rows
    return ids if inside and len(set(ids)) == len(ids) else None


def _padded(finding: VocabularyFinding) -> Iterator[str]:
    theirs, ours = finding.teacher, finding.student
    known = {f"{size.rows:,}" for size in (theirs, ours) if size.rows is not None}
    if not (theirs.padding or ours.padding):
        return
    if len(known) == 1:
        yield f"heads padded to {known.pop()}"
        return
    sides = (("teacher", theirs), ("student", ours))
    yield "heads padded to " + " and ".join(f"{size.rows:,} ({who})" for who, size in sides if size.padding)


def _gaps(finding: VocabularyFinding) -> Iterator[str]:
    if finding.student.gaps or finding.teacher.gaps:
        gaps = dict.fromkeys((finding.teacher.gaps, finding.student.gaps))
        yield f"{' and '.join(f'{number:,}' for number in gaps)} ids that no token has"


def _rowless(finding: VocabularyFinding) -> Iterator[str]:
    for who, size in (("teacher", finding.teacher), ("student", finding.student)):
        if size.rowless:
            yield f"{size.rowless:,} of the {who}'s tokens have no row in its embedding"


def _told(finding: VocabularyFinding) -> Iterator[str]:
    splitting = finding.splitting
    yield from _rowless(finding)
    yield from (f"another {difference.role} token" for difference in finding.roles)
    if splitting.alike is False:
        yield f"texts are split differently, such as {_shortened(splitting.text or '')!r}"
    elif splitting.alike is None:
        yield f"splitting not compared: {splitting.unknown}"


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else f"{text[: _TEXT_SHOWN - 1]}…"
