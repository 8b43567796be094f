"""One experiment: data, weak and strong side, boosting, vote, evaluation, runtime.

Everything outside ``runtime`` is *identity*: it is hashed, and a changed value makes another run. ``runtime`` (and
``runs_dir``) may change when a run goes on elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ensemw2s.config.base import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section
from ensemw2s.config.data import DataConfig
from ensemw2s.config.models import ModelConfig, StrongTrainingConfig, TrainingConfig
from ensemw2s.config.preference import PreferenceConfig
from ensemw2s.config.uris import is_uri, uri_problem


class BoostingConfig(Section):
    """The AdaBoost rounds."""

    rounds: PositiveInt = Field(3, description="members of the ensemble (T)")
    method: Literal["adaboost", "bagging", "seeds"] = Field(
        "adaboost",
        description="adaboost: EnsemW2S; to compare with: bagging (each member on its own bootstrap of the samples) and seeds "
        "(each on all samples, in its own order), both with equal votes and without reweighting",
    )
    unit: Literal["token", "window", "sample", "choice"] = Field("token", description="what is reweighted")
    window: PositiveInt = Field(4, description="tokens per window (unit window)")
    wrong_share: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None,
        description="a window or sample is wrong when at least this share of its tokens is; default: when any is",
    )
    reweight: Literal["token_bootstrap", "sample_bootstrap", "loss"] = Field(
        "token_bootstrap",
        description="how later rounds see the weights: resampled tokens, resampled samples, or weighted loss",
    )
    sample_weight: Literal["mean", "sum"] = Field(
        "mean", description="sample_bootstrap: a sample's weight from its tokens' weights"
    )
    error_on: Literal["train", "out_of_bag", "easy_val"] = Field(
        "train",
        description="where the error that decides the member weight is measured; out_of_bag: on units that the member was not drawn "
        "(round 1 of adaboost sees all: train)",
    )
    prior: Literal["pretrained", "warmup", "unigram", "chance", "classes"] = Field(
        "pretrained",
        description="the uninformed learner: the pretrained weak model; the same after a few steps; always the commonest "
        "target token; guessing among the choices (unit choice); one of the vocabulary, or of the classes with head classifier (SAMME)",
    )
    prior_warmup_steps: PositiveInt = Field(8, description="prior warmup: optimizer steps")
    learning_rate: PositiveFloat = Field(
        1.0, description="shrinkage of the member weights, usually in (0, 1]"
    )
    epsilon: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        1e-6, description="errors are clipped to [epsilon, 1 - epsilon]"
    )
    max_weight: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] | None = Field(
        None, description="cap on a unit's weight, in multiples of the uniform weight"
    )
    on_useless: Literal["drop", "stop"] = Field(
        "drop", description="a member weight <= 0: drop the member and go on, or stop the rounds"
    )
    max_drops: Annotated[int, Field(ge=0)] = Field(2, description="drops after which the rounds stop")

    @model_validator(mode="after")
    def _prior_fits_unit(self) -> BoostingConfig:
        if self.prior == "chance" and self.unit != "choice":
            raise ValueError(
                f"prior chance (guessing among the choices) goes with unit choice, not {self.unit}"
            )
        if self.wrong_share is not None and self.unit not in ("window", "sample"):
            raise ValueError(f"wrong_share goes with unit window or sample, not {self.unit}")
        if self.prior in ("unigram", "classes") and self.unit != "token":
            raise ValueError(
                f"prior {self.prior} is the error on one token: it goes with unit token, not {self.unit}"
            )
        return self


class VoteConfig(Section):
    """How members' predictions become labels."""

    choice_score: Literal["sum", "mean", "bytes"] = Field(
        "mean",
        description="score of a choice: mean of its tokens' log-probabilities, their sum, or the sum per byte",
    )
    rounds: Literal["validation", "all"] | PositiveInt = Field(
        "validation", description="how many members vote: the number best on easy_val, all, or a fixed number"
    )
    label_model: Literal[
        "weighted", "uniform", "plurality", "geometric", "best_single", "em_weights", "dawid_skene", "glad"
    ] = Field(
        "weighted",
        description="how members' choices become one: weighted by the member weights (EnsemW2S), equal, one vote each, geometric "
        "mean, the best on easy_val, weights fitted on easy_val, or EM without truth; all but the first two need multiple choice",
    )
    combine: Literal["predictions", "weights", "ties", "dare_ties"] = Field(
        "predictions",
        description="vote over the members' predictions (EnsemW2S), average their weights into one model, or merge their adapters by "
        "the PEFT method of that name; the number of members is chosen by the vote in any case",
    )
    merge_density: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="ties, dare_ties: share of each adapter's entries that is kept"
    )
    alignment: Literal["tokens", "bytes"] = Field(
        "tokens",
        description="tokens: members of one tokenizer vote token by token (EnsemW2S); bytes: of any tokenizers, on given texts in pieces "
        "that end where a token of every member ends, on free answers byte by byte",
    )
    calibrate: bool = Field(
        False, description="fit a temperature to each member on easy_val before it votes (multiple choice)"
    )
    max_new_tokens: PositiveInt = Field(
        32, description="longest generated answer; with alignment bytes each stands for 4 bytes"
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("\n",), description="strings that end a generated answer, beside end-of-text"
    )
    top_k: PositiveInt = Field(
        32, description="tokens per member and step that are sent for the certified vote"
    )


