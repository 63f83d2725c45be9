"""The errors of decoding JSON whose source is not trusted."""

from __future__ import annotations

import msgspec

JSON_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Raised by msgspec.json.decode: for other types and broken JSON, for text that is no UTF-8, for deep nesting."""
