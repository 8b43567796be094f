"""config.json of an exported ensemble."""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from ensemw2s.errors import ModelError


class EnsembleConfig(PreTrainedConfig):
    """What votes, and with which weight.

    Attributes:
        members: T configurations of causal language models, as dictionaries.
        alphas: T voting weights, not negative, not all 0; they need not sum to 1.
        vocab_size: V, the same for all members.
        max_position_embeddings: the shortest of the members' contexts; None where none names one.
        prompt: the run's prompt template, for whoever wants to ask as the members were taught; not used here.
        stop: strings that end an answer in the run; not used here.
    """

    model_type = "ensemw2s"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    members: list[dict[str, Any]] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    prompt: str | None = None
    stop: list[str] = field(default_factory=list)
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def member_configs(self) -> list[Any]:
        """The members' configurations as objects, T of them.

        Raises:
            ModelError: no members, or weights that do not fit them.
        """
        check_weights(self.alphas, len(self.members))
        return [AutoConfig.for_model(**member) for member in self.members]


def check_weights(alphas: list[float], n_members: int) -> None:
    """Raise ModelError unless there is one voting weight a member, none negative and one above 0."""
    if n_members == 0 or len(alphas) != n_members:
        raise ModelError(
            f"an ensemble of {n_members} members with {len(alphas)} weights cannot vote: give one weight a member, and "
            "at least one member"
        )
    # NaN and infinity fail this, too.
    if not (all(0.0 <= alpha < float("inf") for alpha in alphas) and sum(alphas) > 0.0):
        raise ModelError(f"voting weights must be finite, not negative and not all 0, got {alphas}")
