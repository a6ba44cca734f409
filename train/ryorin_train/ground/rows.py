"""
One answer as a row of a kind: its passages as the gateway would put them, its citations where they stand.

right: what retrieval finds; the right passage is put in at random where it was missed. wrong: what retrieval finds when
the right document, its copies and whatever else tells the same are not in the stores; the answer is the refusal. none:
nothing was found; the refusal again. An answer that refuses by itself, or that needs no documents, stays what it is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ryorin.catalog import Catalog
from ryorin.digests import digest_of
from ryorin.prompt import PromptPassage
from ryorin.window import assemble
from ryorin_index.retrieve import query_of, retrieve
from ryorin_index.search import Hit, Searcher
from ryorin_train.ground.citations import placed, renumbered
from ryorin_train.ground.claims import Turn, markers_in
from ryorin_train.ground.regime import Refusals, Regime
from ryorin_train.ground.shares import Kind
from ryorin_train.ground.stored import Right, passages_of_documents
from ryorin_train.lint.turns import Said

Cited = Literal["cited", "placed", "uncited"]
ROUNDS = 20  # of searches for wrong passages, each without what the one before found to tell the same


class Unusable(ValueError):
    """An answer cannot be made a row; the message says why."""


@dataclass(frozen=True)
class Made:
    """
    A row's passages and answer.

    put_in: right passages that retrieval missed. cited: whether the answer cites, or was given its citation.
    """

    passages: tuple[PromptPassage, ...]
    answer: str
    put_in: int = 0
    cited: Cited | None = None


class Grounder:
    """Makes rows for one regime. fields: where the tenant's JSON answers have their citation."""

    def __init__(
        self,
        catalog: Catalog,
        searcher: Searcher,
        regime: Regime,
        refusals: Refusals,
        fields: Sequence[str],
        seed: int,
    ) -> None:
        self._catalog = catalog
        self._searcher = searcher
        self._regime = regime
        self._refusals = refusals
        self._fields = fields
        self._seed = seed

    def refuses(self, turn: Turn) -> bool:
        """Whether an answer refuses by itself."""
        return turn.answer in self._refusals.texts.values() or Said(turn.answer).refuses

    def as_found(self, turn: Turn, kind: Kind) -> Made:
        """An answer that rests on no passage, with what retrieval finds. Raises Unusable when it cites one."""
        if markers_in(turn.answer):
            raise Unusable("it cites a passage, and refuses or needs no documents; take one of the two out")
        hits = [] if kind == "none" else self._find(turn)
        hits = self._arranged(hits[: self._fitting(turn, hits)], turn)
        return Made(self._passages(hits), turn.answer)

    def right(self, turn: Turn, rights: Sequence[Right]) -> Made:
        """With the passages it needs. Raises Unusable when they cannot be had."""
        hits, missed = self._find(turn), 0
        rights = self._settled(turn, rights, hits)
        if len(rights) > self._regime.retrieval.top_k:
            raise Unusable(
                f"it needs {len(rights)} passages, the prompts hold {self._regime.retrieval.top_k}; name a release of "
                "a larger top k"
            )
        draw = random.Random(digest_of([self._seed, "place", turn.content]))
        for right in rights:
            if _position(hits, right) is None:
                hits.insert(draw.randint(0, len(hits)), self._best(turn, right))
                missed += 1
        hits = self._trimmed(hits, rights)
        fitting = self._fitting(turn, hits)
        cut = sorted({at for right in rights if (at := _position(hits, right)) is not None and at >= fitting})
        if cut:  # the window is too short for all that was found
            missed += len(cut)
            hits, fitting = self._squeezed(turn, hits, cut, fitting, draw)
        hits = self._arranged(hits[:fitting], turn)
        positions = [_position(hits, right) for right in rights]
        numbers = [at + 1 for at in positions if at is not None]
        if len(numbers) < len(positions):
            raise Unusable("its right passage does not fit into the window beside the conversation")
        return self._cited(turn, rights, numbers, Made(self._passages(hits), turn.answer, min(missed, len(rights))))

    def wrong(self, turn: Turn, rights: Sequence[Right]) -> Made:
        """With passages that do not answer it, and the refusal."""
        rights = self._settled(turn, rights)
        documents = {document for right in rights for document in right.documents}
        with self._catalog.session() as session:
            without = passages_of_documents(session, self._regime.tenant_id, documents)
        without.update(number for right in rights for number in right.ids)
        hits: list[Hit] = []
        for _ in range(ROUNDS):
            hits = self._find(turn, without)
            telling = {hit.passage_id for hit in hits if any(right.said_by(hit) for right in rights)}
            if not telling:
                break
            without |= telling
        hits = [hit for hit in hits if hit.passage_id not in without]
        hits = self._arranged(hits[: self._fitting(turn, hits)], turn)
        return Made(self._passages(hits), self._refusal(turn))

    def none(self, turn: Turn) -> Made:
        """With nothing found, and the refusal. Raises Unusable when the conversation alone is too long."""
        self._fitting(turn, [])
        return Made((), self._refusal(turn))

    def _find(self, turn: Turn, without: set[int] | frozenset[int] = frozenset()) -> list[Hit]:
        regime = self._regime
        found = retrieve(
            self._catalog,
            self._searcher,
            regime.tenant_id,
            regime.store_ids,
            query_of(turn.history),
            regime.retrieval,
            without=without,
        )
        return list(found or [])

    def _settled(self, turn: Turn, rights: Sequence[Right], hits: Sequence[Hit] | None = None) -> list[Right]:
        """
        The rights, each in one document. Where the row names none, several may state what the answer quotes, and a few
        words may stand anywhere: then it is the one that is found for the question. Raises Unusable when none or
        several of them are.
        """
        settled = []
        for right in rights:
            if not right.by_source and (_documents_apart(right) > 1 or not right.claim.telling):
                hits = self._find(turn) if hits is None else hits
                found = {hit.document_id for hit in hits if right.held_by(hit)} & set(right.documents)
                alone = next((document for document in sorted(found) if _all_say(right, document, found)), None)
                if alone is None:
                    raise Unusable(_doubt(right, len(found)))
                right = right.of_document(alone)
            settled.append(right)
        return settled

    def _best(self, turn: Turn, right: Right) -> Hit:
        """The passage that answers the question best of those that are right, as retrieval would show it."""
        regime = self._regime
        how = replace(regime.retrieval, top_k=1, mode="hybrid", score_floor=None, mmr=None, reranker=None)
        ids = [passage.id for passage in right.passages]
        query = query_of(turn.history)
        found = (
            self._searcher.search(regime.tenant_id, regime.store_ids, query, retrieval=how, only=ids) if query else []
        )
        if not found:
            raise Unusable("the release's filter leaves out the documents that hold its right passage")
        return found[0]

    def _trimmed(self, hits: Sequence[Hit], rights: Sequence[Right]) -> list[Hit]:
        """As many as a prompt holds, the last that are not needed left out."""
        kept = list(hits)
        needed = {_position(kept, right) for right in rights}
        for at in range(len(kept) - 1, -1, -1):
            if len(kept) <= self._regime.retrieval.top_k:
                break
            if at not in needed:
                del kept[at]
        return kept

    def _squeezed(
        self, turn: Turn, hits: Sequence[Hit], needed: Sequence[int], fitting: int, draw: random.Random
    ) -> tuple[list[Hit], int]:
        """Those that are needed among as many of the others as the window holds with them, and how many it holds."""
        others = [hit for at, hit in enumerate(hits) if at not in needed]
        for count in range(max(0, fitting - len(needed)), -1, -1):
            kept = others[:count]
            for at in needed:
                kept.insert(draw.randint(0, len(kept)), hits[at])
            fitting = self._fitting(turn, kept)
            if fitting == len(kept):
                break
        return kept, fitting

    def _fitting(self, turn: Turn, hits: Sequence[Hit]) -> int:
        """How many of the hits the window holds."""
        regime = self._regime
        passages = [hit.prompt_passage for hit in hits]
        made = assemble(regime.prompt, turn.history, passages, regime.count_tokens, regime.window)
        return len(made.passages or ())

    def _arranged(self, hits: list[Hit], turn: Turn) -> list[Hit]:
        """In an order that serving may give them: any, where the release orders them for the engine's cache."""
        if self._regime.retrieval.order == "shared":
            random.Random(digest_of([self._seed, "order", turn.content])).shuffle(hits)
        return hits

    def _cited(self, turn: Turn, rights: Sequence[Right], numbers: Sequence[int], made: Made) -> Made:
        cited = {right.claim.marker: number for right, number in zip(rights, numbers, strict=True)}
        if None not in cited:
            moved = {marker: number for marker, number in cited.items() if marker is not None}
            return replace(made, answer=renumbered(turn.answer, moved), cited="cited")
        answer = placed(turn.answer, self._fields, numbers[0])
        return replace(made, answer=answer or turn.answer, cited="placed" if answer else "uncited")

    def _refusal(self, turn: Turn) -> str:
        return self._refusals.of(query_of(turn.history))

    @staticmethod
    def _passages(hits: Sequence[Hit]) -> tuple[PromptPassage, ...]:
        return tuple(hit.prompt_passage for hit in hits)


def _position(hits: Sequence[Hit], right: Right) -> int | None:
    return next((at for at, hit in enumerate(hits) if right.held_by(hit)), None)


def _documents_apart(right: Right) -> int:
    """In how many documents its passages stand, those that say the same counted once."""
    first: dict[str, str] = {}
    keys = [(passage.fold_key or str(passage.id), passage.document_id) for passage in right.passages]
    return len({first.setdefault(key, document) for key, document in keys})


def _all_say(right: Right, document: str, found: set[str]) -> bool:
    """Whether all that were found say what stands in this document."""
    return found <= {document, *(copy.document_id for copy in right.of_document(document).copies)}


def _doubt(right: Right, found: int) -> str:
    """Why it cannot be told which passage an answer rests on."""
    names = sorted(set(right.documents.values()))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    quoted = right.claim.facts[0][0]
    which = f"{found} of these were" if len(names) > 1 else "it was not"
    return f"{quoted!r} stands in {shown}; {which} found for the question; give the row its source"
