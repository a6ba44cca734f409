"""
What a sync would do, found without changing anything.

Two gates. What has the fingerprint it was indexed with is not read. Of the rest, the content decides: a file that is
new here and has the bytes of one that is gone was renamed, and `ryorin_index.sync` finds bytes that did not change.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from sqlalchemy import select

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Source, VectorStore
from ryorin.digests import digest_of, sha256_bytes
from ryorin.errors import InvalidInput, Unavailable
from ryorin_index.chunking import cut_otherwise
from ryorin_index.members import WITHIN
from ryorin_index.parse import MEDIA_TYPES
from ryorin_index.sources.connector import Connector, Item
from ryorin_index.vectors import LOOKUP_BATCH

MANY_LOST = 10
LOST_SHARE = 0.5


class Known(NamedTuple):
    """What the store has of a document."""

    id: str
    source: str
    fingerprint: str
    status: str
    source_id: str | None
    filename: str


@dataclass(frozen=True)
class Feed:
    """
    A source in a run, with its connector; id is None for files that were named one by one.

    mark: follows every fingerprint and changes with what the source says of its documents and with how the store cuts
    them, so that they follow. cut: the latter, of `chunking.cut_mark`.
    """

    connector: Connector
    name: str
    id: str | None = None
    attributes: dict[str, Any] | None = None
    cut: str = ""

    @property
    def mark(self) -> str:
        """Digest of the attributes, and the cut."""
        return f"~{digest_of(self.attributes)[:8] if self.attributes else ''}{self.cut}"


class Work(NamedTuple):
    """An item to be read. known: the documents the store has of it; several of an archive."""

    feed: Feed
    item: Item
    known: tuple[Known, ...]

    @property
    def cut_otherwise(self) -> bool:
        """Whether something of it was cut in another way than the store now cuts."""
        return any(cut_otherwise(row.fingerprint, self.feed.mark) for row in self.known)


class Rename(NamedTuple):
    """A document whose bytes lie under another name now."""

    known: Known
    work: Work
    fingerprint: str


@dataclass
class Plan:
    """
    What a sync will do. skipped: how many of each unsupported suffix; errors: (source, reason) for sources that could
    not be listed, of which nothing is deleted; held: (feed, documents it lost, documents it had); notes: (source, what
    its connector has to say).
    """

    work: list[Work] = field(default_factory=list)
    renamed: list[Rename] = field(default_factory=list)
    gone: list[tuple[Feed, Known]] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[str, str]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    held: list[tuple[Feed, int, int]] = field(default_factory=list)
    listed: list[Feed] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def make_plan(catalog: Catalog, store: VectorStore, feeds: Sequence[Feed], *, empty_is_fine: bool = False) -> Plan:
    """
    Compare sources with the store; reads no content but that of files that may have been renamed.

    empty_is_fine: a source that holds nothing at all any more is believed; by default it is an error, for that is how
    a disk that is not mounted looks.
    """
    plan = Plan()
    known, owners = _known(catalog, store, None)
    members: dict[str, list[Known]] = defaultdict(list)
    owned = Counter(row.source_id for row in known.values())
    for source in filter(_is_member, known):
        members[source.partition(WITHIN)[0]].append(known[source])
    for feed in feeds:
        try:
            seen, nothing = _list_feed(feed, plan, known, members, owners)
            if nothing and owned[feed.id] and not empty_is_fine:
                raise InvalidInput(
                    f"holds nothing at all, the store has {owned[feed.id]} documents of it; nothing is deleted. "
                    "If that is meant, run it again with --allow-deletions"
                )
        except (InvalidInput, OSError, Unavailable) as error:
            plan.errors.append((feed.name, str(error)))
            plan.work = [work for work in plan.work if work.feed is not feed]
            continue
        plan.listed.append(feed)
        plan.notes += [(feed.name, note) for note in feed.connector.notes]
        if feed.id is not None:
            plan.gone += [
                (feed, row)
                for source, row in known.items()
                if source not in seen
                and row.source_id == feed.id
                and source.partition(WITHIN)[0] not in seen
                and feed.connector.is_gone(source.partition(WITHIN)[0])
            ]
    _find_renames(catalog, plan)
    lost = Counter(feed.id for feed, _ in plan.gone)
    for feed in plan.listed:
        count, total = lost[feed.id], owned[feed.id]
        if count >= MANY_LOST and count > LOST_SHARE * total:
            plan.held.append((feed, count, total))
    return plan


def plan_files(catalog: Catalog, store: VectorStore, feed: Feed) -> Plan:
    """The plan for files that were named one by one: nothing is deleted or renamed."""
    plan = Plan(listed=[feed])
    items = list(feed.connector.items())
    known, owners = _known(catalog, store, [item.source for item in items if is_text(item.source)])
    for item in items:
        _sort(plan, Work(feed, item, (known[item.source],) if item.source in known else ()), owners)
    return plan


def _is_member(source: str) -> bool:
    return WITHIN in source


def _known(
    catalog: Catalog, store: VectorStore, sources: Sequence[str] | None
) -> tuple[dict[str, Known], frozenset[str]]:
    """The store's documents by source, all or the named ones; and the ids of its sources."""
    columns = (
        Document.id,
        Document.source,
        Document.fingerprint,
        Document.status,
        Document.source_id,
        Document.filename,
    )
    query = select(*columns).where(Document.store_id == store.id)
    with catalog.session() as session:
        owners = frozenset(session.scalars(select(Source.id).where(Source.store_id == store.id)))
        if sources is None:
            return {row[1]: row for row in map(Known._make, session.execute(query))}, owners
        known: dict[str, Known] = {}
        for at in range(0, len(sources), LOOKUP_BATCH):
            rows = session.execute(query.where(Document.source.in_(sources[at : at + LOOKUP_BATCH])))
            known.update((row[1], Known(*row)) for row in rows)
        return known, owners


