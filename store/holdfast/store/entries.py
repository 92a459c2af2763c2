"""What every log, real or in memory, checks before it appends."""

from __future__ import annotations

import re

from holdfast.core.errors import Misuse

SUBJECT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
MESSAGE_ID = re.compile(r"[!-~]{1,256}")
SUBJECT_LENGTH_MAX = 256


def check_append(subject: str, data: bytes, message_id: str, bytes_max: int) -> None:
    """Raises `Misuse` for what no server would take, or would take and change."""
    check_subject(subject)
    if not MESSAGE_ID.fullmatch(message_id):
        raise Misuse(f"{message_id!r} is no message id: use 1 to 256 visible ASCII characters")
    if len(data) > bytes_max:
        raise Misuse(f"{subject}: the message has {len(data)} bytes, more than max_message_bytes allows ({bytes_max})")


def check_subject(subject: str) -> None:
    """Raises `Misuse` unless the subject is made of dotted words of letters, digits, `_` and `-`."""
    if len(subject) > SUBJECT_LENGTH_MAX or not SUBJECT.fullmatch(subject):
        raise Misuse(f"{subject!r} is no subject: use dotted words of letters, digits, _ and -")
