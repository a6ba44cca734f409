"""
Connectors: where documents come from. One module a kind; `connector.py` says what they have in common.

`open_connector` makes the connector of a source's row; nothing is read or reached before its `items` are asked for.
"""

from ryorin_index.sources.connector import MAX_FILE_BYTES, Connector, Content, Item
from ryorin_index.sources.kinds import KINDS, check_source, open_connector

__all__ = ["KINDS", "MAX_FILE_BYTES", "Connector", "Content", "Item", "check_source", "open_connector"]
