"""How a tenant is served, as its rows are to be grounded, and what it answers where the passages do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryorin.errors import InvalidInput
from ryorin.prompt import MARKER, Message, Prompt
from ryorin.release import Retrieval
from ryorin.window import Window
from ryorin_train.data import Example, trimmed
from ryorin_train.judging.cases import LANGUAGES, language_of
from ryorin_train.lint.shapes import breaks_schema
from ryorin_train.lint.turns import turns_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin.catalog.tables import Release, Tenant, VectorStore


@dataclass(frozen=True)
class Refusals:
    """What is answered when the passages do not answer, by language; the first where there is none of a question's."""

    texts: Mapping[str, str]

    def of(self, question: str) -> str:
        """The refusal in the question's language."""
        language = language_of(question)
        return self.texts.get(language) or next(iter(self.texts.values()))


def refusals_of(texts: Sequence[str], prompt: Prompt) -> Refusals:
    """
    The refusals that were given, each for every language or, as 'en=…' or 'ja=…', for one.

    Raises InvalidInput for one that is empty, cites a passage or breaks the prompt's answer schema, and for two of one
    language.
    """
    found: dict[str, str] = {}
    for given in texts:
        language, mark, text = given.partition("=")
        if not mark or language not in LANGUAGES:
            language, text = "", given
        text = trimmed(text)
        if not text:
            raise InvalidInput("a refusal is empty; write what is answered when the documents do not", param="refusal")
        if language in found:
            raise InvalidInput(f"two refusals are for {language or 'every language'}; give one", param="refusal")
        if MARKER.search(text):
            raise InvalidInput(f"the refusal cites a passage: {text!r}; it must cite none", param="refusal")
        _check_schema(text, prompt)
        found[language] = text
    return Refusals(found)


def _check_schema(refusal: str, prompt: Prompt) -> None:
    if prompt.answer_schema is None:
        return
    messages = (Message(role="user", content="?"), Message(role="assistant", content=refusal))
    turns = turns_of([Example(1, messages, (False, True), None)])
    for finding in breaks_schema(turns, prompt.answer_schema):
        raise InvalidInput(f"the refusal breaks the tenant's answer schema: {finding.message}", param="refusal")


@dataclass(frozen=True)
class Regime:
    """
    How the tenant is served: its stores that are live, its retrieval, its prompt, the window of a request.

    count_tokens: tokens of rendered messages, by the base model. release: whose retrieval it is, by its version; None
    for the defaults of `ryorin release create`.
    """

    tenant_id: str
    store_ids: tuple[str, ...]
    retrieval: Retrieval
    prompt: Prompt
    window: Window
    count_tokens: Callable[[list[Message]], int]
    release: int | None = None


def served(
    session: Session, tenant: Tenant, version: int | None, store_names: Sequence[str]
) -> tuple[Release | None, list[VectorStore], Retrieval]:
    """
    The release that is served, its stores and its retrieval.

    version: of the release; None for the live one and, where there is none, for what `ryorin release create` would
    make: all of the tenant's stores and the default retrieval. store_names: in place of the release's stores.
    Raises NotFound for a release or a store the tenant does not have, InvalidInput where nothing is retrieved or a
    store is empty.
    """
    from sqlalchemy import select

    from ryorin.catalog.tables import Release as ReleaseRow
    from ryorin.catalog.tables import VectorStore as StoreRow
    from ryorin.release import get_release
    from ryorin_index.store import get_store, list_stores, store_counts

    if version is not None:
        release: Release | None = get_release(session, tenant, version)
    else:
        release = session.get(ReleaseRow, tenant.live_release_id) if tenant.live_release_id else None
    stores = [get_store(session, tenant, name) for name in dict.fromkeys(store_names)]
    if not stores and release is not None:
        mine = select(StoreRow).where(StoreRow.tenant_id == tenant.id, StoreRow.id.in_(release.store_ids))
        known = {store.id: store for store in session.scalars(mine)}
        stores = [known[store_id] for store_id in release.store_ids if store_id in known]
    elif not stores:
        stores = list(list_stores(session, tenant))
    retrieval = Retrieval() if release is None else Retrieval.stored(release.retrieval)
    if not retrieval.enabled or not stores:
        what = f"release {release.version} of tenant {tenant.name!r}" if release else f"tenant {tenant.name!r}"
        why = "has no vector store" if not stores else "retrieves nothing (top_k is 0)"
        raise InvalidInput(
            f"{what} {why}, so its prompts hold no passages; train on the rows as they are, or name another release "
            "with --release",
            param="store",
        )
    if not any(store_counts(session, store)["passages"] for store in stores):
        names = ", ".join(store.name for store in stores)
        raise InvalidInput(
            f"no passage is in {names}; put documents into it with 'ryorin index add' first", param="store"
        )
    return release, stores, retrieval
