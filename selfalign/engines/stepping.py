"""One thread that owns a vLLM engine: it adds requests, steps, and hands each output to its stream.

vLLM's LLMEngine belongs to one thread. While that thread steps, whoever reads a stream is free to
tokenise, parse or write, so the engine waits for none of this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

# vLLM's name of a request; its last RequestOutput, Refused, or what ended the engine.
Finished = tuple[str, Any]
Read = Callable[[Any], bool]  # reads a RequestOutput; True when it needs no more of them


class Refused(Exception):
    """vLLM does not take this request; it takes others."""


class Stepping:
    """Builds an engine in a thread of its own, and steps it while any stream has requests in it.

    When a step raises, every open stream raises the same error, and so does each later one.

    Args:
        build: makes the vllm.LLMEngine; what it raises, this raises.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self._names = count()  # of requests, never used twice
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._streams: dict[str, tuple[Stream, Read]] = {}  # by request: whom its output goes to
        self._failure: Exception | None = None
        self._submitting = threading.Lock()  # guards `_closed`: no request comes after `_close`
        self._closed = False
        self._closing = False
        built: Future[Any] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(build, built), name="vllm-stepping", daemon=True
        )
        self._thread.start()
        self.engine = built.result()

    @contextmanager
    def stream(self) -> Iterator[Stream]:
        """A stream of requests; those that are still in the engine at the end are aborted."""
        stream = Stream(self)
        try:
            yield stream
        finally:
            self._commands.put(lambda: self._abort(stream))

    def close(self) -> None:
        """End the thread and the engine. Streams that are still read, or asked, get an error."""
        with self._submitting:
            self._closed = True
            self._commands.put(self._close)
        self._thread.join()
        self.engine.engine_core.shutdown()
        del self.engine

    def submit(self, stream: Stream, tokens: list[int], parameters: Any, read: Read) -> str:
        """Queue a request; the stream gets its last output under the name that this returns."""
        name = str(next(self._names))
        with self._submitting:
            if self._closed:
                stream.put(name, _closed())
            else:
                self._commands.put(lambda: self._add(stream, name, tokens, parameters, read))
        return name

    def _run(self, build: Callable[[], Any], built: Future[Any]) -> None:
        try:
            built.set_result(build())
        except BaseException as error:  # noqa: BLE001 -- the constructor raises it
            built.set_exception(error)
            return
        del built
        while not self._closing:
            try:
                self._obey()
                if self._streams:
                    self._hand_out(self.engine.step())
            except Exception as error:  # noqa: BLE001 -- each stream raises it in its own thread
                self._fail(error)

    def _hand_out(self, outputs: list[Any]) -> None:
        stopped = []
        for output in outputs:
            name = output.request_id
            stream, read = self._streams[name]
            enough = read(output)
            if output.finished or enough:
                del self._streams[name]
                stream.put(name, output)
                if not output.finished:
                    stopped.append(name)
        if stopped:
            self.engine.abort_request(stopped)

    def _obey(self) -> None:
        """Do what was asked meanwhile; wait for something when the engine has nothing to do."""
        if not self._streams:
            self._commands.get()()
        while True:
            try:
                command = self._commands.get_nowait()
            except Empty:
                return
            command()

    def _add(
        self, stream: Stream, name: str, tokens: list[int], parameters: Any, read: Read
    ) -> None:
        if self._failure is not None:
            stream.put(name, self._failure)
            return
        self._streams[name] = (stream, read)  # first, so that an engine that died ends it too
        try:
            prompt = {"type": "token", "prompt_token_ids": tokens}
            self.engine.add_request(name, prompt, parameters)
        except ValueError as error:
            del self._streams[name]
            stream.put(name, Refused(str(error)))

    def _abort(self, stream: Stream) -> None:
        names = [name for name, (owner, _) in self._streams.items() if owner is stream]
        for name in names:
            del self._streams[name]
        if names and self._failure is None:
            self.engine.abort_request(names)

    def _close(self) -> None:
        self._fail(_closed())
        self._closing = True

    def _fail(self, error: Exception) -> None:
        self._failure = error
        while self._streams:
            name, (stream, _) = self._streams.popitem()
            stream.put(name, error)


def _closed() -> RuntimeError:
    return RuntimeError("the engine was closed while it generated")


class Stream:
    """One reader's requests, and their outputs as they finish."""

    def __init__(self, stepping: Stepping) -> None:
        self._stepping = stepping
        self._outputs: SimpleQueue[Finished] = SimpleQueue()

    def submit(self, tokens: list[int], parameters: Any, read: Read) -> str:
        """Ask for a continuation of `tokens`; returns the name that its output will have.

        `read` sees each output as it comes, in the stepping thread: it must be quick.
        """
        return self._stepping.submit(self, tokens, parameters, read)

    def finished(self) -> Finished:
        """The last output of the next request that ends; waits for it. An error comes instead."""
        return self._outputs.get()

    def put(self, name: str, output: Any) -> None:
        """Hand over an output. Only the stepping thread calls this."""
        self._outputs.put((name, output))
