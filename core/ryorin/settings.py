"""
Where things lie and how the catalog is reached; read once from the environment.

Each default is written here and nowhere else.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HOME_NAME = ".ryorin"
LOAD_WAIT_S = 120.0  # that running gateways get to load a release before it is given traffic
ROTATION_GRACE_S = 86_400.0  # that a rotated key goes on


def find_home(start: Path) -> Path:
    """The nearest `.ryorin` folder in `start` or a parent of it, as git finds its own; else `start/.ryorin`."""
    for folder in (start, *start.parents):
        if (folder / HOME_NAME).is_dir():
            return folder / HOME_NAME
    return start / HOME_NAME


@dataclass(frozen=True)
class Settings:
    """
    Paths and the catalog's address.

    home: everything Ryorin keeps on this machine: catalog (when SQLite), blobs, models, adapters, logs.
    database_url: an SQLAlchemy URL; SQLite in `home` unless set.
    """

    home: Path
    database_url: str

    @property
    def blobs_dir(self) -> Path:
        """Content-addressed files: `blobs/ab/abcdef…`."""
        return self.home / "blobs"

    @property
    def models_dir(self) -> Path:
        """Content-addressed base models and embedders: `models/<digest12>/`."""
        return self.home / "models"

    @property
    def adapters_dir(self) -> Path:
        """One immutable folder an adapter: `adapters/<tenant>-<digest12>/`."""
        return self.home / "adapters"

    @property
    def jobs_dir(self) -> Path:
        """Working folders of jobs."""
        return self.home / "jobs"

    @property
    def checkpoints_dir(self) -> Path:
        """What training runs continue from after an interruption: a folder a run, gone when it is done."""
        return self.home / "checkpoints"

    @property
    def logs_dir(self) -> Path:
        """Logs of the engine and the gateway."""
        return self.home / "logs"

    @property
    def numba_dir(self) -> Path:
        """What numba compiled for the engine on a CPU."""
        return self.home / "cache" / "numba"

    def pepper(self) -> bytes:
        """
        The secret that API keys are hashed with: `RYORIN_PEPPER`, or a file in `home` made on first use (mode 600).

        Several gateways on one PostgreSQL must share it through the environment variable.
        """
        given = os.environ.get("RYORIN_PEPPER")
        if given:
            return given.encode()
        path = self.home / "pepper"
        if not path.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"pepper.{os.getpid()}")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as handle:
                handle.write(secrets.token_hex(32))
            try:
                os.link(fresh, path)  # atomic: the first process wins, the others read its secret
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path.read_bytes()


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from `RYORIN_HOME` and `RYORIN_DATABASE_URL`, with their defaults."""
    env = os.environ if environ is None else environ
    home = Path(env["RYORIN_HOME"]).expanduser().resolve() if env.get("RYORIN_HOME") else find_home(Path.cwd())
    return Settings(home=home, database_url=env.get("RYORIN_DATABASE_URL") or f"sqlite:///{home / 'catalog.db'}")
