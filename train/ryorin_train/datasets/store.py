"""
Datasets in the catalog: kept by digest, found by id or digest, with their lineage and their purpose.

A dataset never changes. What is mended or split gives a new one that names its parents; a purpose statement is written
beside it, and a later one does not overwrite the earlier.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryorin.blobs import check_blob, keep_blob, keeping
from ryorin.digests import SHORT, new_id
from ryorin.errors import InvalidInput, NotFound, RowError
from ryorin.purpose import Purpose
from ryorin_train.data import Row, dataset_bytes, raise_all
from ryorin_train.datasets.formats import CHAT, EMPTY, KEPT, KINDS, Loaded, Reading, load, load_bytes

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import Dataset, Tenant

ORIGINS = ("files", "people", "logs")
_REFERENCE = re.compile(r"ds_[0-9a-f]{24}|[0-9a-f]{6,64}")


@dataclass(frozen=True)
class Given:
    """
    Rows as a command was given them: a file, or a dataset that is kept already.

    name: the file's, or the dataset's. rows: all of them. lineage: where they come from. loaded: the file as it was
    read; None for a dataset. dataset_id: the dataset's; None for a file.
    """

    name: str
    rows: list[Row]
    lineage: dict[str, Any]
    loaded: Loaded | None = None
    dataset_id: str | None = None

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return kind_of(self.rows)


def kind_of(rows: Sequence[Row]) -> str:
    """One of KINDS. Raises InvalidInput when the rows are of several kinds."""
    kinds = {KINDS[type(row)] for row in rows}
    if len(kinds) > 1:
        raise InvalidInput(
            f"rows of the kinds {' and '.join(sorted(kinds))} cannot be one dataset; add them apart", param="data"
        )
    return kinds.pop() if kinds else CHAT


def lineage_of(
    loaded: Sequence[Loaded], origin: str = "files", note: str = "", parents: Sequence[str] = ()
) -> dict[str, Any]:
    """The lineage of rows that were read from files."""
    files = [
        {"name": each.name, "sha256": each.sha256, "format": each.format, "rows": len(each.rows)} for each in loaded
    ]
    return {"origin": origin, "files": files, "parents": list(parents), "note": note}


def made_from(catalog: Catalog, given: Given, origin: str) -> dict[str, Any]:
    """The lineage of rows that were made from those given: it names their dataset, or their files."""
    parents = []
    if given.dataset_id is not None:
        from ryorin.catalog.tables import Dataset

        with catalog.session() as session:
            parents = [session.get_one(Dataset, given.dataset_id).digest]
    files = [] if parents else given.lineage["files"]
    return {**given.lineage, "origin": origin, "parents": parents, "files": files, "note": ""}


def open_data(
    catalog: Catalog, tenant: Tenant, reference: str, reading: Reading | None = None, *, strict: bool = True
) -> Given:
    """
    The rows of a file or directory or, when there is none of that name, of the tenant's dataset by id or digest.

    strict: raise the errors of rows; otherwise they are in `loaded.errors`. Raises what `load` raises, NotFound.
    """
    path = Path(reference)
    if path.exists() or not _REFERENCE.fullmatch(reference):
        loaded = load(path, reading)
        if strict:
            raise_all(loaded.errors)
        return Given(loaded.name, loaded.rows, lineage_of([loaded]), loaded)
    if reading is not None and reading != Reading():
        raise InvalidInput("a kept dataset has one form; --format, --map and --encoding are for files", param="format")
    with catalog.session() as session:
        row = find_dataset(session, tenant, reference)
    return Given(row.filename, dataset_rows(catalog, row), row.lineage, dataset_id=row.id)


def given_bytes(name: str, content: bytes, reading: Reading | None = None) -> Given:
    """The rows of an uploaded file. Raises RowError when it has none or a line cannot be used."""
    loaded = load_bytes(name, content, reading)
    raise_all(loaded.errors)
    if not loaded.rows:
        raise RowError(name, 1, EMPTY)
    return Given(name, loaded.rows, lineage_of([loaded]), loaded)


def dataset_rows(catalog: Catalog, row: Dataset) -> list[Row]:
    """The rows of a kept dataset; a row's line is its place. Raises NotFound or InvalidInput for a bad blob."""
    path = check_blob(catalog.settings.blobs_dir, row.digest)
    loaded = load_bytes(row.filename, path.read_bytes(), Reading(format=KEPT[row.kind]))
    raise_all(loaded.errors)
    return loaded.rows


