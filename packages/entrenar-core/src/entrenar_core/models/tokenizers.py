"""Tokenizers of teachers and students, and whether two of them mean the same by every id."""

from dataclasses import dataclass

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.models.quiet import explaining

_SHOWN = 3


def load_tokenizer(artifact: ModelArtifact, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The artifact's own fast tokenizer, from a folder or from inside a GGUF; nothing is downloaded.

    It has a pad token: its own, else its end-of-text token, else its unknown token, so that no id is added to which the
    model has no embedding.

    Raises:
        ModelError: there is no tokenizer, it cannot be loaded, or no token can pad.
    """
    name, path = artifact.reference, artifact.tokenizer_path
    if path is None:
        raise ModelError(
            f"{name} has no tokenizer", "put tokenizer.json and tokenizer_config.json beside the weights of the model"
        )
    place, inside = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    with explaining("tokenizer", name, "fetch or export the model again"):
        tokenizer = AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=trust_remote_code, **inside
        )
        if not tokenizer.is_fast:
            raise ModelError(f"the tokenizer of {name} has no fast form", "save it as tokenizer.json with transformers")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer of {name} has no token to pad with, nor an end-of-text or unknown token",
            "name one under `pad_token` in its tokenizer_config.json",
        )
    return tokenizer


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


def _some(which: str, tokens: list[str]) -> str:
    more = f" and {len(tokens) - _SHOWN:,} more" if len(tokens) > _SHOWN else ""
    return f"{which} {', '.join(tokens[:_SHOWN])}{more}" if tokens else ""


def vocabulary_difference(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> VocabularyDifference | None:
    """Compares two vocabularies id by id; None when every id means the same in both."""
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    if ours == theirs:
        return None
    by_id = sorted(ours.items(), key=lambda item: item[1])
    return VocabularyDifference(
        tuple((token, id_) for token, id_ in by_id if token not in theirs),
        tuple(sorted(((token, id_) for token, id_ in theirs.items() if token not in ours), key=lambda item: item[1])),
        tuple((token, id_, theirs[token]) for token, id_ in by_id if theirs.get(token, id_) != id_),
    )


def require_one_vocabulary(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Holds the student to the teacher's vocabulary, as losses over tokens need.

    Raises:
        ModelError: some id means different tokens; the message counts them and shows the first few.
    """
    difference = vocabulary_difference(teacher, student)
    if difference:
        raise ModelError(
            f"the vocabularies of teacher ({len(teacher.get_vocab()):,} tokens) and student "
            f"({len(student.get_vocab()):,} tokens) differ: {difference}",
            "take a student with the teacher's tokenizer, or give its sizes or layers, which takes the tokenizer over",
        )
