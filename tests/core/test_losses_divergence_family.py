"""Every divergence of the table against its formula in float64, finite differences, its identities and its limits."""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core import losses
from entrenar_core.losses import DIVERGENCES, of_logits, soften, top_k, where_uncertain

Array = np.ndarray
Reference = Callable[[Array, Array], Array]
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


def kl(p: Array, q: Array) -> Array:
    return np.asarray(scipy.special.rel_entr(p, q).sum(-1))


def mixed(p: Array, q: Array, share: float) -> Array:
    return share * p + (1 - share) * q


def bild(k: int, p: Array, q: Array) -> Array:
    """Pair by pair, as the paper writes it."""
    values = []
    for teacher, student in zip(np.log(p), np.log(q), strict=True):
        value = 0.0
        for leading in (teacher, student):
            tokens = np.argsort(-leading, kind="stable")[:k]
            pairs = list(itertools.combinations(tokens, 2))
            there, here = ([x[i] - x[j] for i, j in pairs] for x in (teacher, student))
            value += kl(scipy.special.softmax(there), scipy.special.softmax(here))
        values.append(value)
    return np.array(values)


def jensen(p: Array, q: Array, beta: float) -> Array:
    m = mixed(p, q, beta)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


CASES: list[tuple[str, Mapping[str, Any], Reference]] = [
    ("forward_kl", {}, kl),
    ("reverse_kl", {}, lambda p, q: kl(q, p)),
    ("jeffreys", {}, lambda p, q: (kl(p, q) + kl(q, p)) / 2),
    ("jeffreys", {"forward": 0.7, "reverse": 0.2}, lambda p, q: 0.7 * kl(p, q) + 0.2 * kl(q, p)),
    ("jsd", {}, lambda p, q: jensen(p, q, 0.5)),
    ("jsd", {"beta": 0.2}, lambda p, q: jensen(p, q, 0.2)),
    ("jsd", {"beta": 0.2, "normalised": True}, lambda p, q: jensen(p, q, 0.2) / 0.16),
    ("jsd", {"beta": 0.0, "normalised": True}, kl),
    ("jsd", {"beta": 1.0, "normalised": True}, lambda p, q: kl(q, p)),
    ("skew_forward_kl", {}, lambda p, q: kl(p, mixed(p, q, 0.1))),
    ("skew_forward_kl", {"skew": 0.4}, lambda p, q: kl(p, mixed(p, q, 0.4))),
    ("skew_forward_kl", {"skew": 0.0}, kl),
    ("skew_reverse_kl", {}, lambda p, q: kl(q, mixed(q, p, 0.1))),
    ("skew_reverse_kl", {"skew": 0.4}, lambda p, q: kl(q, mixed(q, p, 0.4))),
    ("skew_reverse_kl", {"skew": 0.0}, lambda p, q: kl(q, p)),
    ("bild", {}, partial(bild, 8)),
    ("bild", {"top_k": 3}, partial(bild, 3)),
    ("total_variation", {}, lambda p, q: np.abs(p - q).sum(-1) / 2),
    ("cross_entropy_hard", {}, lambda p, q: -np.log(q)[np.arange(len(p)), p.argmax(-1)]),
]
NAMES = [f"{name} {' '.join(f'{key}={value}' for key, value in settings.items())}" for name, settings, _ in CASES]
every_case = pytest.mark.parametrize(("name", "settings", "reference"), CASES, ids=NAMES)
SELECTABLE = [case for case in CASES if case[0] != "cross_entropy_hard"]
TRUE_DIVERGENCES = [case for case in CASES if case[0] != "cross_entropy_hard"]
SYMMETRIC = [("jeffreys", {}), ("jsd", {}), ("total_variation", {})]


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def softmax(values: torch.Tensor, temperature: float = 1.0) -> Array:
    return np.asarray(scipy.special.softmax(values.detach().double().numpy() / temperature, -1))


