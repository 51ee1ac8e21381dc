"""Whether what a server tells is enough for the losses of a training; without torch, so that `validate` knows.

It tells the likeliest tokens at temperature 1. Of the others it is known what they have together there, and at no other
temperature: that takes the sum of their powers, which no server tells.
"""

from collections.abc import Iterator

from entrenar_core.config.desugaring import Term, soft_terms, terms_of
from entrenar_core.config.losses import SelectiveLoss, SoftLoss, compares_layers
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.wording import dotted
from entrenar_core.errors import Problem
from entrenar_core.teachers.cache.fitting import temperatures_of

_LIVE = "remove it, or take a teacher that is loaded here"


def check_losses(config: DistillationConfig, top_logprobs: int) -> list[Problem]:
    """What a training asks of a teacher that an endpoint does not tell."""
    terms = terms_of(config.distillation)
    asked = [*(term for term in terms if compares_layers(term.entry)), *soft_terms(terms)]
    problems = [problem for term in asked for problem in _problems(term, top_logprobs)]
    if config.training.diagnose_every is not None:
        message = "`training.diagnose_every` looks at the whole distribution, of which an endpoint tells the likeliest"
        problems.append(Problem(message, _LIVE, "training.diagnose_every"))
    return problems


def _problems(term: Term, top_logprobs: int) -> Iterator[Problem]:
    entry, where = term.entry, dotted(term.path)
    if compares_layers(entry):
        yield Problem(f"`{where}` compares layers, of which an endpoint tells nothing", _LIVE, where)
    if not isinstance(entry, SoftLoss):
        return
    if entry.name == "bild":
        message = (
            f"`{where}` asks what the student's likeliest tokens are to the teacher, which an endpoint does not tell"
        )
        yield Problem(message, _LIVE, where)
    if entry.entropy_threshold is not None:
        message = f"`{where}`: `entropy_threshold` asks for the teacher's entropy, which an endpoint does not tell"
        yield Problem(message, _LIVE, where)
    if isinstance(entry, SelectiveLoss) and entry.top_k is not None and entry.top_k > top_logprobs:
        message = f"`{where}`: `top_k` {entry.top_k}, and the endpoint is asked for the likeliest {top_logprobs}"
        yield Problem(message, "lower it, or raise `teacher.top_logprobs`", where)
    if temperatures_of([term]) != (1.0, 1.0):
        message = f"`{where}` is at another temperature than 1, the only one at which an endpoint tells probabilities"
        yield Problem(message, "set `distillation.temperature: 1`, or take a teacher that is loaded here", where)
