"""What the shapes of a model's tensors say of its sizes, and which shapes contradict the others."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from entrenar_core.architectures.fitting import Fit, Mismatch, Shapes
from entrenar_core.architectures.layouts import Expression, Template

_Dimension = tuple[Expression, int, int]


def measure(fitted: Fit, shapes: Shapes) -> None:
    """Finds the sizes of a model, and the tensors that do not agree with them.

    Layers and experts are counted, gaps included. Any other size is what most of the dimensions say that it is in.
    """
    for template, names in fitted.found.items():
        for at, size in enumerate(template.axes):
            fitted.sizes[size] = max(fitted.sizes.get(size, 0), 1 + max(indices[at] for indices in names))
    by_template = [(template, _shapes_of(template, fitted, shapes)) for template in fitted.layout.templates]
    dimensions = list(_dimensions(by_template))
    while votes := _votes(dimensions, fitted.sizes):
        fitted.sizes |= {size: said.most_common(1)[0][0] for size, said in votes.items()}
    fitted.mismatched += sorted(_mismatches(by_template, fitted, shapes), key=lambda mismatch: mismatch.name)


def _shapes_of(template: Template, fitted: Fit, shapes: Shapes) -> Counter[tuple[int, ...]]:
    return Counter(shapes[name] for name in fitted.names(template).values() if name not in fitted.shapeless)


def _dimensions(by_template: Iterable[tuple[Template, Counter[tuple[int, ...]]]]) -> Iterator[_Dimension]:
    """Every dimension: what it is made of, how long it is, and in how many tensors."""
    for template, found in by_template:
        for shape, times in found.items():
            if len(shape) == len(template.dimensions):
                yield from ((made, length, times) for made, length in zip(template.dimensions, shape, strict=True))


def _votes(dimensions: Iterable[_Dimension], sizes: Mapping[str, int]) -> Mapping[str, Counter[int]]:
    """What dimensions say of the one size in them that is not known."""
    votes: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for made, length, times in dimensions:
        unknown = [term for term in made.terms if term[0] not in sizes]
        if len(unknown) == 1:
            size, multiple = unknown[0]
            known = sum(number * sizes[other] for other, number in made.terms if other != size)
            value, rest = divmod(length - made.constant - known, multiple)
            if value > 0 and not rest:
                votes[size][value] += times
    return votes


def _mismatches(
    by_template: Iterable[tuple[Template, Counter[tuple[int, ...]]]], fitted: Fit, shapes: Shapes
) -> Iterator[Mismatch]:
    for template, found in by_template:
        wrong = {shape for shape in found if not _agrees(shape, template, fitted.sizes)}
        implied = tuple(made.value(fitted.sizes) for made in template.dimensions)
        for name in fitted.names(template).values() if wrong else ():
            if shapes[name] in wrong and name not in fitted.shapeless:
                yield Mismatch(name, shapes[name], template.shape, implied)


def _agrees(shape: Sequence[int], template: Template, sizes: Mapping[str, int]) -> bool:
    """Where one size of a dimension is still unknown, none would give its length; where two are, many could."""
    if len(shape) != len(template.dimensions):
        return False
    return all(
        made.value(sizes) == length or sum(size not in sizes for size, _ in made.terms) > 1
        for made, length in zip(template.dimensions, shape, strict=True)
    )