def made(name: str, settings: Mapping[str, Any]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return partial(of_logits, DIVERGENCES[name].make(**settings))


def test_every_row_of_the_table_is_tried_and_is_a_function_of_the_package() -> None:
    assert {name for name, _, _ in CASES} == set(DIVERGENCES)
    for name, row in DIVERGENCES.items():
        function = getattr(losses, name)
        public = {key: value.default for key, value in list(inspect.signature(function).parameters.items())[2:]}
        assert row.parameters == public, name
        assert torch.equal(
            function(logits(3, 9), logits(3, 9, seed=1)), made(name, {})(logits(3, 9), logits(3, 9, seed=1))
        )
        assert row.formula
        assert row.source


@every_case
@given(
    rows=st.integers(1, 4),
    vocabulary=st.integers(8, 40),
    seed=st.integers(0, 99),
    dtype=DTYPES,
    temperature=st.floats(0.5, 8),
)
def test_the_value_is_that_of_the_formula_in_float64(
    name: str,
    settings: Mapping[str, Any],
    reference: Reference,
    rows: int,
    vocabulary: int,
    seed: int,
    dtype: Any,
    temperature: float,
) -> None:
    if name == "bild" and dtype.itemsize < 4:
        dtype = torch.float32  # among equals, which half precision makes, the likelier one is not defined
    student, teacher = (logits(rows, vocabulary, seed=s).to(dtype) for s in (seed, seed + 1))
    power = DIVERGENCES[name].power
    value = soften(made(name, settings), temperature, power)(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = temperature**power * reference(softmax(teacher, temperature), softmax(student, temperature))
    accuracy = 1e-9 if dtype == torch.float64 else 5e-5
    assert value.numpy() == pytest.approx(expected, rel=accuracy, abs=accuracy * temperature**power)


@every_case
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_is_that_of_finite_differences(
    name: str, settings: Mapping[str, Any], reference: Reference, temperature: float
) -> None:
    student, teacher = logits(2, 9).requires_grad_(), logits(2, 9, seed=1)
    power = DIVERGENCES[name].power
    soften(made(name, settings), temperature, power)(student, teacher).sum().backward()

    def value(flat: Array) -> float:
        there, here = softmax(teacher, temperature), softmax(torch.from_numpy(flat.reshape(2, 9)), temperature)
        return float(temperature**power * reference(there, here).sum())

    expected = scipy.optimize.approx_fprime(student.detach().numpy().ravel(), value, 1e-7)
    assert student.grad is not None
    assert student.grad.numpy().ravel() == pytest.approx(expected, rel=1e-4, abs=2e-5)


def slope_at_no_temperature(name: str, settings: Mapping[str, Any], z: Array, v: Array) -> Array:
    """What the gradient tends to as T grows, of one row: all that is smooth is a χ² near the uniform distribution."""
    apart = (z - z.mean()) - (v - v.mean())
    if name == "total_variation":
        signs = np.sign(apart)
        return np.asarray((signs - signs.mean()) / (2 * len(z)))
    if name == "cross_entropy_hard":
        return np.asarray(1 / len(z) - (np.arange(len(z)) == v.argmax()))
    if name == "bild":
        slope = np.zeros_like(z)
        for leading in (v, z):
            pairs = list(itertools.combinations(np.argsort(-leading, kind="stable")[: settings.get("top_k", 8)], 2))
            differences = np.array([(z[i] - z[j]) - (v[i] - v[j]) for i, j in pairs])
            for (i, j), one in zip(pairs, (differences - differences.mean()) / len(pairs), strict=True):
                slope[i] += one
                slope[j] -= one
        return slope
    beta, skew = settings.get("beta", 0.5), settings.get("skew", 0.1)
    factors = {
        "jeffreys": settings.get("forward", 0.5) + settings.get("reverse", 0.5),
        "jsd": 1.0 if settings.get("normalised") else beta * (1 - beta),
        "skew_forward_kl": (1 - skew) ** 2,
        "skew_reverse_kl": (1 - skew) ** 2,
    }
    return np.asarray(factors.get(name, 1.0) * apart / len(z))


@every_case
def test_the_gradient_keeps_its_size_and_tends_to_that_of_logits(
    name: str, settings: Mapping[str, Any], reference: Reference
) -> None:
    student, teacher = logits(3, 9).requires_grad_(), logits(3, 9, seed=1)
    softened = soften(made(name, settings), 1e4, DIVERGENCES[name].power)
    (gradient,) = torch.autograd.grad(softened(student, teacher).sum(), student)
    rows = zip(student.detach().numpy(), teacher.numpy(), strict=True)
    expected = np.stack([slope_at_no_temperature(name, settings, z, v) for z, v in rows])
    assert gradient.numpy() == pytest.approx(expected, rel=2e-3, abs=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "settings"), [case[:2] for case in TRUE_DIVERGENCES])
@given(seed=st.integers(0, 99), shift=st.floats(-50, 50))
def test_it_is_zero_with_no_gradient_where_the_distributions_agree_and_never_negative(
    name: str, settings: Mapping[str, Any], seed: int, shift: float
) -> None:
    divergence, teacher = made(name, settings), logits(3, 11, seed=seed)
    student = (teacher + shift).requires_grad_()
    value = divergence(student, teacher)
    value.sum().backward()
    assert student.grad is not None
    assert value.abs().max() < 1e-12
    assert name == "total_variation" or student.grad.abs().max() < 1e-12, "|x| has no gradient at zero"
    assert (divergence(logits(3, 11, seed=seed + 1).float(), teacher.float()) > -1e-6).all()


@pytest.mark.parametrize(("name", "settings"), SYMMETRIC)
def test_it_is_symmetric(name: str, settings: Mapping[str, Any]) -> None:
    one, other = logits(4, 9), logits(4, 9, seed=1)
    torch.testing.assert_close(made(name, settings)(one, other), made(name, settings)(other, one))


@pytest.mark.parametrize("beta", [1e-4, 1 - 1e-4])
def test_the_normalised_jsd_tends_to_a_kl_and_the_plain_one_to_zero(beta: float) -> None:
    student, teacher = logits(4, 9), logits(4, 9, seed=1)
    p, q = softmax(teacher), softmax(student)
    limit = kl(p, q) if beta < 0.5 else kl(q, p)
    assert losses.jsd(student, teacher, beta=beta, normalised=True).numpy() == pytest.approx(limit, rel=5e-3)
    assert losses.jsd(student, teacher, beta=beta).max() < 1e-3


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("beta", [1e-6, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-3])
def test_a_jsd_of_near_distributions_keeps_its_digits_in_32_bits(beta: float, normalised: bool) -> None:
    """Logarithms of the mixture would be equal to those of the distributions in nearly all of their digits."""
    student = logits(8, 1000).float()
    teacher = student + 0.05 * logits(8, 1000, seed=1).float()
    found, exact = student.clone().requires_grad_(), student.double().requires_grad_()
    value = losses.jsd(found, teacher, beta=beta, normalised=normalised)
    expected = losses.jsd(exact, teacher.double(), beta=beta, normalised=normalised)
    value.sum().backward()
    expected.sum().backward()
    assert value.detach().numpy() == pytest.approx(expected.detach().numpy(), rel=1e-4)
    assert found.grad is not None
    assert exact.grad is not None
    assert (found.grad - exact.grad).abs().max() <= 1e-5 * exact.grad.abs().max()


def test_a_jsd_is_at_most_the_entropy_of_its_beta_and_a_variation_at_most_one() -> None:
    far = torch.tensor([[50.0, -50.0]], dtype=torch.float64)
    for beta in (0.1, 0.5, 0.8):
        bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        assert losses.jsd(far, -far, beta=beta).item() == pytest.approx(bound)
    assert losses.total_variation(far, -far).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "settings"), [case[:2] for case in CASES if case[0] not in ("reverse_kl", "jeffreys")]
)
def test_a_teacher_that_rules_tokens_out_gives_finite_values_and_gradients(
    name: str, settings: Mapping[str, Any]
) -> None:
    """Facts of others: a JSD of NaN at β = 0 and ½, of infinity with a gradient of NaN at β = 1."""
    student, teacher = logits(3, 12).requires_grad_(), logits(3, 12, seed=1)
    teacher[:, 9:] = -math.inf
    value = made(name, settings)(student, teacher)
    if settings.get("beta") == 1 or (name == "skew_reverse_kl" and settings.get("skew") == 0):
        assert (value == math.inf).all(), "it is a reverse KL, which is infinite"
        return
    value.sum().backward()
    assert student.grad is not None
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


