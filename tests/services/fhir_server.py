"""A FHIR R4 server that nobody here wrote, with two validators of its own: Medplum's router, under Node."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services import missing

HERE = Path(__file__).parent
INSTALL = "npm ci --prefix tests/services"


@contextmanager
def fhir_server(*, checked: bool = True) -> Iterator[str]:
    """Start the server; gives its base URL. ``POST /$reset`` at the same port empties it.

    Not ``checked``, it stores what it is sent without asking its validators.
    """
    node = shutil.which("node")
    if node is None:
        missing(f"the FHIR test server needs Node 20 or newer: install it, then `{INSTALL}`")
    if not (HERE / "node_modules" / "@medplum").is_dir():
        missing(f"the FHIR test server is not installed: `{INSTALL}`")
    process = subprocess.Popen(
        [node, str(HERE / "fhir-server.cjs"), "0", *([] if checked else ["unchecked"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        url = process.stdout.readline().strip()  # written once it listens
        if not url.startswith("http://"):
            raise RuntimeError(f"the FHIR test server did not start; try `node {HERE / 'fhir-server.cjs'} 0`")
        yield url
    finally:
        process.stdin.close()  # it ends with its input, and so even when this session is killed
        process.wait(timeout=10)
        process.stdout.close()
