"""While transformers loads, its bars and warnings are not for the user, and its errors need to be explained."""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from logging import ERROR, getLogger

import transformers
from huggingface_hub import errors
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from transformers.utils import logging

from entrenar_core.errors import ModelError

# What transformers raises, by no documented rule, on configurations and weights that are not what they should be.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    errors.StrictDataclassError,
    pickle.UnpicklingError,
)
_LONGEST = 300


@contextmanager
def quietly() -> Iterator[None]:
    """No bars, no warnings and no advice from transformers, until the block ends."""
    level, bars, hub_bars_off = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        (disable_progress_bars if hub_bars_off else enable_progress_bars)()


@contextmanager
def without_gguf_bar() -> Iterator[None]:
    """transformers' reader of GGUF draws a bar of its own, which none of its switches reaches."""
    from transformers import modeling_gguf_pytorch_utils as reader

    drawn = reader.tqdm
    reader.tqdm = partial(drawn, disable=True)
    try:
        yield
    finally:
        reader.tqdm = drawn


@contextmanager
def explaining(what: str, name: object, hint: str, done: str = "loaded") -> Iterator[None]:
    """Turns what transformers raises in the block into a ModelError: `what` of the model `name` cannot be loaded, or
    whatever else was `done` with it.
    """
    try:
        with quietly():
            yield
    except FAILURES as error:
        raise ModelError(f"the {what} of {name} cannot be {done}: {_reason(error)}", _hint(error, hint)) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch would advise to run whatever is inside
        return "it holds something other than tensors, or is broken"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines) or type(error).__name__
    return reason if len(reason) <= _LONGEST else f"{reason[: _LONGEST - 1]}…"


def _hint(error: BaseException, hint: str) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return "read that code, and set `trust_remote_code: true` beside its `model_id` if you trust it"
    if "does not recognize this architecture" in text or "Unrecognized configuration class" in text:
        return (
            f"transformers {transformers.__version__} has no such model for this task; take another or a newer version"
        )
    return hint


def mute_bitsandbytes() -> None:
    """It tells of kernels that it does without as it is imported, and of every call that it casts."""
    getLogger("bitsandbytes").setLevel(ERROR)
