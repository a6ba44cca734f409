"""
What an API key may do: its scopes.

    chat        ask: chat completions, responses, embeddings, models, the passages that answers cite
    knowledge   files and vector stores
    train       files and fine-tuning jobs; see releases
    admin       releases, keys, limits and the audit log of the tenant
"""

from __future__ import annotations

from collections.abc import Iterable

from ryorin.errors import InvalidInput

CHAT, KNOWLEDGE, TRAIN, ADMIN = "chat", "knowledge", "train", "admin"
SCOPES = (CHAT, KNOWLEDGE, TRAIN, ADMIN)
DEFAULT_SCOPES = (CHAT,)


def scopes_of(names: Iterable[str]) -> tuple[str, ...]:
    """Scopes by their names, each once and in their order. Raises InvalidInput for an unknown one, and for none."""
    given = list(names)
    for name in given:
        if name not in SCOPES:
            raise InvalidInput(f"scope is {name!r}; use {', '.join(SCOPES)}", param="scopes")
    if not given:
        raise InvalidInput(f"a key without a scope may do nothing; use {', '.join(SCOPES)}", param="scopes")
    return tuple(scope for scope in SCOPES if scope in given)
