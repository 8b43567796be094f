"""lm-evaluation-harness against the server, where it is installed (pip install "lm-eval[api]")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

SOUNDS = ["buzz loud", "hiss low", "roar far", "chirp high"]
QUESTIONS = [f"the {animal} in the {place}" for animal in ("ant", "cat", "hen") for place in ("barn", "lake")]


@pytest.mark.parametrize("concurrent", [1, 4])
def test_its_scores_choose_as_labels_do(
    real_url: str, served_run: Path, client: Any, concurrent: int
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{real_url}/completions",
        model="ensemble",
        tokenizer=str(served_run / "members" / "00"),
        tokenizer_backend="huggingface",
        tokenized_requests=True,
        batch_size=8,
        num_concurrent=concurrent,
        max_length=128,
    )
    prompts = [f"Question: {q}\nAnswer:" for q in QUESTIONS]
    pairs = [(prompt, f" {choice}") for prompt in prompts for choice in SOUNDS]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    logs = np.array([score for score, _ in model.loglikelihood(asked)]).reshape(-1, len(SOUNDS))
    # lm-eval adds up the tokens of a choice, two each; a label is given by their mean.
    shares = np.exp(logs / 2) / np.exp(logs / 2).sum(axis=1, keepdims=True)
    labels = client.post(
        "/v1/label", {"input": [{"question": q, "choices": SOUNDS} for q in QUESTIONS]}
    ).json()
    np.testing.assert_allclose(shares, [label["scores"] for label in labels["data"]], atol=1e-5)

    options = {"until": ["\n"], "max_gen_toks": 8, "temperature": 0}
    texts = model.generate_until(
        [Instance("generate_until", {}, (p, options), i) for i, p in enumerate(prompts)]
    )
    body = {"model": "ensemble", "prompt": prompts, "max_tokens": 8, "temperature": 0, "stop": "\n"}
    choices = client.post("/v1/completions", body).json()["choices"]
    assert texts == [choice["text"] for choice in choices]
