"""
What a sync would do, found without changing anything.

Two gates. What has the fingerprint it was indexed with is not read. Of the rest, the content decides: a file that is
new here and has the bytes of one that is gone was renamed, and `ryorin_index.sync` finds bytes that did not change.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from sqlalchemy import and_, not_, or_, select
from sqlalchemy.orm import Session

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, Source, VectorStore
from ryorin.digests import digest_of, sha256_bytes
from ryorin.errors import InvalidInput, Unavailable
from ryorin_index.chunking import cut_otherwise
from ryorin_index.members import WITHIN
from ryorin_index.parse import CONTAINERS, MEDIA_TYPES
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
    settled, others = _fingerprints(catalog, store, feeds)
    inside = set(filter(_is_member, chain(others, *settled.values())))
    holders = {name.partition(WITHIN)[0] for name in inside}
    owned = Counter(row.source_id for row in others.values())
    owned.update({feed_id: len(names) for feed_id, names in settled.items()})
    listings: list[tuple[Feed, _Listing]] = []
    for feed in feeds:
        try:
            listing = _list_items(feed, settled[feed.id], holders)
            if listing.nothing and owned[feed.id] and not empty_is_fine:
                raise InvalidInput(
                    f"holds nothing at all, the store has {owned[feed.id]} documents of it; nothing is deleted. "
                    "If that is meant, run it again with --allow-deletions"
                )
        except (InvalidInput, OSError, Unavailable) as error:
            plan.errors.append((feed.name, str(error)))
            continue
        plan.listed.append(feed)
        plan.notes += [(feed.name, note) for note in feed.connector.notes]
        plan.unchanged += listing.same
        plan.skipped += listing.skipped
        listings.append((feed, listing))
    _compare(catalog, store, plan, listings, settled, others, inside)
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
    with catalog.session() as session:
        owners = _owners(session, store)
        known = _known(session, store, [item.source for item in items if is_text(item.source)])
    for item in items:
        _sort(plan, Work(feed, item, (known[item.source],) if item.source in known else ()), owners)
    return plan


def _is_member(source: str) -> bool:
    return WITHIN in source


class _Listing(NamedTuple):
    """
    What a source holds now. seen: the names of it all; same: the file names of what did not change; other: what is to
    be compared; skipped: how many of each unsupported suffix; nothing: whether there was nothing at all.
    """

    seen: set[str]
    same: list[str]
    other: list[Item]
    skipped: Counter[str]
    nothing: bool


def _list_items(feed: Feed, settled: Mapping[str, str], holders: Collection[str]) -> _Listing:
    """
    Go through a source. In most runs nearly nothing changed: what costs a file a microsecond here costs them all one.

    settled: source → fingerprint of what need not be looked at while it has that. holders: files with documents in
    them, of which the fingerprints of all count.
    """
    mark = feed.mark
    seen: set[str] = set()
    same: list[str] = []
    other: list[Item] = []
    skipped: Counter[str] = Counter()
    nothing = True
    for item in feed.connector.items():
        nothing = False
        source, filename, fingerprint, _ = item
        if settled.get(source) == fingerprint + mark and source not in holders:
            seen.add(source)
            same.append(filename)
            continue
        dot = filename.rfind(".")
        suffix = filename[dot:].lower() if dot > 0 else ""
        if suffix in MEDIA_TYPES:
            seen.add(source)
            other.append(item)
        else:
            skipped[suffix] += 1
    return _Listing(seen, same, other, skipped, nothing)


def _compare(
    catalog: Catalog,
    store: VectorStore,
    plan: Plan,
    listings: Sequence[tuple[Feed, _Listing]],
    settled: Mapping[str | None, Mapping[str, str]],
    others: Mapping[str, Known],
    inside: Collection[str],
) -> None:
    """
    Sort into the plan what the sources hold and the store has not just so, and what only the store has.

    inside: what lies in archives, also of sources that could not be listed: whose it is must be known.
    """
    names = {item.source for _, listing in listings for item in listing.other if is_text(item.source)}
    for feed, listing in listings:
        names |= settled[feed.id].keys() - listing.seen
    names.update(inside)
    with catalog.session() as session:
        owners = _owners(session, store)
        known = {**others, **_known(session, store, list(names))}
    members: dict[str, list[Known]] = defaultdict(list)
    for source in filter(_is_member, known):
        members[source.partition(WITHIN)[0]].append(known[source])
    new: set[str] = set()
    for feed, listing in listings:
        for item in listing.other:
            row = known.get(item.source)
            if row is None and item.source not in members:
                if item.source in new:  # another source of the store has it too, and brings it
                    plan.unchanged.append(item.filename)
                    continue
                new.add(item.source)
            rows = (*((row,) if row is not None else ()), *members.get(item.source, ()))
            _sort(plan, Work(feed, item, rows), owners)
        plan.gone += [
            (feed, row)
            for source, row in known.items()
            if row.source_id == feed.id
            and source not in listing.seen
            and source.partition(WITHIN)[0] not in listing.seen
            and feed.connector.is_gone(source.partition(WITHIN)[0])
        ]


_KNOWN = (
    Document.id,
    Document.source,
    Document.fingerprint,
    Document.status,
    Document.source_id,
    Document.filename,
)


def _fingerprints(
    catalog: Catalog, store: VectorStore, feeds: Sequence[Feed]
) -> tuple[dict[str | None, dict[str, str]], dict[str, Known]]:
    """
    Of each feed, by its id, the documents that are as it last had them, source → fingerprint; and by source its others
    and those that lie in files, whoever brought them.

    Strings in dictionaries, because there may be very many: tuples would cost twice the time.
    """
    ids = [feed.id for feed in feeds]
    whole = and_(Document.source_id.in_(ids), Document.status == "completed", Document.fingerprint != "")
    columns = select(Document.source_id, Document.source, Document.fingerprint)
    settled: dict[str | None, dict[str, str]] = {feed.id: {} for feed in feeds}
    with catalog.session() as session:
        connection = session.connection()  # its rows cost less than those of a session
        for owner, source, fingerprint in connection.execute(columns.where(Document.store_id == store.id, whole)):
            settled[owner][source] = fingerprint
        theirs = or_(Document.source_id.in_(ids), Document.source.contains(WITHIN, autoescape=True))
        rest = or_(whole.is_(None), not_(whole))
        rows = session.execute(select(*_KNOWN).where(Document.store_id == store.id, theirs, rest))
        return settled, {row.source: Known(*row) for row in rows}


def _known(session: Session, store: VectorStore, sources: Sequence[str]) -> dict[str, Known]:
    """The documents that the store has of these sources."""
    known: dict[str, Known] = {}
    for at in range(0, len(sources), LOOKUP_BATCH):
        batch = sources[at : at + LOOKUP_BATCH]
        rows = session.execute(select(*_KNOWN).where(Document.store_id == store.id, Document.source.in_(batch)))
        known.update((row.source, Known(*row)) for row in rows)
    return known


def _owners(session: Session, store: VectorStore) -> frozenset[str]:
    """The ids of the store's sources."""
    return frozenset(session.scalars(select(Source.id).where(Source.store_id == store.id)))


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
    # A container is read anew: what lies in it has other names too.
    lost = {
        row.id: (feed, row)
        for feed, row in plan.gone
        if WITHIN not in row.source and PurePosixPath(row.filename).suffix.lower() not in CONTAINERS
    }
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
