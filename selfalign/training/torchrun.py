"""torchrun, with exit codes kept: `python -m selfalign.training.torchrun OPTIONS -- COMMAND`.

torchrun itself ends with 1 whatever its workers ended with. A scheduler must see their code: this
ends with the first failed worker's, and with 128 + n when signal n stopped it.

The options of COMMAND are kept from torchrun's parser, which takes `--run` for an abbreviation of
its own and refuses it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Workers asked to stop write a checkpoint first, which may take longer than the 30 seconds that
# torchrun gives; but those whose peer failed may hang in a collective, and must not hang for long.
_SHUTDOWN_SECONDS = 120


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; returns the exit code.

    Args:
        arguments: torchrun's options, "--", and a Python command line without the interpreter:
            ["-m", "package.module", ...] or ["script.py", ...].
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    end = list(arguments).index("--")
    options, command = list(arguments[:end]), list(arguments[end + 1 :])
    script = command[:2] if command[0] == "-m" else command[:1]
    parsed = parse_args([*options, *script])  # type: ignore[no-untyped-call]
    parsed.training_script_args = command[len(script) :]
    threads = len(os.sched_getaffinity(0)) // int(parsed.nproc_per_node)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SHUTDOWN_SECONDS))
    try:
        run(parsed)  # type: ignore[no-untyped-call]
    except ChildFailedError as e:
        # A worker that reported an error of its own says more than one that a signal ended.
        codes = [failure.exitcode for _, failure in sorted(e.failures.items())]
        return next((code for code in codes if code > 0), 128 - codes[0])
    except SignalException as e:
        return 128 + e.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
