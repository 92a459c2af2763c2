"""Tells a person how far `holdfast up` is: with a spinner on a terminal, in plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status


class _Console(Console):
    """Falls silent when whoever read our output is gone: a cluster doesn't end for that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ConsoleProgress:
    """As `Progress`. Use as a context manager."""

    def __init__(self) -> None:
        self._console = _Console(highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._started_s = time.monotonic()
        self._waiting = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quiet()

    def done(self, text: str) -> None:
        """As `Progress.done`."""
        self._console.print(f"[green]✓[/] {escape(text)}  [dim]{time.monotonic() - self._started_s:.1f} s[/]")

    def waiting(self, text: str) -> None:
        """As `Progress.waiting`."""
        if text == self._waiting:
            return
        self._waiting = text
        if self._status is not None:
            self._status.update(f"waiting for {escape(text)}")
        else:
            self._console.print(f"  waiting for {escape(text)}")

    def note(self, text: str) -> None:
        """As `Progress.note`."""
        self._console.print(f"[yellow]![/] {escape(text)}")

    def ready(self, urls: list[str], models: list[str], *, needs_key: bool) -> None:
        """It serves: how to use it. `needs_key` when the gateways ask for an API key."""
        self._quiet()
        say = self._console.print
        say(f"\n[bold]Holdfast serves on {escape(', '.join(urls))}[/]")
        say(f"model: {escape(', '.join(models) or 'none')}")
        if models:
            say(f"\n{escape(curl_line(urls[0], models[0], needs_key=needs_key))}\n")
        say("holdfast status shows the cluster; Ctrl-C stops it.")

    def _quiet(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def curl_line(url: str, model: str, *, needs_key: bool = False) -> str:
    """A command to paste that streams a chat; an API key is taken from the shell's $KEY."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "Tell me about the sea."}],
    }
    key = ' -H "Authorization: Bearer $KEY"' if needs_key else ""
    return f"curl -N {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
