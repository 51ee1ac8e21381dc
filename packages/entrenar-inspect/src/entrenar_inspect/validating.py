"""`entrenar-inspect validate`: every check, in the order in which a reader would come upon what they find."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from entrenar_core.errors import EntrenarError, UnsoundFileError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.sources import FileSource
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.checks import architecture, checksums, contents, files, tokenizer
from entrenar_inspect.checks.results import failed, skipped
from entrenar_inspect.opening import going_through, opened, reading
from entrenar_inspect.reports.validation import Check, ValidationReport
from entrenar_inspect.summary import Facts, facts_of

Progress = Callable[[int], None]
Found = TypeVar("Found", Check, Check | None)
_AFTER_STRUCTURE = ("values", "tensors", "configuration", "tokenizer")


def validate(
    text: str,
    *,
    strict: bool = False,
    checksum: bool = False,
    expect: Sequence[str] = (),
    revision: str | None = None,
    format: str | None = None,  # noqa: A002 - as the flag is called
    file: str | None = None,
    allow_pickle: bool = False,
) -> ValidationReport:
    """Checks the model that `text` refers to. Of one on the Hub only headers are read, and values are not looked at.

    Args:
        strict: whether what readers merely tolerate fails too.
        checksum: whether to compute the SHA-256 of every file, and to hold it against what is said of it.
        expect: what it should be, as `SHA256` of the only file or `FILE=SHA256`; it is computed then.

    Raises:
        UsageError: the reference cannot be meant; or what is expected is no SHA-256, or of no file of the model.
        NotFoundError, AccessError, FetchError: there is no such model, or it is not given.
    """
    expected = checksums.parsed(expect)
    try:
        with opened(text, revision=revision, format=format, file=file, allow_pickle=allow_pickle) as model:
            asked = checksums.wanted(model, expected)
            with reading("looks at values", model) as progress:
                checks = tuple(check for check in _checks(model, progress) if check is not None)
            sums = _sums(model) if checksum or expected else {}
            if checksum or expected:
                checks = (*checks, checksums.matching(model, sums, asked))
            return ValidationReport(text, model.format, strict, checks, sums)
    except UnsoundFileError as error:
        rest = (skipped(name, "the file cannot be read") for name in _AFTER_STRUCTURE)
        return ValidationReport(text, None, strict, (failed("structure", error.message), *rest), {})


def _checks(model: StoredModel, progress: Progress) -> Iterator[Check | None]:
    facts = facts_of(model, _translated(model))
    yield files.structure(model)
    yield contents.is_model(model, facts)
    yield files.index(model)
    yield files.settings(model)
    yield files.sums(model)
    yield files.conventions(model)
    yield _values(model, progress)
    yield _zeros(model)
    yield files.booleans(model)
    yield architecture.dtypes(model, facts)
    yield architecture.tensors(model, facts)
    yield architecture.sizes(facts)
    yield architecture.configuration(model, facts)
    yield architecture.tied(model, facts)
    yield _guarded("tokenizer", lambda: tokenizer.fits(model, _rows(facts)))
    yield _guarded("special tokens", lambda: tokenizer.special(model, _rows(facts)))


def _translated(model: StoredModel) -> Mapping[str, tuple[int, ...]] | None:
    """The tensors of a GGUF by their names in transformers, for its family's layout to know them; None of others."""
    if model.format is not WeightFormat.GGUF:
        return None
    from entrenar_core.conversion.gguf_names import family_of_gguf, renamed

    family = family_of_gguf(model.metadata)
    if family is None:
        return None
    names = renamed(model.metadata, family, model.tensors)
    return {
        named.name: named.shape(tensor.shape) for name, tensor in model.tensors.items() if (named := names.get(name))
    }


def _values(model: StoredModel, progress: Progress) -> Check:
    if not model.is_here:
        return skipped("values", "only headers were read")
    from entrenar_inspect.checks.values import finite

    return _guarded("values", lambda: finite(model, progress))


def _zeros(model: StoredModel) -> Check | None:
    if not model.is_here:
        return None
    from entrenar_inspect.checks.values import zeros

    return _guarded("zeros", lambda: zeros(model))


def _guarded(name: str, check: Callable[[], Found]) -> Found | Check:
    """What stops a check is what it found."""
    try:
        return check()
    except EntrenarError as error:
        return failed(name, error.message)


def _rows(facts: Facts) -> int | None:
    """Rows of the embeddings: as the tensors have them, else as the model says."""
    found = facts.detection.sizes.get("vocab") if facts.detection is not None else None
    return found or facts.architecture.vocab_size


def _sums(model: StoredModel) -> Mapping[str, str]:
    """The SHA-256 of each file that lies here."""
    here = {name: source for name, source in model.sources.items() if isinstance(source, FileSource)}
    with going_through("computes SHA-256", sum(source.size_bytes for source in here.values())) as progress:
        return checksums.digests(here, progress)
