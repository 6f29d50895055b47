"""Content-addressed files: each is stored once under the SHA-256 of its bytes, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from medflow.errors import ConfigurationError


class ObjectStore:
    """Files under ``root/ab/cd/<sha256>``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Where the object of this SHA-256 (hex) lies, whether it exists or not."""
        return self.root / digest[:2] / digest[2:4] / digest

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()

    def put(self, data: bytes) -> str:
        """Store bytes; returns their SHA-256 (hex)."""
        digest = sha256(data).hexdigest()
        self.put_chunks([data], digest)
        return digest

    def put_chunks(self, chunks: Iterable[bytes], digest: str) -> None:
        """Store the bytes of ``chunks``, whose SHA-256 is ``digest``; nothing is done if they are there.

        Raises
        ------
        ConfigurationError
            The disk is full, or the folder cannot be written. Nothing half-written remains.
        """
        target = self.path(digest)
        if target.exists():
            return
        temporary: str | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".incoming-")
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise ConfigurationError(
                f"the object store at {self.root} cannot be written ({error.strerror}): "
                "free space or mend its permissions, then run the same command again; what was stored stays stored",
                errno=error.errno,
            ) from None
        except BaseException:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise

    def get(self, digest: str) -> bytes:
        """The bytes of an object.

        Raises
        ------
        KeyError
            It is not in the store.
        """
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError:
            raise KeyError(digest) from None
