"""A real S3 server (moto), as a process of its own.

    python moto_process.py [HOST [PORT [LOG]]]

Prints its URL and serves until standard input ends, so that it cannot outlive the tests. LOG gets
a line per answer: method, path, status. Without arguments: a free loopback port, no log.

Requests are answered one at a time: moto compares a condition and writes in two steps, and
two threads of it can both find an object absent. S3 does both in one.
"""

from __future__ import annotations

import sys
import threading
from contextlib import nullcontext
from pathlib import Path

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server


def main(host: str = "127.0.0.1", port: str = "0", log: str = "") -> None:
    """Serve until standard input is closed."""
    application = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    with Path(log).open("a") if log else nullcontext() as answers:

        def one_at_a_time(environ, start_response):  # type: ignore[no-untyped-def]
            def noted(status, headers, exc_info=None):  # type: ignore[no-untyped-def]
                if answers is not None:
                    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
                    print(method, path, status.split()[0], file=answers, flush=True)
                return start_response(status, headers, exc_info)

            with lock:
                return list(application(environ, noted))

        # threaded: a connection that is kept alive must not keep the others waiting.
        server = make_server(
            host, int(port), one_at_a_time, threaded=True, request_handler=MotoRequestHandler
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"http://{host}:{server.server_port}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
