"""IFEval's own checks of instructions, as lm-evaluation-harness has them (extra `ifeval`)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from selfalign.errors import ConfigurationError, DataError

_INSTALL = (
    'pip install -c constraints.txt -e ".[ifeval]" && python -m nltk.downloader punkt_tab, '
    "or leave the IFEval file out of evaluate.heldout"
)


def follows(
    prompt: str, ids: Sequence[str], arguments: Sequence[Mapping[str, Any]], answer: str
) -> bool:
    """Whether an answer follows every instruction, strictly; an empty answer follows none.

    Raises:
        ConfigurationError: lm-eval or the tokenizer of sentences that it needs is missing.
        DataError: an instruction that it does not know, or with arguments that it does not take.
    """
    strictly = _checker()
    example = SimpleNamespace(
        instruction_id_list=list(ids), prompt=prompt, kwargs=[dict(each) for each in arguments]
    )
    try:
        return bool(strictly(example, answer).follow_all_instructions)
    except LookupError as e:
        if isinstance(e, KeyError):
            raise DataError(
                f"IFEval: unknown instruction {e.args[0]!r}", remedy="give the file as published"
            ) from e
        raise _no_sentences() from e
    except (TypeError, ValueError) as e:
        raise DataError(
            f"IFEval: {', '.join(ids)}: {e}", remedy="give the file as published"
        ) from e


def check_installed() -> None:
    """Raise ConfigurationError where lm-eval or the tokenizer of sentences is missing."""
    _checker()
    nltk: Any = importlib.import_module("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as e:
        raise _no_sentences() from e


def _no_sentences() -> ConfigurationError:
    return ConfigurationError("IFEval: NLTK's tokenizer of sentences is not here", remedy=_INSTALL)


@cache
def _checker() -> Any:
    try:
        languages: Any = importlib.import_module("langdetect")
        module: Any = importlib.import_module("lm_eval.tasks.ifeval.utils")
    except ImportError as e:
        raise ConfigurationError(
            f"IFEval is checked by lm-eval, which is not installed ({e})", remedy=_INSTALL
        ) from e
    languages.DetectorFactory.seed = 0  # it draws at random otherwise
    return module.test_instruction_following_strict