class LabelsConfig(Section):
    """Which pseudo-labels the students are taught."""

    keep_by: Literal["all", "confidence", "agreement"] = Field(
        "all",
        description="all; the most confident ones; or those that most members agree with, the more confident first "
        "(agreement needs multiple choice). Without truth, for each teacher by itself",
    )
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.8,
        description="share of hard_train's labels that is kept, empty answers not counted, unless keep_by is all",
    )
    targets: Literal["hard", "choices", "tokens"] = Field(
        "hard",
        description="what a label says: its text alone; every choice with its share (multiple choice); or at each of its tokens "
        "the vote's distribution, for the losses that take one",
    )
    top_k: PositiveInt = Field(16, description="targets tokens: tokens of each distribution")


class WeakConfig(Section):
    """The weak side."""

    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)] = Field(
        description="the weak model, or several that the rounds cycle through: of one tokenizer, or with vote.alignment bytes of any"
    )
    training: TrainingConfig = TrainingConfig()


class StrongConfig(Section):
    """The strong side."""

    model: ModelConfig
    training: StrongTrainingConfig = StrongTrainingConfig()
    preference: PreferenceConfig | None = Field(
        None,
        description="a second stage for the ensemble's student, on the questions whose labels it was not taught (labels.keep_by): "
        "it is taught to prefer its own confident answer to the label (needs the package trl)",
    )


class EvaluationConfig(Section):
    """Intervals and tests."""

    resamples: Annotated[int, Field(ge=100)] = Field(2000, description="bootstrap resamples and permutations")
    level: Fraction = Field(0.95, description="coverage of the intervals")
    baselines: tuple[Literal["few_shot", "random_noise"], ...] = Field(
        (),
        description="further systems to compare with. few_shot: the strong model as it is, shown solved easy questions; random_noise: "
        "a student of labels that are wrong as often as the ensemble's, at random",
    )
    shots: PositiveInt = Field(4, description="baseline few_shot: solved questions before each")


class RuntimeConfig(Section):
    """Where and how fast; free to change when a run goes on."""

    executor: Literal["ray", "local"] = Field(
        "ray", description="ray: actors and Ray Train; local: one process without Ray"
    )
    ray_address: str | None = Field(
        None, description="address of a running cluster; default: RAY_ADDRESS, else a local one is started"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    supervisors: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="weak supervisor actors at a time; auto: one a GPU, or one for every 4 CPUs, at most one a round",
    )
    member_workers: PositiveInt = Field(
        1,
        description="supervisors that train one member together, each a share of every batch; at most as many as there are. "
        "Rounds follow one another, so more would wait",
    )
    gpus_per_supervisor: NonNegativeFloat | Literal["auto"] = Field(
        "auto", description="GPUs (or a fraction) of each; auto: 1, or 0 without GPUs"
    )
    cpus_per_supervisor: PositiveFloat = Field(0.5, description="logical CPUs that each supervisor reserves")
    strong_workers: PositiveInt = Field(1, description="Ray Train workers of the strong model")
    cpus_per_strong_worker: PositiveFloat = Field(0.5, description="logical CPUs that each of them reserves")
    threads: PositiveInt | Literal["auto"] = Field(
        "auto", description="torch threads per process; auto: cores over processes at work"
    )
    batch_tokens: PositiveInt = Field(4096, description="tokens of one scoring batch")
    cache_activations: bool = Field(
        False,
        description="keep what frozen layers say about each training row in memory, over epochs and members (models with trainable "
        "below all): their forward passes are saved; row tokens x hidden size x 4 bytes; changes rounding only",
    )
    checkpoint_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="checkpoint a training every N steps; 0: once an epoch (students)"
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        2, description="restarts of a died worker before the run stops"
    )
    speculate: Literal["auto", "off", "ngram"] = Field(
        "auto",
        description="free answers: tokens that may come next are drafted where the text has said the same before (ngram), and one "
        "step of all members decides on them; the answers are the same (in float32), the steps fewer; auto: ngram where members "
        "compute in float32",
    )
    share_bases: bool = Field(
        True,
        description="members that are adapters of one base hold it once where they are in one process, and answer in one forward; "
        "false: each in a copy of its base (the same up to rounding)",
    )
    quorum: PositiveInt | None = Field(
        None,
        description="go on without a member whose worker dies more often than that, as long as so many members are left; "
        "results.json then says so. Default: the run stops",
    )
    keep_supervisors: bool = Field(
        False,
        description="hold the supervisors' devices while students train, which saves starting them again; by default they are free then",
    )
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (),
        description="where losses, accuracies and results go beside the run directory; each needs its package",
    )
    cache: str | None = Field(
        None,
        description="folder in which runs share equal work (trained members and students, scores); default: none",
    )
    work_dir: str | None = Field(
        None,
        description="folder on each node's own disk for its copy of a run whose runs_dir is a URI; ~ and $VARIABLES are those of "
        "the node; default: ENSEMW2S_WORK_DIR, else .cache/ensemw2s/runs in the home folder",
    )


