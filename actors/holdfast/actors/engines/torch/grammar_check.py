"""A child process in which grammars are compiled on trial, before the engine's own process does.

A schema of forty bytes can take minutes and gigabytes to compile (`multipleOf` is enough), or run into a fault
of the library's, and a thread can't be stopped. A process can: it gives itself so much processor time for each
grammar, and so much memory, and is simply gone when that is used up. It ends with the process that started it.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any, Final

MEMORY_BYTES_MAX: Final = 512 * 1024 * 1024
WALL_FACTOR: Final = 6
"""A check may take this much longer by the clock than it may compute: the machine has other work too."""

TOO_MUCH: Final = "it takes too long, or too much memory, to compile"


class GrammarChecker:
    """Runs the child, and a new one after one that is gone. For one thread at a time."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def check(self, grammar: str, processor_s: float) -> str | None:
        """What is wrong with the grammar, or None."""
        child = self._running()
        stdin, stdout = child.stdin, child.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps([grammar, processor_s]).encode() + b"\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer.endswith(b"\n"):
            self.close()
            return TOO_MUCH
        error: str | None = json.loads(answer)
        return error

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            command = [sys.executable, "-m", __name__]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self._child


def main() -> None:
    """Read a grammar and its time from each line, and answer with a line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import llguidance

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))
    _serve(sys.stdin.buffer, sys.stdout.buffer, lambda grammar: _error(llguidance, tokenizer, grammar))


def _serve(lines: IO[bytes], answers: IO[bytes], error_of: Any) -> None:
    for line in lines:
        grammar, processor_s = json.loads(line)
        # Their signals' default is to end the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, processor_s)
        signal.setitimer(signal.ITIMER_REAL, WALL_FACTOR * processor_s)
        answer = json.dumps(error_of(grammar)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(answer + b"\n")
        answers.flush()


def _error(llguidance: Any, tokenizer: Any, grammar: str) -> str | None:
    limits = llguidance.LLParserLimits(verbose_errors=False)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    error: str = matcher.get_error()
    return error.split("\n<backtrace>")[0] or None


class _Bytes:
    """A token for each byte, which is all that compiling needs."""

    tokens = [bytes([byte]) for byte in range(256)] + [b"<end>"]
    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


if __name__ == "__main__":
    main()
