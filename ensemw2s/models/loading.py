"""Tokenizers and models, ready to score, decode or fine-tune."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.quantization_config import GgufConfig

from ensemw2s.config import ModelConfig
from ensemw2s.errors import ModelError, ResourceError
from ensemw2s.models.classifier import replace_head
from ensemw2s.models.device import resolve_dtype
from ensemw2s.models.files import check_weights_exist, first_line, once_per_file, read_config
from ensemw2s.models.layers import kept_layers, select_layers
from ensemw2s.models.lora import with_adapters
from ensemw2s.models.quiet import quiet
from ensemw2s.models.sources import ModelSource, resolve_source


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's fast tokenizer (transformers ``PreTrainedTokenizerFast``), from a GGUF file too.

    Raises:
        ModelError: there is none, it is not a fast one, or it has no end-of-text token.
    """
    source = resolve_source(model)
    try:
        tokenizer = once_per_file(_read_tokenizer, model, source)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            reason = "it comes with code of its own: set trust_remote_code: true if you trust it"
        else:
            reason = first_line(error)
        raise ModelError(f"the tokenizer of model {model.path!r} cannot be loaded: {reason}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"the tokenizer of model {model.path!r} is not a fast one: add its tokenizer.json")
    if len(tokenizer) == 0:
        raise ModelError(f"the tokenizer of model {model.path!r} has no tokens: add its tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of model {model.path!r} has no end-of-text token: set eos_token in its "
            "tokenizer_config.json"
        )
    return tokenizer


def _read_tokenizer(source: ModelSource, trust_remote_code: bool) -> Any:
    with quiet(source.local):
        return AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **source.arguments()
        )


def eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """All end-of-text ids, ascending: the tokenizer's, the model's, and its generation configuration's."""
    found: set[int] = set()
    for value in (
        tokenizer.eos_token_id,
        getattr(model.config.get_text_config(decoder=True), "eos_token_id", None),
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
    ):
        if value is not None:
            found.update(int(v) for v in (value if isinstance(value, (list, tuple)) else (value,)))
    return tuple(sorted(found))


def load_model(
    model: ModelConfig,
    *,
    device: str,
    dtype: torch.dtype | None = None,
    for_training: bool = False,
    seed: int = 0,
    n_classes: int | None = None,
) -> Any:
    """Load pretrained weights and make the model that the configuration describes.

    Args:
        model: what to load; ``lora`` and ``gradient_checkpointing`` take effect only with ``for_training``;
            ``trainable`` is for :func:`ensemw2s.models.trainable.freeze`.
        device: cpu, cuda or cuda:N.
        dtype: number format of the weights; default: ``resolve_dtype(model.dtype, device)``.
        for_training: training mode, and new adapters where ``lora`` is given. Adapters are float32 in every
            case.
        n_classes: outputs of the new head of a model with ``head`` classifier.
        seed: of the adapters' initial weights; torch's global generators are left as they were.

    Returns:
        A transformers ``PreTrainedModel``, or a ``peft.PeftModel`` around one.

    Raises:
        ModelError: the files are missing or broken, or lack some of the weights.
        ResourceError: the model does not fit into the device's memory.
    """
    source = resolve_source(model)
    check_weights_exist(model, source)
    config = read_config(model, source)
    kept = kept_layers(model, int(config.get_text_config(decoder=True).num_hidden_layers))
    loaded = read_weights(
        model, source, config, dtype if dtype is not None else resolve_dtype(model.dtype, device)
    )
    if kept is not None:
        select_layers(loaded, kept)
    if getattr(loaded, "generation_config", None) is not None:
        loaded.generation_config = _plain_generation_config(loaded.generation_config)
    if model.head == "classifier":
        if n_classes is None:
            raise ValueError("a classifier needs the number of its classes")
        replace_head(loaded, n_classes)
    if for_training and model.lora is not None:
        loaded = with_adapters(loaded, model.lora, model.path, seed)
    loaded = to_device(loaded, device, model.path)
    return ready_to_train(loaded, model, device) if for_training else loaded.eval()


def ready_to_train(loaded: Any, model: ModelConfig, device: str) -> Any:
    """A loaded model in training mode, with what makes training fit and fast.

    Raises:
        ModelError: the model cannot recompute its activations.
    """
    if device == "cpu" and resolve_dtype(model.dtype, device) == torch.bfloat16:
        # Without the matrix units that all else uses there, the fused kernel's backward pass takes a quarter of a step.
        loaded.set_attn_implementation("eager")
    if model.gradient_checkpointing:
        try:
            # The non-reentrant form also works where no input of the checkpointed part needs a gradient, as
            # with adapters.
            loaded.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise ModelError(
                f"model {model.path!r} has no gradient checkpointing: set gradient_checkpointing: false"
            ) from error
    return loaded.train()


def read_weights(
    model: ModelConfig, source: ModelSource, config: Any, dtype: torch.dtype, kind: Any = AutoModelForCausalLM
) -> Any:
    """All weights into memory, on the CPU, in evaluation mode; ModelError when any is missing or broken."""
    extra = source.arguments()
    if source.gguf_file:
        # Without this, the weights stay in GGUF blocks where a kernel for them is installed, and cannot be
        # trained.
        extra["quantization_config"] = GgufConfig(dequantize=True)
    try:
        with quiet(source.local):
            loaded, report = kind.from_pretrained(
                source.path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=model.trust_remote_code,
                output_loading_info=True,
                **extra,
            )
    except MemoryError as error:
        raise ResourceError(
            f"model {model.path!r} does not fit into memory: choose a smaller one or float16"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"the weights of model {model.path!r} cannot be loaded: {first_line(error)}"
        ) from error
    # transformers fills in missing weights at random and only prints a report about it.
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            example = sorted(map(str, report[problem]))[0]
            raise ModelError(
                f"the weights of model {model.path!r} do not fit its config.json: {len(report[problem])} "
                f"{problem.replace('_', ' ')}, for example {example}: download the model again"
            )
    if source.gguf_file:
        # Left in place, these make save_pretrained refuse a model whose weights are plain tensors by now.
        loaded.hf_quantizer = None
        if hasattr(loaded.config, "quantization_config"):
            del loaded.config.quantization_config
    return loaded


def to_device(model: Any, device: str, name: str) -> Any:
    """Move a model; raises ResourceError where it does not fit."""
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"model {name!r} does not fit into the memory of {device}: {first_line(error)}"
        ) from error


def _plain_generation_config(old: Any) -> Any:
    """Special tokens only: sampling settings that come with a chat model must not leak into greedy
    decoding."""
    return GenerationConfig(
        bos_token_id=old.bos_token_id, eos_token_id=old.eos_token_id, pad_token_id=old.pad_token_id
    )
