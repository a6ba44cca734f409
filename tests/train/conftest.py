from train_fixtures import one_thread, sqlite, tenant, tiny_base, tokenizer, with_base, write_rows  # noqa: F401
