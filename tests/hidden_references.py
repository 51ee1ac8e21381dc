"""What losses between hidden states should be, written as loops over rows and examples in float64.

Each takes the real tokens of every row, of the student and of the teacher, and gives the sum and the count.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from ragged import Rows

Array = np.ndarray
Answer = tuple[float, int]


def pool(rows: Rows, how: str) -> list[Array]:
    kept = [row for row in rows if len(row)]
    if how == "tokens":
        return [token for row in kept for token in row]
    pick = {"first": lambda row: row[0], "last": lambda row: row[-1], "mean": lambda row: row.mean(0)}
    return [pick[how](row) for row in kept]


def groups(student: Rows, teacher: Rows, size: int, how: str, least: int) -> Iterator[tuple[Array, Array]]:
    student, teacher = ([row for row in rows if len(row)] for rows in (student, teacher))
    while student:
        s, t = pool(student[:size], how), pool(teacher[:size], how)
        if len(s) >= least:
            yield np.stack(s), np.stack(t)
        student, teacher = student[size:], teacher[size:]


def over_groups(
    compare: Callable[[Array, Array], float], least: int, size: int = 4, how: str = "mean"
) -> Callable[[Rows, Rows], Answer]:
    def total(student: Rows, teacher: Rows) -> Answer:
        values = [compare(s, t) for s, t in groups(student, teacher, size, how, least)]
        return float(sum(values)), len(values)

    return total


def length(x: Array) -> float:
    return math.sqrt(sum(value * value for value in x))


def cosine(x: Array, y: Array) -> float:
    return float(sum(a * b for a, b in zip(x, y, strict=True)) / (length(x) * length(y)))


def hidden_mse(student: Rows, teacher: Rows) -> Answer:
    pairs = list(zip(pool(student, "tokens"), pool(teacher, "tokens"), strict=True))
    return sum(length(s - t) ** 2 / len(s) for s, t in pairs), len(pairs)


def hidden_cosine(student: Rows, teacher: Rows) -> Answer:
    pairs = list(zip(pool(student, "tokens"), pool(teacher, "tokens"), strict=True))
    return sum(1 - cosine(s, t) for s, t in pairs), len(pairs)


def patient(how: str) -> Callable[[Rows, Rows], Answer]:
    def total(student: Rows, teacher: Rows) -> Answer:
        pairs = list(zip(pool(student, how), pool(teacher, how), strict=True))
        return sum(length(s / length(s) - t / length(t)) ** 2 for s, t in pairs), len(pairs)

    return total


def attention_maps(power: float) -> Callable[[Rows, Rows], Answer]:
    def of(row: Array) -> Array:
        values = np.array([sum(abs(x) ** power for x in token) for token in row])
        return values / length(values)

    def total(student: Rows, teacher: Rows) -> Answer:
        pairs = [(s, t) for s, t in zip(student, teacher, strict=True) if len(s)]
        return sum(length(of(s) - of(t)) ** 2 for s, t in pairs), len(pairs)

    return total


def hsic(k: Array, m: Array) -> float:
    """Song et al. 2012, eq. 5, letter by letter."""
    n, one = len(k), np.ones(len(k))
    k, m = (x - np.diag(np.diag(x)) for x in (k, m))
    trace = np.trace(k @ m)
    apart = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((trace + apart - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


def cka(student: Array, teacher: Array) -> float:
    k, m = student @ student.T, teacher @ teacher.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def cka_loss(student: Array, teacher: Array) -> float:
    return 1 - cka(student, teacher)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def rkd_distance(student: Array, teacher: Array) -> float:
    pairs = list(itertools.permutations(range(len(student)), 2))

    def relative(x: Array) -> Array:
        found = np.array([length(x[i] - x[j]) for i, j in pairs])
        return found / found.mean()

    return float(np.mean([huber(d) for d in relative(student) - relative(teacher)]))


def rkd_angle(student: Array, teacher: Array) -> float:
    def angle(x: Array, i: int, j: int, k: int) -> float:
        return cosine(x[i] - x[j], x[k] - x[j])

    triplets = itertools.permutations(range(len(student)), 3)
    return float(np.mean([huber(angle(student, *triplet) - angle(teacher, *triplet)) for triplet in triplets]))


def similarity_preserving(student: Array, teacher: Array) -> float:
    def rows_of_one(x: Array) -> list[Array]:
        return [row / length(row) for row in np.array([[a @ b for b in x] for a in x])]

    difference = np.array(rows_of_one(student)) - np.array(rows_of_one(teacher))
    return float((difference**2).sum() / len(student) ** 2)


def in_batch_similarity(temperature: float) -> Callable[[Array, Array], float]:
    def log_likelihoods(x: Array, i: int) -> Array:
        scores = np.array([cosine(x[i], x[j]) / temperature for j in range(len(x)) if j != i])
        return scores - scores.max() - math.log(np.exp(scores - scores.max()).sum())

    def compare(student: Array, teacher: Array) -> float:
        values = []
        for i in range(len(student)):
            log_q, log_p = log_likelihoods(student, i), log_likelihoods(teacher, i)
            values.append(sum(np.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)))
        return float(np.mean(values))

    return compare
