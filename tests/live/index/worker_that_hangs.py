"""A worker whose embedder never answers; says 'embedding' when it is asked. The catalog is the environment's."""

import time

from ryorin.catalog import open_catalog
from ryorin.settings import load_settings
from ryorin.worker import Worker
from ryorin_index.attach_job import IndexFile


class Hanging:
    def passages(self, texts):
        print("embedding", flush=True)
        time.sleep(3600)


catalog = open_catalog(load_settings())
Worker(catalog, handlers={"index_file": IndexFile(catalog, lambda store: Hanging())}, lease_s=1).run()
