"""A passage to compare predictions on: prose, figures, a little of other languages, a dialogue and code.

It was written for this, so that no model has read it before.
"""

PASSAGE = '''\
The ferry to Holm leaves at twenty past six, or when Ingrid has finished her coffee, whichever comes later. There is
one deck, painted green so often that the rivets have lost their edges, and a cabin in which four people can sit if two
of them are children. On most mornings it carries the post, a crate of bread, and somebody who has slept too long on the
mainland and is now late for work on the island.

This morning it carried a piano. The piano stood on its side under a tarpaulin, and a man in a thin coat walked around
it in circles as though it might try to escape. "It belonged to my aunt," he said to nobody in particular. "She could
not play it either." Ingrid looked at the waves beyond the harbour wall, then at the rope, and decided that the rope
would do.

Water is heaviest at four degrees above freezing. Above that it expands because its molecules move faster; below it, it
expands because they begin to arrange themselves as they will lie in ice, with more room between them. A lake therefore
cools from the top only until all of it has reached four degrees. After that the cold water stays above, the surface
freezes, and whatever lives below is protected by the very ice that seems to imprison it.

In 2019 the harbour handled 48,310 tonnes of freight, 12 % more than in the year before; in 2020 it was 31,775 tonnes,
and the harbour master, whose hobby is statistics, drew the curve on the wall of her office with a red felt pen. Prices
rose from 7.50 to 9.25 a tonne. Nobody complained, except the poet, who had no freight.

Am Abend sitzt der Fährmann vor dem Haus und zählt die Lichter auf der anderen Seite. Il y en a toujours sept, sauf le
dimanche. Después cierra la puerta y apaga la lámpara.

Question: What should I check before I copy a large folder to another disk?
Answer: Check three things. First, that the other disk has enough free space. Second, that its file system allows files
as large as yours. Third, that nothing writes to the folder while you copy it. When it is done, compare the number of
files and a checksum of each.

```python
def moving_average(values: list[float], width: int) -> list[float]:
    """The mean of every `width` neighbours, from left to right."""
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    total, averages = 0.0, []
    for index, value in enumerate(values):
        total += value
        if index >= width:
            total -= values[index - width]
        if index >= width - 1:
            averages.append(total / width)
    return averages
```

```json
{"name": "holm", "ferries": [{"leaves": "06:20", "seats": 4}, {"leaves": "17:45", "seats": 4}], "piano": true}
```
'''
"""About 480 words."""
