"""
An S3-compatible bucket, through fsspec and s3fs.

A fingerprint is size and ETag. The keys are read from the environment when they are needed and kept nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from ryorin.errors import InvalidInput, RequirementMissing, Unavailable
from ryorin_index.sources.connector import Connector, Content, Item, check_size
from ryorin_index.sources.folder import path_filter


class Bucket(Connector):
    """
    The objects below a prefix; those with a part that begins with a dot are passed over.

    uri: s3://bucket/prefix. key_env, secret_env: the variables that hold the keys; without them, those that Amazon's
    tools use. anonymous: no keys at all.
    """

    named_by_content = False  # an ETag says so of most objects, not of all

    def __init__(
        self,
        uri: str,
        endpoint_url: str = "",
        key_env: str = "",
        secret_env: str = "",
        anonymous: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        self.state: dict[str, Any] = {}
        self._uri, self._prefix = uri, uri.removeprefix("s3://").strip("/")
        self._options: dict[str, Any] = {"anon": anonymous}
        for name, variable in (("key", key_env), ("secret", secret_env)):
            if variable:
                if not os.environ.get(variable):
                    raise RequirementMissing(
                        f"source {uri} needs its {name} in the variable {variable}, which is not set"
                    )
                self._options[name] = os.environ[variable]
        if endpoint_url:
            self._options["endpoint_url"] = endpoint_url
        self._wanted = path_filter(include, exclude)
        self._opened: Any = None

    def items(self) -> Iterator[Item]:
        """The objects by key."""
        try:
            found = self._files().find(self._prefix, detail=True)
        except Exception as error:
            raise self._explained(error) from error
        for path, info in found.items():
            below = path[len(self._prefix) :].strip("/") or path.rpartition("/")[2]
            if info["type"] != "file" or any(part.startswith(".") for part in below.split("/")):
                continue
            if self._wanted is None or self._wanted(below):
                etag = str(info["ETag"]).strip('"')
                yield Item(f"s3://{path}", path.rpartition("/")[2], f"{info['size']}:{etag}", info["size"])

    def read(self, item: Item) -> Content:
        """An object's bytes."""
        check_size(item.filename, item.size)
        try:
            data: bytes = self._files().cat_file(item.source.removeprefix("s3://"))
        except Exception as error:
            raise self._explained(error) from error
        return Content(data, item.fingerprint)

    def close(self) -> None:
        """Nothing is held."""

    def _files(self) -> Any:
        if self._opened is None:
            import fsspec

            self._opened = fsspec.filesystem(
                "s3",
                **self._options,
                use_listings_cache=False,
                skip_instance_cache=True,
                config_kwargs={"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3}},
            )
        return self._opened

    def _explained(self, error: Exception) -> InvalidInput | Unavailable:
        """What went wrong, in the connector's words: the libraries below raise many kinds."""
        if isinstance(error, FileNotFoundError):
            return InvalidInput(f"{self._uri}: no such bucket or object", param="uri")
        if isinstance(error, PermissionError):
            return InvalidInput(f"{self._uri}: the keys do not allow it ({error})", param="uri")
        return Unavailable(f"{self._uri} does not answer: {error}")
