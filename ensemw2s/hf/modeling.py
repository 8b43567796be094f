"""The voting members as one causal language model of transformers, with `generate` and all that builds on it."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ensemw2s.errors import ModelError
from ensemw2s.hf.cache import EnsembleCache
from ensemw2s.hf.configuration import EnsembleConfig, check_weights
from ensemw2s.hf.files import load_members, save_members


class EnsembleForCausalLM(PreTrainedModel, GenerationMixin):
    """T causal language models that vote on every token.

    The logits are log sum_t alpha_t P_t(v | prefix) / sum_t alpha_t, normalised log-probabilities: their softmax is the
    vote's distribution, their argmax the voted token (where two tokens tie within the rounding of float32, the vote
    in float64 may decide otherwise).

    Args:
        config: members and weights.
        members: T models in the order of the weights; None makes new ones, randomly initialised, from the configuration.
    """

    config_class = EnsembleConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: EnsembleConfig, members: Sequence[Any] | None = None) -> None:
        super().__init__(config)
        if members is None:
            members = [AutoModelForCausalLM.from_config(c) for c in config.member_configs()]
        check_weights(config.alphas, len(members))
        sizes = {int(m.config.get_text_config(decoder=True).vocab_size) for m in members}
        if len(sizes) > 1:
            raise ModelError(
                f"members with vocabularies of {sorted(sizes)} tokens cannot vote together: use models of one tokenizer"
            )
        self.members = nn.ModuleList(members)
        self._known = [frozenset(inspect.signature(m.forward).parameters) for m in members]
        self._is_stateful = any(getattr(m, "_is_stateful", False) for m in members)
        self.post_init()

    # -- forward ---------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: EnsembleCache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Voted log-probabilities of the next tokens.

        Args:
            input_ids: (b, q) token ids; after a cache, those that it does not hold yet.
            attention_mask: (b, s) 1 for tokens, 0 for padding, on either side, cached tokens included; or what the
                members' attention takes.
            position_ids: (b, q); default: counted from each row's first token.
            past_key_values: what an earlier forward gave back.
            labels: (b, q) token ids, -100 for those without a loss; the loss is the mean of -log P(label | prefix).
            use_cache: give a cache back; default: as configured.
            logits_to_keep: logits of the last so many positions, or of these positions; 0 keeps all.
            return_dict: False gives a tuple.
            kwargs: handed on to the members.

        Returns:
            ``logits`` (b, k, V) float32, ``loss`` with labels, ``past_key_values`` with a cache.

        Raises:
            ValueError: no token ids, hidden states or attentions are asked for (members have them), or a cache of
                another model.
        """
        if input_ids is None:
            raise ValueError("an ensemble needs input_ids: its members do not share embeddings")
        if kwargs.get("output_hidden_states") or kwargs.get("output_attentions"):
            raise ValueError(
                "an ensemble has no hidden states or attentions of its own: ask model.members[i]"
            )
        if past_key_values is not None and not isinstance(past_key_values, EnsembleCache):
            raise ValueError(
                f"past_key_values is a {type(past_key_values).__name__}: leave it out, or give back what this model returned"
            )
        items = kwargs.pop("num_items_in_batch", None)
        caching = self._can_cache and (self.config.use_cache if use_cache is None else use_cache)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = _positions(attention_mask, input_ids.shape[1])
        voted: Any = None
        caches: list[Any] = [None] * len(self.members)
        for i, (member, weight) in enumerate(zip(self._voters, self._log_weights(), strict=True)):
            if weight == -math.inf:
                continue
            inputs = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids if "position_ids" in self._known[i] else None,
                **kwargs,
            }
            inputs = {name: _to(value, member.device) for name, value in inputs.items() if value is not None}
            if "past_key_values" in self._known[i]:
                inputs["use_cache"] = caching
                inputs["past_key_values"] = None if past_key_values is None else past_key_values.members[i]
            output = self._run(i, inputs, logits_to_keep)
            caches[i] = output.past_key_values if caching else None
            own = output.logits.float().log_softmax(dim=-1) + weight
            voted = own if voted is None else torch.logaddexp(voted, own.to(voted.device))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=voted, labels=labels, vocab_size=voted.shape[-1], num_items_in_batch=items
            )
        cache = past_key_values
        if caching and cache is None:
            cache = EnsembleCache(caches)
        result = CausalLMOutputWithPast(loss=loss, logits=voted, past_key_values=cache if caching else None)
        return result.to_tuple() if return_dict is False else result

    def _run(self, i: int, inputs: dict[str, Any], logits_to_keep: int | torch.Tensor) -> Any:
        """One member's output; its logits are those of the kept positions."""
        member = self._voters[i]
        if "logits_to_keep" in self._known[i]:
            return member(**inputs, logits_to_keep=_to(logits_to_keep, member.device), return_dict=True)
        output = member(**inputs, return_dict=True)
        if isinstance(logits_to_keep, torch.Tensor):
            output.logits = output.logits[:, logits_to_keep.to(output.logits.device)]
        else:
            output.logits = output.logits[:, -logits_to_keep:]
        return output

    @property
    def _voters(self) -> list[Any]:
        return list(self.members)

    def _log_weights(self) -> list[float]:
        total = sum(self.config.alphas)
        return [math.log(alpha / total) if alpha > 0 else -math.inf for alpha in self.config.alphas]

    # -- generation ------------------------------------------------------------------------------------------

    @property
    def _can_cache(self) -> bool:
        """Without a cache of every member there is none: generation then reads the whole text at each step."""
        return all("past_key_values" in known for known in self._known)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Each member prepares a cache of its own kind; `generate` hands all of them to every step."""
        if not self._can_cache:
            generation_config.use_cache = False
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
            return
        caches: list[Any] = []
        for member, alpha in zip(self._voters, self.config.alphas, strict=True):
            own: dict[str, Any] = {}
            if alpha > 0:
                member._prepare_cache_for_generation(generation_config, own, *args, **kwargs)
            caches.append(own.get("past_key_values"))
        model_kwargs["past_key_values"] = EnsembleCache(caches)

    # -- loading and saving ----------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load what `ensemw2s export` or :meth:`save_pretrained` wrote, in evaluation mode.

        Args:
            pretrained_model_name_or_path: the folder, or its name on the hub.
            model_args: none are taken.
            kwargs: as for any model; ``dtype``, ``device_map``, ``attn_implementation`` and the like go to every member.

        Raises:
            ModelError: not such a folder, or a member of it is missing or damaged.
        """
        if model_args:
            raise ValueError("an ensemble takes no positional arguments besides its folder")
        loaded = load_members(pretrained_model_name_or_path, **kwargs)
        model = cls(loaded.config, loaded.members)
        model.generation_config = loaded.generation_config
        maps = {
            f"members.{i}{'.' if part else ''}{part}": device
            for i, member in enumerate(loaded.members)
            for part, device in getattr(member, "hf_device_map", {}).items()
        }
        if maps:
            model.hf_device_map = maps
        model.eval()
        return (model, loaded.info) if kwargs.get("output_loading_info") else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a folder that :meth:`from_pretrained` reads.

        Args:
            save_directory: made where it does not exist; an ensemble that it holds is replaced.
            is_main_process: False writes nothing.
            state_dict: the weights where the model's own are not whole (sharded training).
            kwargs: handed on to the members' ``save_pretrained``, for example ``max_shard_size``.

        Raises:
            ValueError: ``push_to_hub``: call the model's own ``push_to_hub``.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save_pretrained writes a folder: use model.push_to_hub(name) for the hub")
        if is_main_process:
            save_members(self, save_directory, state_dict, **kwargs)

    # -- what transformers asks of a model -------------------------------------------------------------------

    def init_weights(self) -> None:
        """The members have initialised, or loaded, their weights themselves."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Each member ties its own."""
        for member in self._voters:
            member.tie_weights()

    def get_input_embeddings(self) -> nn.Module:
        """The first member's."""
        embeddings: nn.Module = self._voters[0].get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> None:
        """There is no single output head."""


def _positions(attention_mask: torch.Tensor, n_new: int) -> torch.Tensor:
    """(b, n_new) places of the newest tokens, counted without padding."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -n_new:]


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
