"""What torch and its companions raise, as errors a scheduler understands.

| raised | becomes |
| --- | --- |
| no room on the disk, in whatever disguise | StorageFull |
| no memory on device or host | OutOfMemory |
| another RuntimeError of torch, safetensors' errors | EngineError |
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from selfalign.errors import EngineError, OutOfMemory, SelfAlignError, StorageFull, is_out_of_memory

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_MESSAGE_CHARACTERS = 500


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Translate what the block raises; `doing` says what failed, e.g. "training"."""
    try:
        yield
    except SelfAlignError:
        raise
    except Exception as e:
        translated = _translate(e, doing)
        if translated is None:
            raise
        raise translated from e


def _translate(error: Exception, doing: str) -> SelfAlignError | None:
    text = str(error)[:_MESSAGE_CHARACTERS]
    if _is_disk(error, text):
        return StorageFull(
            f"{doing}: the disk is full or fails: {text}",
            remedy="give the working directory more space (ephemeral-storage, emptyDir or disk)",
        )
    if is_out_of_memory(error):
        return OutOfMemory(
            f"{doing}: out of memory: {text}",
            remedy="lower micro_batch_size or max_length, set gradient_checkpointing, use lora or "
            "qlora, or shard with deepspeed",
        )
    if isinstance(error, RuntimeError) or _name(error) == "SafetensorError":
        return EngineError(f"{doing}: {_name(error)}: {text}")
    return None


def _name(error: Exception) -> str:
    return type(error).__name__


def _is_disk(error: Exception, text: str) -> bool:
    if isinstance(error, OSError):
        return error.errno in _DISK
    # safetensors says "... (os error 28)"; torch.save says which file, not why.
    code = re.search(r"\(os error (\d+)\)", text)
    return bool(code and int(code[1]) in _DISK) or "PytorchStreamWriter failed writing" in text
