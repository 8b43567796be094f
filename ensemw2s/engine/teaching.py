"""Do the losses and the labels that students learn from go together?"""

from __future__ import annotations

from ensemw2s.config import ExperimentConfig
from ensemw2s.errors import ConfigError
from ensemw2s.training.losses import make_loss
from ensemw2s.training.losses.standard import CrossEntropy, UncertaintySmoothing


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
    of_weak, of_strong = make_loss(weak.loss, weak.loss_options), make_loss(strong.loss, strong.loss_options)
    if of_weak.needs:
        raise ConfigError(
            f"weak.training.loss {weak.loss} needs labels with doubt, and members are taught the truth: use cross_entropy, "
            "confidence or your own; strong.training.loss is the students'"
        )
    targets = config.labels.targets
    if "soft" in of_strong.needs and targets != "tokens":
        raise ConfigError(
            f"strong.training.loss {strong.loss} needs distributions over tokens: set labels.targets tokens (now {targets})"
        )
    if targets == "tokens" and isinstance(of_strong, (CrossEntropy, UncertaintySmoothing)):
        raise ConfigError(
            f"labels.targets tokens goes with a loss that uses distributions, and strong.training.loss {strong.loss} does not: "
            "use soft_cross_entropy, product_of_experts or confidence, or labels.targets hard"
        )
    if targets == "tokens" and not one_tokenizer:
        raise ConfigError(
            "labels.targets tokens needs a strong model with the weak models' tokenizer, and the two differ: use choices or hard"
        )
    if targets == "choices" and not multiple_choice:
        raise ConfigError(
            "labels.targets choices needs multiple-choice data: this data has no choices; use tokens or hard"
        )


def asks_teacher(config: ExperimentConfig) -> bool:
    """Whether students learn more of their teacher than the labels' text."""
    return config.labels.targets != "hard" or config.strong.training.loss != "cross_entropy"