def _list_feed(
    feed: Feed,
    plan: Plan,
    known: Mapping[str, Known],
    members: Mapping[str, list[Known]],
    owners: frozenset[str],
) -> tuple[set[str], bool]:
    """Sort a source's items into the plan; returns the names seen and whether there was nothing at all."""
    mark = feed.mark
    seen: set[str] = set()
    nothing = True
    suffixes: dict[str, bool] = {}
    unchanged: list[str] = []
    for item in feed.connector.items():
        nothing = False
        source = item.source
        row = known.get(source)
        if (
            row is not None
            and row.fingerprint == item.fingerprint + mark
            and row.status == "completed"
            and row.source_id == feed.id
            and source not in members
        ):
            seen.add(source)
            unchanged.append(item.filename)
            continue
        dot = item.filename.rfind(".")
        suffix = item.filename[dot:].lower() if dot > 0 else ""
        if suffix not in suffixes:
            suffixes[suffix] = suffix in MEDIA_TYPES
        if not suffixes[suffix]:
            plan.skipped[suffix] += 1
            continue
        seen.add(source)
        rows = (*((row,) if row is not None else ()), *members.get(source, ()))
        _sort(plan, Work(feed, item, rows), owners)
    plan.unchanged += unchanged
    return seen, nothing


def _sort(plan: Plan, work: Work, owners: frozenset[str]) -> None:
    """Into what is to be read, what did not change, or what cannot be kept."""
    feed, item = work.feed, work.item
    if not is_text(item.source):
        plan.failed.append((item.source, f"{item.filename} has a name that is not UTF-8; rename it"))
        return
    wanted = item.fingerprint + feed.mark
    others = {row.source_id for row in work.known} - {feed.id, None}
    if feed.id is not None and others & owners:
        plan.unchanged.append(item.filename)  # another source of the store has it and sees to it
        return
    if (
        item.fingerprint
        and work.known
        and all(row.fingerprint == wanted and row.status == "completed" for row in work.known)
        and (feed.id is None or all(row.source_id == feed.id for row in work.known))
    ):
        plan.unchanged.append(item.filename)
        return
    plan.work.append(work)


def _find_renames(catalog: Catalog, plan: Plan) -> None:
    """Pair files that are new with documents of the same bytes that are gone, also between sources."""
    lost = {row.id: (feed, row) for feed, row in plan.gone if WITHIN not in row.source}
    if not lost or not any(not work.known for work in plan.work):
        return
    by_fingerprint: dict[str, list[Known]] = defaultdict(list)
    sizes = set()
    for _, row in lost.values():
        by_fingerprint[row.fingerprint.partition("~")[0]].append(row)
        sizes.add(row.fingerprint.partition(":")[0])
    digests = _digests(catalog, list(lost))
    by_digest: dict[str, list[Known]] = defaultdict(list)
    for _, row in lost.values():
        by_digest[digests.get(row.id, "")].append(row)
    left = []
    for work in plan.work:
        match, seen = None, work.item.fingerprint
        if not work.known:
            item, connector = work.item, work.feed.connector
            if connector.named_by_content and by_fingerprint.get(item.fingerprint):
                match = _same_format(item, by_fingerprint[item.fingerprint], lost)
            elif item.size < 0 or str(item.size) in sizes:
                try:
                    content = connector.read(item)
                except (InvalidInput, OSError, Unavailable):
                    pass  # told when it is read to be indexed
                else:
                    match, seen = (
                        _same_format(item, by_digest.get(sha256_bytes(content.data), []), lost),
                        content.fingerprint,
                    )
        if match is None:
            left.append(work)
        else:
            del lost[match.id]
            plan.renamed.append(Rename(match, work, seen))
            again = work._replace(known=(match,))
            if again.cut_otherwise:
                left.append(again)
    renamed = {rename.known.id for rename in plan.renamed}
    plan.work = left
    plan.gone = [(feed, row) for feed, row in plan.gone if row.id not in renamed]


def _same_format(item: Item, rows: Iterable[Known], lost: Mapping[str, Any]) -> Known | None:
    """The first of the lost documents whose suffix is the item's: another suffix would be read in another way."""
    suffix = PurePosixPath(item.filename).suffix.lower()
    for row in rows:
        if row.id in lost and PurePosixPath(row.filename).suffix.lower() == suffix:
            return row
    return None


def _digests(catalog: Catalog, ids: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    with catalog.session() as session:
        for at in range(0, len(ids), LOOKUP_BATCH):
            rows = session.execute(
                select(Document.id, Document.sha256).where(Document.id.in_(ids[at : at + LOOKUP_BATCH]))
            )
            found.update((row[0], row[1]) for row in rows)
    return found


def is_text(name: str) -> bool:
    """Whether a name can be kept: Python holds the bytes of one that is not UTF-8 as halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
