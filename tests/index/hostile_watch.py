"""Reads hostile files as the store does and looks at what else happened: connections, files, processes, time."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hostile_corpus import Case

from ryorin.errors import InvalidInput
from ryorin_index.parse import expand, parse_document
from ryorin_index.passages import split_document

SECRET = "the secret that no text may show"


@dataclass
class Findings:
    """What became of the cases by kind, and every wrong: (kind, what)."""

    ends: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    wrongs: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def slowest(self, count: int = 8) -> list[tuple[str, float]]:
        """The kinds that took longest."""
        return sorted(self.seconds.items(), key=lambda item: -item[1])[:count]


class Watch:
    """A port that nothing may connect to, a secret that nothing may show, folders that nothing may change."""

    def __init__(self, folder: Path) -> None:
        self.secret = folder / "secret.txt"
        self.secret.write_text(SECRET)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        self._watched = (folder, Path.cwd())
        self._before = self._listing()

    def strays(self) -> set[str]:
        """Files that came into being or went, in the folder (the temporary one lies in it) and in the present one."""
        return self._before ^ self._listing()

    def close(self) -> None:
        self._listener.close()

    def read(self, cases: Iterable[Case]) -> Findings:
        """Read every case; each must end in text that holds together or in a clear InvalidInput."""
        findings = Findings()
        for case in cases:
            began = time.monotonic()
            try:
                findings.ends[self._read(case, findings)] += 1
            except Exception as error:
                findings.wrongs.append((case.kind, f"{type(error).__name__}: {str(error)[:300]}"))
            took = time.monotonic() - began
            findings.seconds[case.kind] = round(took, 1)
        return findings

    def _read(self, case: Case, findings: Findings) -> str:
        path = Path(case.filename)
        try:
            found = expand(path, case.data)
            documents = [(Path(name), data) for name, data in found.members]
            for name, _ in found.members:
                if ".." in name.split("/") or name.startswith("/") or not name.isprintable():
                    findings.wrongs.append((case.kind, f"member {name!r}"))
            if path.suffix != ".zip":
                documents.append((path, case.data))
            for name, data in documents[:50]:
                document = parse_document(name, data)
                if SECRET in document.text or "root:" in document.text:
                    findings.wrongs.append((case.kind, "shows a file of this machine"))
                document.text.encode()
                if len(document.text) < 100_000:
                    for draft in split_document(document):
                        assert document.text[draft.start : draft.end] == draft.text
            return "read" if documents else "nothing in it"
        except InvalidInput as error:
            reason = str(error)
            if error.code != "invalid_file" or len(reason) > 4000 or "Traceback" in reason:
                findings.wrongs.append((case.kind, f"unclear: {reason[:300]}"))
            findings.reasons[case.kind] = reason
            return "refused"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def _listing(self) -> set[str]:
        own, present = self._watched
        return {str(path) for path in (*own.rglob("*"), *present.iterdir())}
