"""The catalog: one SQL database that is the truth of everything but blobs."""

from ryorin.catalog.database import Catalog, open_catalog

__all__ = ["Catalog", "open_catalog"]
