"""The tokenizer: every id that it gives has a row in the embeddings."""

from entrenar_core.stored_model import StoredModel
from entrenar_inspect.checks.results import failed, ok, skipped, warned
from entrenar_inspect.reports.validation import Check
from entrenar_inspect.tokenizers import tokenizer_of

NAME = "tokenizer"


def fits(model: StoredModel, rows: int | None) -> Check:
    """Holds the largest id against the rows of the embeddings; None where these are not known.

    Raises:
        ModelError: the tokenizer's file is broken.
    """
    found = tokenizer_of(model)
    if found is None:
        return skipped(NAME, "there is none")
    if found.largest_id is None or found.tokens is None:
        return skipped(NAME, f"{found.file} was not read")
    if rows is None:
        return skipped(NAME, "how many embeddings there are is not known")
    if found.largest_id >= rows:
        return failed(NAME, f"ids go up to {found.largest_id:,}, and there are {rows:,} embeddings")
    if found.tokens < found.largest_id + 1:
        return warned(NAME, f"{found.largest_id + 1 - found.tokens:,} ids below {found.largest_id:,} have no token")
    spare = rows - found.largest_id - 1
    return ok(NAME, f"{found.tokens:,} tokens, {rows:,} embeddings" + (f", {spare:,} of them spare" if spare else ""))
