"""What a finding is about."""

from __future__ import annotations

NODE = "node"


"""The component of a finding that concerns no single GPU."""
