"""An ensemble as one Hugging Face causal language model.

    import ensemw2s.hf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ensemw2s.hf.register()
    model = AutoModelForCausalLM.from_pretrained("exported")  # written by `ensemw2s export RUN --output exported`
    tokenizer = AutoTokenizer.from_pretrained("exported")

Its logits are the log-probabilities of the vote, so whatever evaluates or samples a causal language model does so with
the ensemble.
"""

from __future__ import annotations


def register() -> None:
    """Tell transformers' Auto classes what ``model_type: ensemw2s`` is; calling it again changes nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from ensemw2s.hf.configuration import EnsembleConfig
    from ensemw2s.hf.modeling import EnsembleForCausalLM

    AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig, exist_ok=True)
    AutoModelForCausalLM.register(EnsembleConfig, EnsembleForCausalLM, exist_ok=True)
