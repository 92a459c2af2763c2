"""What a gateway begins at replicas, as its frames on the wire say."""

from __future__ import annotations

from holdfast.actors.engines.mock import prompt_text
from holdfast.core.frames import Attach, FrameBuffer, Start, decode_from_gateway
from holdfast.simulations.history import History
from holdfast.simulations.world.process import SimProcess


class SentStarts:
    """Notes each stream that a gateway's process begins at a replica, or takes over there."""

    def __init__(self, process: SimProcess, history: History) -> None:
        self._process = process
        self._history = history

    def sent(self, data: bytes) -> None:
        """The process wrote this to one of its connections: whole frames."""
        now_s, pid = self._process.world.now_s, self._process.pid
        for body in FrameBuffer().feed(data):
            frame = decode_from_gateway(body)
            if isinstance(frame, Start):
                self._history.stream_begun(now_s, pid, frame.timeout_s, prompt=prompt_text(frame.request))
            elif isinstance(frame, Attach):
                self._history.stream_begun(now_s, pid, frame.timeout_s, response_id=frame.stream.partition("/")[0])
