"""Do the losses, the labels that students learn from, and the models go together?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ensemw2s.config import ExperimentConfig, ModelConfig, TrainingConfig
from ensemw2s.errors import ConfigError
from ensemw2s.training.losses import TokenLoss, make_loss
from ensemw2s.training.losses.confidence import ConfidenceAuxiliary
from ensemw2s.training.losses.standard import CrossEntropy, UncertaintySmoothing

if TYPE_CHECKING:
    from ensemw2s.models.facts import ModelFacts


def check_teaching(config: ExperimentConfig, *, multiple_choice: bool, one_tokenizer: bool) -> None:
    """Make the losses and check them against the labels.

    Args:
        config: the experiment.
        multiple_choice: the questions have choices.
        one_tokenizer: weak and strong side share it.

    Raises:
        ConfigError: with one line.
    """
    weak, strong = config.weak.training, config.strong.training
    check_member_loss(weak)
    of_strong = _loss("strong", strong)
    targets = config.labels.targets
    if "soft" in of_strong.needs and targets != "tokens" and not by_classes(config):
        wanted = "choices" if config.strong.model.head == "classifier" else "tokens"
        raise ConfigError(
            f"strong.training.loss {strong.loss} needs distributions over {'classes' if wanted == 'choices' else 'tokens'}: set "
            f"labels.targets {wanted} (now {targets})"
        )
    if targets == "tokens" and isinstance(of_strong, (CrossEntropy, UncertaintySmoothing)):
        raise ConfigError(
            f"labels.targets tokens goes with a loss that uses distributions, and strong.training.loss {strong.loss} does not: "
            "use soft_cross_entropy, product_of_experts or confidence, or labels.targets hard"
        )
    if targets == "choices" and _meets_classes(of_strong) and not by_classes(config):
        raise ConfigError(
            "strong.training.loss confidence with classes meets the labels' frequencies, each label counting once, and labels.targets "
            "choices has a text for every choice: use labels.targets hard, or leave classes out"
        )
    if targets == "tokens" and not one_tokenizer:
        raise ConfigError(
            "labels.targets tokens needs a strong model with the weak models' tokenizer, and the two differ: use choices or hard"
        )
    if targets == "choices" and not multiple_choice:
        raise ConfigError(
            "labels.targets choices needs multiple-choice data: this data has no choices; use tokens or hard"
        )


def check_member_loss(weak: TrainingConfig) -> None:
    """Refuse a loss that needs more than the truth.

    Raises:
        ConfigError: with one line.
    """
    if _loss("weak", weak).needs:
        raise ConfigError(
            f"weak.training.loss {weak.loss} needs labels with doubt, and members are taught the truth: use cross_entropy, "
            "confidence or your own; strong.training.loss is the students'"
        )


def by_classes(config: ExperimentConfig) -> bool:
    """Whether a label is one row with the teacher's share of each class (a classification head), for losses that take a distribution;
    others have a row for each choice, as heavy as its share, which is the same cross-entropy."""
    if config.labels.targets != "choices" or config.strong.model.head != "classifier":
        return False
    loss = _loss("strong", config.strong.training)
    return "soft" in loss.needs or _meets_classes(loss)


def _meets_classes(loss: TokenLoss) -> bool:
    return isinstance(loss, ConfidenceAuxiliary) and loss.classes is not None


def check_outputs(
    side: str,
    training: TrainingConfig,
    model: ModelConfig,
    facts: ModelFacts,
    tokenizer: Any,
    classes: tuple[str, ...] | None,
) -> None:
    """Check a loss against a model that is trained with it.

    Args:
        side: weak or strong.
        training: has the loss.
        model: is trained.
        facts: of the model.
        tokenizer: of the model.
        classes: of its head, where that is a classifier.

    Raises:
        ConfigError: the loss names targets that the model does not have.
    """
    if classes is not None:
        n, of = len(classes), f"the classes of {model.display_name}"
    else:
        # Vocabularies are padded: what the tokenizer lacks is no token, whatever the output's width.
        n, of = min(len(tokenizer), facts.vocab_size), f"the vocabulary of {model.display_name}"
    loss = _loss(side, training)
    try:
        loss.check_outputs(n, of)
    except ValueError as error:
        raise ConfigError(f"{side}.training: loss {training.loss}: {error}") from error


def _loss(side: str, training: TrainingConfig) -> TokenLoss:
    try:
        return make_loss(training.loss, training.loss_options)
    except ConfigError as error:
        raise ConfigError(f"{side}.training: {error}") from error


def asks_teacher(config: ExperimentConfig) -> bool:
    """Whether students learn more of their teacher than the labels' text."""
    return config.labels.targets != "hard" or config.strong.training.loss != "cross_entropy"
