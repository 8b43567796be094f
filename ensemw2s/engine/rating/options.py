"""What is to be rated, and how; everything that can be wrong with that is found before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ensemw2s.config import DataConfig, FileSource
from ensemw2s.core.difficulty.irt import MIN_MODELS_2PL
from ensemw2s.data.answers import index_of_answer
from ensemw2s.data.samples import Sample
from ensemw2s.data.sources import load_source
from ensemw2s.errors import ConfigError, DataError

Method = Literal["folds", "members", "irt"]
IrtModel = Literal["rasch", "2pl", "auto"]
DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class RatingOptions:
    """How to rate.

    Attributes:
        method: "folds": out-of-fold confidence of the weak models; "members": disagreement of a run's members; "irt": item
            response theory over right and wrong answers.
        input: data file in place of the configuration's ``data.pool``.
        folds: parts of the data, each rated by models trained on the others; default 5.
        repeats: trainings of each weak model in each fold, with different seeds; default 1.
        run: run directory (members).
        responses: table of who answered what right (irt); default: the folds' models.
        irt: item response model; default "auto", 2pl where the pool is large enough.

    Raises:
        ConfigError: options that do not go together.
    """

    method: Method = "folds"
    input: Path | None = None
    folds: int | None = None
    repeats: int | None = None
    run: Path | None = None
    responses: Path | None = None
    irt: IrtModel | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"method {self.method!r} is unknown: use {', '.join(get_args(Method))}")
        if self.irt is not None and self.irt not in get_args(IrtModel):
            raise ConfigError(f"irt model {self.irt!r} is unknown: use {', '.join(get_args(IrtModel))}")
        if self.method == "members" and self.run is None:
            raise ConfigError("method members needs the run whose members rate: give --run RUN")
        for name, only in (("run", "members"), ("responses", "irt"), ("irt", "irt")):
            if getattr(self, name) is not None and self.method != only:
                raise ConfigError(f"--{name} goes with method {only}, not {self.method}: leave it out")
        for name in ("folds", "repeats"):
            value = getattr(self, name)
            if value is not None and not self.trains:
                where = "a table of responses" if self.method == "irt" else f"method {self.method}"
                raise ConfigError(f"--{name} does not go with {where}, which trains no model: leave it out")
        if self.n_folds < 2:
            raise ConfigError(f"--folds {self.folds} is not allowed: give 2 or more")
        if self.n_repeats < 1:
            raise ConfigError(f"--repeats {self.repeats} is not allowed: give 1 or more")

    @property
    def trains(self) -> bool:
        """Whether models are trained on folds."""
        return self.method == "folds" or (self.method == "irt" and self.responses is None)

    @property
    def n_folds(self) -> int:
        """How many folds."""
        return DEFAULT_FOLDS if self.folds is None else self.folds

    @property
    def n_repeats(self) -> int:
        """How many trainings of each model in each fold."""
        return 1 if self.repeats is None else self.repeats


def check_irt(n_models: int, options: RatingOptions, advice: str) -> None:
    """Refuse item response theory over too few models.

    Raises:
        ConfigError: fewer than two, or fewer than a slope for every question needs.
    """
    if n_models < 2:
        raise ConfigError(f"irt needs the answers of 2 or more models, and there is {n_models}: {advice}")
    if options.irt == "2pl" and n_models < MIN_MODELS_2PL:
        raise ConfigError(
            f"irt 2pl needs the answers of {MIN_MODELS_2PL} or more models, and there are {n_models}: use rasch or auto"
        )


def load_samples(data: DataConfig, options: RatingOptions, output: Path) -> list[Sample]:
    """The samples that are rated; member disagreement alone needs no answers.

    Raises:
        DataError: there is no such data, the format of the output cannot hold it, or the output would replace what is read.
    """
    source = data.pool if options.input is None else FileSource(path=str(options.input))
    if source is None:
        raise DataError(
            "there is no data.pool (data.split.method is given): say what to rate with --input FILE"
        )
    for read in (source.path if isinstance(source, FileSource) else None, options.responses):
        # Columns that are no part of a sample would be lost.
        if read is not None and Path(read).resolve() == output.resolve():
            raise DataError(f"{output} is what is read: write the rated data to another file")
    samples = load_source(source, require_answer=options.method != "members")
    if output.suffix == ".csv":
        _check_csv(samples)
    return samples


def _check_csv(samples: Sequence[Sample]) -> None:
    for sample in samples:
        if sample.choices is None or sample.answer is None:
            continue
        try:
            index_of_answer(sample.answer_text, sample.choices, f"sample {sample.id!r}", typed=False)
        except DataError as error:
            raise DataError(f"CSV cannot hold this data ({error}): write .parquet or .jsonl") from error
