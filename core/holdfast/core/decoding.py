"""What msgspec raises for bytes that it can't make sense of: for some of them no `DecodeError`."""

from __future__ import annotations

import msgspec

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Catch all three wherever bytes from outside are decoded: broken UTF-8 and very deep nesting come as these two."""
