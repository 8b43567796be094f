"""A classification head in the place of the output head.

In memory such a model is a causal language model whose vocabulary is the K classes: what predicts the token after the prompt
predicts the class. On disk it is what transformers calls ``...ForSequenceClassification``, which other tools can load.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ensemw2s.errors import ModelError
from ensemw2s.models.files import first_line


def replace_head(model: Any, n_classes: int) -> None:
    """Put a new head without a bias into a causal language model, in place.

    Its weights are 0: it finds all classes equally likely before it has learned, whatever the seed.
    """
    old = model.get_output_embeddings()
    head = nn.Linear(old.in_features, n_classes, bias=False, device=old.weight.device, dtype=old.weight.dtype)
    nn.init.zeros_(head.weight)
    model.set_output_embeddings(head)
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False
    model.config.num_labels = n_classes


def sequence_classifier(model: Any) -> Any:
    """The same modules as transformers' class for classification, to be saved.

    Raises:
        ModelError: the architecture has none.
    """
    made = empty_classifier(model.config)
    setattr(made, made.base_model_prefix, model.base_model)
    made.score = model.get_output_embeddings()
    if made.config.pad_token_id is None:
        # transformers looks for the last token that is no padding.
        made.config.pad_token_id = made.config.eos_token_id
    return made


def empty_classifier(config: Any) -> Any:
    """transformers' class for classification without weights, or ModelError where the architecture has none."""
    try:
        with torch.device("meta"):
            made = AutoModelForSequenceClassification.from_config(config)
    except (ValueError, ImportError) as error:
        raise ModelError(
            f"head classifier: {type(config).__name__} has no classification model in transformers ({first_line(error)}): use head lm"
        ) from error
    if not isinstance(getattr(made, "score", None), nn.Linear):
        raise ModelError(
            f"head classifier: the classification head of {type(made).__name__} is not a plain one: use head lm"
        )
    return made


def causal_form(classifier: Any) -> Any:
    """A loaded classification model as a causal language model over its classes."""
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(classifier.config)
    setattr(made, made.base_model_prefix, classifier.base_model)
    made.set_output_embeddings(classifier.score)
    return made