class ExperimentConfig(Section):
    """One run: easy data, weak models, boosting, vote, strong model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="name of the run directory"
    )
    seed: int = Field(0, ge=0, description="seed of everything that is drawn")
    runs_dir: str = Field(
        "runs",
        description="folder of the run directories, or a URI such as s3://bucket/runs (runtime: not part of the run's identity)",
    )
    data: DataConfig
    weak: WeakConfig
    strong: StrongConfig
    boosting: BoostingConfig = BoostingConfig()
    vote: VoteConfig = VoteConfig()
    labels: LabelsConfig = LabelsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @field_validator("runs_dir")
    @classmethod
    def _a_folder(cls, value: str) -> str:
        problem = uri_problem(value) if is_uri(value) else None
        if problem is not None:
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _heads_fit(self) -> ExperimentConfig:
        weak, strong = self.weak.models[0].head, self.strong.model.head
        if any(model.head != weak for model in self.weak.models):
            raise ValueError("the weak models vote together: give all of them the same head")
        if weak == "classifier" and self.boosting.prior == "pretrained":
            raise ValueError(
                "boosting.prior pretrained is a head that has learned something, and head classifier has a new one: use classes "
                "(SAMME), unigram, warmup, or chance with unit choice"
            )
        if "classifier" in (weak, strong) and self.labels.targets == "tokens":
            raise ValueError(
                "labels.targets tokens are of a vocabulary, and a classifier has classes: use choices or hard"
            )
        if self.labels.targets == "tokens" and (self.vote.label_model != "weighted" or self.vote.calibrate):
            raise ValueError(
                f"labels.targets tokens are the members' mixture by their weights, and vote.label_model {self.vote.label_model} with "
                f"calibrate {str(self.vote.calibrate).lower()} decides about whole choices: use targets choices, or label_model weighted "
                "without calibrate"
            )
        if strong == "classifier" and "few_shot" in self.evaluation.baselines:
            raise ValueError(
                "baseline few_shot needs a strong model that reads answers: give strong.model.head lm"
            )
        return self

    @model_validator(mode="after")
    def _preference_fits(self) -> ExperimentConfig:
        if self.strong.preference is None:
            return self
        if self.labels.keep_by == "all":
            raise ValueError(
                "strong.preference learns from the questions that the first stage leaves out, and labels.keep_by all leaves out "
                "none: set labels.keep_by agreement or confidence"
            )
        batch, workers = self.strong.training.batch_size, self.runtime.strong_workers
        if self.runtime.executor == "ray" and batch % workers:
            raise ValueError(
                f"strong.preference gives every worker the same share of a batch, and strong.training.batch_size {batch} cannot be "
                f"divided by runtime.strong_workers {workers}: change one of them"
            )
        if self.strong.model.head == "classifier":
            raise ValueError(
                "strong.preference compares texts, and strong.model.head classifier has none: use head lm"
            )
        return self

    @model_validator(mode="after")
    def _alignment_fits(self) -> ExperimentConfig:
        if self.vote.alignment == "tokens":
            return self
        if self.labels.targets == "tokens":
            raise ValueError(
                "labels.targets tokens are of one vocabulary, and vote.alignment bytes votes on pieces of text: use choices or hard"
            )
        if self.boosting.prior == "classes" and self.weak.models[0].head == "lm":
            raise ValueError(
                "boosting.prior classes is one of a vocabulary, and members with vote.alignment bytes may have several: use unigram, "
                "pretrained or warmup"
            )
        if self.runtime.speculate == "ngram":
            raise ValueError(
                f"runtime.speculate {self.runtime.speculate} drafts tokens, and vote.alignment bytes votes on bytes: set "
                "runtime.speculate off or auto"
            )
        return self

    @model_validator(mode="after")
    def _storage_fits(self) -> ExperimentConfig:
        if is_uri(self.runs_dir) and self.runtime.cache is not None:
            raise ValueError(
                "runtime.cache is a folder beside run directories, and runs_dir is a URI: leave the cache out, or give a folder for both"
            )
        return self

    @model_validator(mode="after")
    def _rounds_fit(self) -> ExperimentConfig:
        if isinstance(self.vote.rounds, int) and self.vote.rounds > self.boosting.rounds:
            raise ValueError(
                f"vote.rounds {self.vote.rounds} is more than boosting.rounds {self.boosting.rounds}"
            )
        if self.runtime.quorum is not None and self.runtime.quorum > self.boosting.rounds:
            raise ValueError(
                f"runtime.quorum {self.runtime.quorum} is more than boosting.rounds {self.boosting.rounds}"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The part that makes this run what it is, as plain JSON data."""
        data: dict[str, Any] = self.model_dump(mode="json")
        for key in ("runtime", "runs_dir", "name"):
            data.pop(key)
        return data

    def identity_hash(self) -> str:
        """SHA-256 of the identity, hexadecimal."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
