"""Models and their fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ensemw2s.config.base import NonNegativeFloat, PositiveFloat, PositiveInt, Section


class LoraConfig(Section):
    """Low-rank adapters (peft) instead of full fine-tuning."""

    rank: PositiveInt = Field(16, description="rank of the adapters (r)")
    alpha: PositiveFloat = Field(32.0, description="the adapters' output is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="dropout before the adapters")
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear",
        description="names of the modules that get adapters, or all linear ones but the output head",
    )


class ModelConfig(Section):
    """A causal language model."""

    path: str = Field(
        description="hub id, local folder, .gguf file, or package:NAME for the .gguf file inside an installed Python package"
    )
    label: str | None = Field(None, description="name in tables; default: made from the path and the layers")
    revision: str | None = Field(None, description="commit, tag or branch on the hub")
    gguf_file: str | None = Field(None, description="the .gguf file inside a hub repository or folder")
    drop_layers: str | None = Field(
        None, description="layers to leave out, from 0, for example 12-21 or 3,5,12-21"
    )
    keep_layers: str | None = Field(None, description="the layers to keep instead, same form")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the GPU computes it well, else float32"
    )
    lora: LoraConfig | None = Field(None, description="train adapters instead of all weights")
    head: Literal["lm", "classifier"] = Field(
        "lm",
        description="lm: the model's own output head; classifier: a new head with one output for each choice, for data whose "
        "samples all have the same choices (classification)",
    )
    trainable: Literal["all", "head"] | PositiveInt = Field(
        "all",
        description="what fine-tuning changes: all weights; the last N layers (and the final norm; the layers below need no gradient "
        "and no optimizer); or head, a linear probe. Embeddings, and an output head that shares their weights, stay as they are with N",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, slower")
    trust_remote_code: bool = Field(
        False, description="run code that comes with the model; off unless you trust it"
    )

    @model_validator(mode="after")
    def _one_layer_rule(self) -> ModelConfig:
        if self.drop_layers and self.keep_layers:
            raise ValueError("give drop_layers or keep_layers, not both")
        for name in ("drop_layers", "keep_layers"):
            text = getattr(self, name)
            if text is not None:
                parse_layers(text)
        if self.lora is not None and self.trainable != "all":
            raise ValueError(
                f"lora trains adapters in all layers, and trainable {self.trainable} a part of the weights: give one of them"
            )
        if self.lora is not None and self.head == "classifier":
            raise ValueError(
                "lora trains adapters only, and head classifier has a new head to train: leave lora out, or use trainable for less"
            )
        return self

    @property
    def display_name(self) -> str:
        """Label for tables: the given one, or the last part of the path and the layers left out or kept."""
        if self.label:
            return self.label
        name = self.path.rstrip("/").split("/")[-1].removeprefix("package:")
        if self.drop_layers:
            name += f" without layers {self.drop_layers}"
        if self.keep_layers:
            name += f" layers {self.keep_layers}"
        return name


def parse_layers(text: str) -> tuple[int, ...]:
    """``"3,5,12-14"`` -> ``(3, 5, 12, 13, 14)``; ValueError where it is not of that form."""
    layers: list[int] = []
    for part in str(text).split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ValueError(f"{text!r} is not a list of layers: write for example 12-21 or 3,5,12-21")
        begin, end = int(first), int(last or first)
        if end < begin:
            raise ValueError(f"the layer range {part.strip()!r} runs backwards")
        layers.extend(range(begin, end + 1))
    return tuple(sorted(set(layers)))


class TrainingConfig(Section):
    """Fine-tuning of one model."""

    epochs: PositiveInt = Field(2, description="passes over the training set")
    batch_size: PositiveInt = Field(16, description="samples per optimizer step, over all workers")
    micro_batch_size: PositiveInt = Field(
        8, description="samples per forward pass; changes memory and speed, not the objective"
    )
    learning_rate: PositiveFloat = Field(5e-5, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="decay after the warm-up")
    warmup_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.1, description="share of the steps that warm up"
    )
    weight_decay: NonNegativeFloat = Field(
        0.0, description="AdamW's weight decay of matrices; vectors (norms, biases) have none"
    )
    adam_betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (
        Field((0.9, 0.999), description="AdamW's decay rates of the two moments")
    )
    max_grad_norm: PositiveFloat = Field(1.0, description="gradients are clipped to this norm")
    loss: str = Field(
        "cross_entropy",
        description="cross_entropy, soft_cross_entropy, product_of_experts, uncertainty_smoothing, confidence (the auxiliary "
        "loss of Burns et al.), or package.module:function for your own",
    )
    loss_options: dict[str, Any] = Field({}, description="options of the loss by name")


class StrongTrainingConfig(TrainingConfig):
    """Fine-tuning of the strong model, with DeepSpeed when runtime.executor is ray."""

    deepspeed: str | dict[str, Any] = Field(
        "zero2",
        description="DeepSpeed configuration: a JSON file, or zero2 / zero3 for the ones that come with the package",
    )