def add_dataset(
    catalog: Catalog,
    tenant: Tenant,
    filename: str,
    rows: Sequence[Row],
    lineage: dict[str, Any],
    purpose: Purpose | None = None,
) -> tuple[Dataset, bool]:
    """(the tenant's dataset of these rows, whether it is new). The same rows again are the same dataset."""
    from sqlalchemy import select
    from sqlalchemy.exc import IntegrityError

    from ryorin.catalog.tables import Dataset

    kind = kind_of(rows)
    with keeping(catalog.settings.blobs_dir):
        digest = keep_blob(catalog.settings.blobs_dir, dataset_bytes(rows))
        known = select(Dataset).where(Dataset.tenant_id == tenant.id, Dataset.digest == digest)
        with catalog.session() as session:
            row = session.scalar(known)
            is_new = row is None
            if row is None:
                row = Dataset(
                    id=new_id("ds_"),
                    tenant_id=tenant.id,
                    filename=filename,
                    digest=digest,
                    rows=len(rows),
                    kind=kind,
                    lineage=lineage,
                )
                try:
                    with session.begin_nested():
                        session.add(row)
                except IntegrityError:  # another process was faster
                    row, is_new = session.scalars(known).one(), False
            if purpose is not None:
                set_purpose(session, row, purpose)
    return row, is_new


def find_dataset(session: Session, tenant: Tenant, reference: str) -> Dataset:
    """The tenant's dataset by its id or the beginning of its digest, six digits at least. Raises NotFound."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Dataset

    mine = select(Dataset).where(Dataset.tenant_id == tenant.id)
    found: Sequence[Dataset] = ()
    if reference.startswith("ds_"):
        found = session.scalars(mine.where(Dataset.id == reference)).all()
    elif _REFERENCE.fullmatch(reference):
        found = session.scalars(mine.where(Dataset.digest.startswith(reference)).limit(2)).all()
    if not found:
        raise NotFound(
            f"tenant {tenant.name!r} has no dataset {reference!r}, and there is no such file; "
            f"'ryorin data list --tenant {tenant.name}' shows its datasets",
            param="data",
        )
    if len(found) > 1:
        raise InvalidInput(f"several datasets begin with {reference!r}; write more of the digest", param="data")
    return found[0]


def list_datasets(session: Session, tenant: Tenant) -> list[tuple[Dataset, Purpose | None]]:
    """The tenant's datasets, newest first, each with its purpose."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Dataset

    rows = session.scalars(
        select(Dataset).where(Dataset.tenant_id == tenant.id).order_by(Dataset.created_at.desc(), Dataset.id)
    ).all()
    return [(row, purpose_of(session, row)) for row in rows]


def set_purpose(session: Session, dataset: Dataset, purpose: Purpose) -> None:
    """Write a purpose statement beside a dataset; the one that counts already is not written twice."""
    from ryorin.catalog.tables import Purpose as PurposeRow

    if purpose_of(session, dataset) != purpose:
        session.add(
            PurposeRow(
                tenant_id=dataset.tenant_id, dataset_id=dataset.id, digest=purpose.digest, statement=purpose.spec()
            )
        )
        session.flush()


def purpose_of(session: Session, dataset: Dataset) -> Purpose | None:
    """The newest purpose statement of a dataset."""
    from sqlalchemy import select

    from ryorin.catalog.tables import Purpose as PurposeRow

    row = session.scalar(
        select(PurposeRow)
        .where(PurposeRow.tenant_id == dataset.tenant_id, PurposeRow.dataset_id == dataset.id)
        .order_by(PurposeRow.id.desc())
        .limit(1)
    )
    return None if row is None else Purpose.from_spec(row.statement)


def purpose_given(catalog: Catalog, given: Given) -> Purpose | None:
    """The purpose of the dataset that was given; None of a file."""
    from ryorin.catalog.tables import Dataset

    if given.dataset_id is None:
        return None
    with catalog.session() as session:
        return purpose_of(session, session.get_one(Dataset, given.dataset_id))


def dataset_json(row: Dataset, purpose: Purpose | None) -> dict[str, Any]:
    """A dataset as the commands show it."""
    return {
        "id": row.id,
        "digest": row.digest,
        "short": row.digest[:SHORT],
        "name": row.filename,
        "kind": row.kind,
        "rows": row.rows,
        "origin": row.lineage.get("origin", "files"),
        "lineage": row.lineage,
        "purpose": None if purpose is None else purpose.spec(),
        "created_at": row.created_at,
    }
