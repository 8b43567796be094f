"""What a student is taught: questions with the labels of one teacher, in the strong model's tokens."""

from __future__ import annotations

import numpy as np

from ensemw2s.engine.encoded import EncodedSplits, with_labels
from ensemw2s.engine.tasks import StudentTask
from ensemw2s.errors import DataError
from ensemw2s.training.plan import TrainingSet

TEACHERS = ("single", "ensemble")


def student_training_set(splits: EncodedSplits, task: StudentTask) -> TrainingSet:
    """The training set of a student: every labelled sample once, every target token with weight 1.

    Raises:
        DataError: no sample has a label.
    """
    samples = with_labels(splits[task.split].samples, task.labels)
    if not samples:
        raise DataError(
            f"no sample of {task.split} got a label for student {task.name}: the teacher answered nothing"
        )
    data = splits.encode(samples)
    prompts: list[np.ndarray] = [e.prompt for e in data.encoded]
    return TrainingSet.uniform(prompts, data.targets)
