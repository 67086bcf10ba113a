"""Auditable, aggregate-only adaptation of language models across privacy boundaries."""

from __future__ import annotations

__version__ = "0.1.0"
