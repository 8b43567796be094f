"""As many samples of every class, for sets whose classes are not equally frequent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ensemw2s.data.samples import Sample, stable_hash
from ensemw2s.errors import DataError


def balanced(samples: Sequence[Sample]) -> list[Sample]:
    """As many samples of each class as the rarest class has, in the given order.

    Which ones are kept goes by a hash of their ids, so it does not depend on their order.

    Raises:
        DataError: the samples have no choices or not all the same ones, one has no answer, or a class has no sample.
    """
    classes = samples[0].choices
    other = next((s for s in samples if s.choices is None or s.choices != classes), None)
    if classes is None or other is not None:
        found = other or samples[0]
        raise DataError(
            f"balance needs classification data, where all samples have the same choices, but {found.id!r} has "
            f"{list(found.choices or ())}: set columns.classes, or balance=false"
        )
    unlabelled = next((s.id for s in samples if s.answer is None), None)
    if unlabelled is not None:
        raise DataError(
            f"balance needs labels, and sample {unlabelled!r} has none: label it, or set balance=false"
        )
    counts = Counter(s.answer for s in samples)
    missing = [word for i, word in enumerate(classes) if not counts[i]]
    if missing:
        raise DataError(
            f"balance: no sample of {len(samples)} has the class {missing[0]!r}: correct columns.classes, or raise limit"
        )
    n = min(counts.values())
    kept: set[str] = set()
    for index in range(len(classes)):
        ids = [s.id for s in samples if s.answer == index]
        kept.update(sorted(ids, key=lambda i: stable_hash(f"balance:{i}"))[:n])
    return [s for s in samples if s.id in kept]
