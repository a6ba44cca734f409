"""What serve and train both know of training."""

from __future__ import annotations

GENERAL_TEXTS = 640
"""How many general texts there are that an adapter can be held on (`keep_general`)."""
