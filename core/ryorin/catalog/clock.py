"""The database's clock, which is the same for all processes that share a catalog."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class NowS(FunctionElement[float]):
    """Now, in Unix seconds."""

    type = Float()
    inherit_cache = True


@compiles(NowS, "sqlite")
def _now_on_sqlite(_element: NowS, _compiler: Any, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(NowS, "postgresql")
def _now_on_postgresql(_element: NowS, _compiler: Any, **_options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"
