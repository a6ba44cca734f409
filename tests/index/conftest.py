from index_fixtures import embedder, folder, make_pdf, sqlite_store, store, tenant  # noqa: F401