@every_case
@pytest.mark.parametrize("ruled_out", [[3], [0, 5, 8]])
def test_tokens_that_both_rule_out_count_for_nothing(
    name: str, settings: Mapping[str, Any], reference: Reference, ruled_out: list[int]
) -> None:
    student, teacher = logits(3, 20), logits(3, 20, seed=1)
    keep = [token for token in range(20) if token not in ruled_out]
    expected = reference(softmax(teacher[:, keep]), softmax(student[:, keep]))
    student[:, ruled_out] = teacher[:, ruled_out] = -math.inf
    student.requires_grad_()
    value = made(name, settings)(student, teacher)
    value.sum().backward()
    assert value.detach().numpy() == pytest.approx(expected)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[:, ruled_out].any()


def folded(values: Array, tokens: Array, *, tail: bool) -> Array:
    """The probabilities of some tokens of each row, and of all others as one, or scaled to one."""
    chosen = np.take_along_axis(values, tokens, -1)
    if tail:
        return np.concatenate([chosen, 1 - chosen.sum(-1, keepdims=True)], -1)
    return np.asarray(chosen / chosen.sum(-1, keepdims=True))


def selected_reference(case: tuple[str, Mapping[str, Any], Reference], p: Array, q: Array, k: int, tail: bool) -> Array:
    tokens = np.argsort(-p, -1)[:, :k]
    return case[2](folded(p, tokens, tail=tail), folded(q, tokens, tail=tail))


