"""The language model inside a checkpoint that takes images too: what is asked, scored and trained.

Only what transformers needs to load that part alone is decided here; nothing heavy is imported.
"""

from __future__ import annotations

from typing import Any

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
