"""What `validate` finds out about the vocabularies of teacher and student, from their files and without torch."""

from entrenar_core.artifact import ModelArtifact
from entrenar_core.config.one_teacher import OneTeacher
from entrenar_core.errors import ModelError, Problem
from entrenar_core.models.reading import reads_tokens, way_out
from entrenar_core.models.tokenizer_facts import TokenizerFacts, Unread, read_facts
from entrenar_core.models.vocabulary import VocabularyFinding, VocabularySize, diagnose, refusal
from entrenar_distill.reports import Check, Vocabulary, VocabularySide

NAME = "vocabulary"


def compare(
    config: OneTeacher,
    task: str | None,
    teacher: ModelArtifact,
    student: ModelArtifact | None,
    problems: list[Problem],
) -> tuple[Check | None, Vocabulary | None]:
    """Compares the tokenizers of both; without a student of its own, looks at the teacher's, which it takes over.

    A difference is a mistake where the teacher reads the student's tokens, and only told where it reads the texts by
    itself. What the task hangs on is left open while it is not known.
    """
    facts: list[TokenizerFacts] = []
    for part, artifact in (("teacher", teacher), ("student", student)):
        found = _facts(part, artifact, config, problems) if artifact else None
        if isinstance(found, Unread):
            return Check(NAME, "skipped", f"not compared: {found.reason}"), None
        if artifact is not None and found is None:
            return None, None
        facts += [found] if found else []
    rows = student.architecture.vocab_size if student else _rows_of_new(config, teacher, facts[0])
    finding = diagnose(facts[0], facts[-1], teacher_rows=teacher.architecture.vocab_size, student_rows=rows)
    reads = reads_tokens(config, task)
    problem = refusal(finding, also=way_out(config, task)) if reads else None
    if problem is not None:
        problems.append(Problem(*problem, "student.model_id"))
        return None, None
    named = str(student.reference) if student else "the student"
    return Check(NAME, "ok", _detail(finding, reads, task)), report(finding, str(teacher.reference), named)


def _facts(
    part: str, artifact: ModelArtifact, config: OneTeacher, problems: list[Problem]
) -> TokenizerFacts | Unread | None:
    source = config.teacher if part == "teacher" else config.student
    if source.trust_remote_code:
        return Unread(f"the tokenizer of {artifact.reference} may be code of its own")
    try:
        return read_facts(artifact)
    except ModelError as error:
        problems.append(Problem(error.message, error.hint, f"{part}.model_id"))
        return None


def _rows_of_new(config: OneTeacher, teacher: ModelArtifact, facts: TokenizerFacts) -> int | None:
    """Layers of a teacher come with its embedding; a student of given sizes has a row for every id."""
    return teacher.architecture.vocab_size if config.student.init_from else 1 + max(facts.tokens.values(), default=-1)


def _detail(finding: VocabularyFinding, reads: bool, task: str | None) -> str:
    if reads or task is None or finding.verdict == "identical":
        return str(finding)
    return f"{finding}; the teacher reads the texts by itself"


def report(finding: VocabularyFinding, teacher: str, student: str) -> Vocabulary:
    """The finding as reports carry it, with the names of the models."""
    difference, splitting = finding.difference, finding.splitting
    return Vocabulary(
        finding.verdict,
        finding.length if difference is None else None,
        _side(teacher, finding.teacher),
        _side(student, finding.student),
        len(difference.only_teacher) if difference else 0,
        len(difference.only_student) if difference else 0,
        len(difference.moved) if difference else 0,
        tuple(role.role for role in finding.roles),
        splitting.alike,
        splitting.text,
        splitting.parts,
        finding.warnings(),
    )


def _side(model: str, size: VocabularySize) -> VocabularySide:
    return VocabularySide(model, size.tokens, size.ids, size.gaps, size.rows, size.padding)