@given(case=st.sampled_from(SELECTABLE), tail=st.booleans(), seed=st.integers(0, 99), k=st.integers(2, 8))
def test_of_the_likeliest_tokens_the_divergence_is_that_of_folded_distributions(
    case: tuple[str, Mapping[str, Any], Reference], tail: bool, seed: int, k: int
) -> None:
    student, teacher = logits(3, 9, seed=seed), logits(3, 9, seed=seed + 1)
    value = of_logits(top_k(DIVERGENCES[case[0]].make(**case[1]), k, tail=tail), student, teacher)
    expected = selected_reference(case, softmax(teacher), softmax(student), k, tail)
    assert value.numpy() == pytest.approx(expected, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("case", SELECTABLE, ids=NAMES[: len(SELECTABLE)])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize(("seed", "k"), [(0, 2), (1, 4), (2, 5), (3, 8)])
def test_of_the_likeliest_tokens_the_gradient_is_that_of_finite_differences(
    case: tuple[str, Mapping[str, Any], Reference], tail: bool, seed: int, k: int
) -> None:
    student, teacher = logits(3, 9, seed=seed).requires_grad_(), logits(3, 9, seed=seed + 1)
    of_logits(top_k(DIVERGENCES[case[0]].make(**case[1]), k, tail=tail), student, teacher).sum().backward()

    def value(flat: Array) -> float:
        q = softmax(torch.from_numpy(flat.reshape(3, 9)))
        return float(selected_reference(case, softmax(teacher), q, k, tail).sum())

    slopes = scipy.optimize.approx_fprime(student.detach().numpy().ravel(), value, 1e-7)
    assert student.grad is not None
    assert student.grad.numpy().ravel() == pytest.approx(slopes, rel=1e-4, abs=2e-5)


@pytest.mark.parametrize(("name", "settings", "reference"), SELECTABLE, ids=NAMES[: len(SELECTABLE)])
def test_of_all_tokens_selection_leaves_the_divergence_as_it_is(
    name: str, settings: Mapping[str, Any], reference: Reference
) -> None:
    student, teacher = logits(3, 9), logits(3, 9, seed=1)
    whole = reference(softmax(teacher), softmax(student))
    for k, tail in itertools.product((9, 100), (True, False)):
        value = of_logits(top_k(DIVERGENCES[name].make(**settings), k, tail=tail), student, teacher)
        assert value.numpy() == pytest.approx(whole)


@given(seed=st.integers(0, 99), k=st.integers(1, 9))
def test_with_its_tail_a_selected_kl_is_a_lower_bound_that_grows_with_k(seed: int, k: int) -> None:
    student, teacher = logits(4, 10, seed=seed), logits(4, 10, seed=seed + 1)
    core = DIVERGENCES["forward_kl"].make()
    fewer, more = (of_logits(top_k(core, size), student, teacher) for size in (k, k + 1))
    assert (fewer <= more + 1e-12).all()
    assert (more <= losses.forward_kl(student, teacher) + 1e-12).all()


def test_a_tail_that_the_teacher_rules_out_pulls_the_student_back() -> None:
    student, teacher = torch.zeros(1, 6, dtype=torch.float64).requires_grad_(), logits(1, 6)
    teacher[:, 3:] = -math.inf
    of_logits(top_k(DIVERGENCES["forward_kl"].make(), 3), student, teacher).sum().backward()
    assert student.grad is not None
    assert (student.grad[:, 3:] > 0).all(), "less of what the teacher never says"


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_only_rows_on_which_the_teacher_is_uncertain_count(temperature: float) -> None:
    student = logits(20, 6).requires_grad_()
    teacher = logits(20, 6, seed=1) * torch.linspace(0.1, 5, 20, dtype=torch.float64).unsqueeze(-1)
    entropy = scipy.special.entr(softmax(teacher, temperature)).sum(-1)
    threshold = float(np.median(entropy))
    gated = soften(partial(of_logits, where_uncertain(DIVERGENCES["jsd"].make(), threshold)), temperature)
    plain = soften(made("jsd", {}), temperature)
    value = gated(student, teacher)
    value.sum().backward()
    expected = np.where(entropy > threshold, plain(student, teacher).detach().numpy(), 0)
    assert value.detach().numpy() == pytest.approx(expected)
    assert student.grad is not None
    assert student.grad.any(-1).numpy().tolist() == (entropy > threshold).tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.jsd(logits(1, 3), logits(1, 3), beta=1.5), "beta must be between 0 and 1"),
        (lambda: losses.jsd(logits(1, 3), logits(1, 3), beta=0.0), "always zero"),
        (lambda: losses.skew_forward_kl(logits(1, 3), logits(1, 3), skew=1.0), "skew must be"),
        (lambda: losses.skew_reverse_kl(logits(1, 3), logits(1, 3), skew=-0.1), "skew must be"),
        (lambda: losses.bild(logits(1, 3), logits(1, 3), top_k=1), "top_k must be at least 2"),
        (lambda: top_k(DIVERGENCES["jsd"].make(), 0), "top_k must be at least 1"),
        (lambda: top_k(DIVERGENCES["jsd"].make(), 1, tail=False), "at least 2 without a tail"),
        (lambda: top_k(DIVERGENCES["cross_entropy_hard"].make(), 5), "has no top_k"),
        (lambda: where_uncertain(DIVERGENCES["jsd"].make(), -1.0), "at least 0"),
    ],
)
def test_what_makes_no_divergence_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
