"""Loading the language model of a checkpoint, as engines and training both do.

Of a checkpoint that takes images too it is one part, which transformers loads alone where it is
told how. Nothing heavy is imported here.
"""

from __future__ import annotations

from typing import Any

from selfalign.errors import DataError

# `model_type`s whose language model is, as a class of its own, an architecture of transformers, and
# gives the same texts and scores there as within the whole (tests/engines/test_architectures.py).
WITH_LANGUAGE_MODEL = ("gemma3", "gemma4", "llama4", "llava")

# Where its weights lie in the whole: as model hubs have them, and as transformers 4.52 wrote them.
_KEY_MAPPING = {
    r"^(?:language_model\.model|model\.language_model)\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
# What a whole states once, for its language model too.
_STATED_FOR_ALL = ("dtype", "tie_word_embeddings", "quantization_config")


def language_model_options(config: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load the language model alone; none for a text model.

    Args:
        config: the checkpoint's, as AutoConfig reads it.
    """
    if config.model_type not in WITH_LANGUAGE_MODEL:
        return {}
    text = config.get_text_config()
    for name in _STATED_FOR_ALL:
        if getattr(config, name, None) is not None:
            setattr(text, name, getattr(config, name))
    return {"config": text, "key_mapping": dict(_KEY_MAPPING)}


def require_whole(model: Any, loading: dict[str, Any], name: str) -> None:
    """Raise DataError for a model whose weights lack a tensor, which would be random numbers.

    Args:
        loading: what `from_pretrained` tells of it with `output_loading_info`.
        name: of the model, for people.
    """
    missing = sorted(loading["missing_keys"])
    if missing:
        raise DataError(
            f"{name}: the weights lack {len(missing)} tensors of {type(model).__name__}, the first "
            f"is {missing[0]}",
            remedy="save the whole model; an adapter must be merged into its base first",
        )
