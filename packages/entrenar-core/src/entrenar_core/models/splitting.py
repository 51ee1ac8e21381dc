"""Whether two tokenizers cut texts into the same tokens.

One vocabulary does not say so: with other merges, or another rule for spaces, its tokens come in other sequences. A
teacher that reads the student's tokens then reads sequences that it never saw in its own training.
"""

from dataclasses import dataclass

from entrenar_core.errors import ModelError
from entrenar_core.models.tokenizer_facts import TokenizerFacts

PROBES = (
    "The quick brown fox doesn't jump over the lazy dog, and isn't sorry.",
    " It begins and ends with a space ",
    "In 2024, 3.14159 of 1,000,000 cost $12.50 (or 50 %).",
    "two  spaces,   three,\ttabs\t\tand\n\nnew lines\r\n",
    "def area(r: float) -> float:\n    return 3.14 * r ** 2  # π\n",
    'if (x != y) { z[i++] = {"key": null}; } // braces',
    "https://example.org/a_path?query=1&other=two#part",
    "UPPER lower MiXeD snake_case camelCase kebab-case",
    "Füße, naïve façade, žluťoučký kůň",
    "e\u0301galite\u0301 is written with combining accents",
    "Съешь ещё этих мягких булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "العلم نور والجهل ظلام",
    "हिन्दी में एक छोटा वाक्य है।",
    "机器学习让小模型向大模型学习。",
    "小さなモデルは先生から学びます。",
    "작은 모델은 큰 모델에게서 배운다.",
    "🙂 👩‍💻 🇪🇺 and ½ ≤ ∑",
)
"""Texts that rules of splitting tell apart: cases, numbers, spaces, code, scripts, and signs beyond them."""


@dataclass(frozen=True, slots=True)
class Splitting:
    """`alike` is None where it cannot be told, for the reason `unknown`.

    `parts` are those that differ between the tokenizers, such as `pre_tokenizer`; they may differ and split all
    `PROBES` alike. Else `text` is the first of them that is split differently, into `teacher_tokens` and
    `student_tokens`.
    """

    alike: bool | None
    parts: tuple[str, ...] = ()
    text: str | None = None
    teacher_tokens: tuple[str, ...] = ()
    student_tokens: tuple[str, ...] = ()
    unknown: str | None = None


def compare_splitting(teacher: TokenizerFacts, student: TokenizerFacts) -> Splitting:
    """Compares the settings of two tokenizers, and where they differ, what becomes of `PROBES`."""
    parts: tuple[str, ...] = ()
    if teacher.form == student.form:
        names = dict.fromkeys((*teacher.parts, *student.parts))
        parts = tuple(name for name in names if teacher.parts.get(name) != student.parts.get(name))
        if not parts:
            return Splitting(True)
    if teacher.split is None or student.split is None:
        return Splitting(None, parts, unknown=f"{_forms(teacher, student)} are compared when they are loaded")
    try:
        for text in PROBES:
            theirs, ours = tuple(teacher.split(text)), tuple(student.split(text))
            if theirs != ours:
                return Splitting(False, parts, text, theirs, ours)
    except ModelError as error:
        return Splitting(None, parts, unknown=error.message)
    return Splitting(True, parts)


def _forms(teacher: TokenizerFacts, student: TokenizerFacts) -> str:
    return " and ".join(dict.fromkeys((f"tokenizers in {teacher.form}", student.form)))
