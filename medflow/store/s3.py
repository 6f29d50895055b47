"""S3, and what speaks it: one request where fsspec's general way takes several, and S3's errors one by one.

Endpoint, region, credentials and profile are found by botocore as in any tool of AWS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, SSLError
from fsspec.config import conf

from medflow.errors import MedflowError
from medflow.store.filesystem import RemoteFiles

CONNECT_S = 10.0
ATTEMPTS = 3  # of botocore, for what the server or the network failed; s3fs goes through them ROUNDS times
ROUNDS = 2
CONNECTIONS = 64

AWAY = "check AWS_ENDPOINT_URL and AWS_REGION"
KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or this machine's role"
RIGHTS = "check the credentials; they must allow s3:ListBucket of the bucket and s3:GetObject and s3:PutObject in it"
WAYS_OUT = {
    "NoSuchBucket": "make the bucket, or correct MEDFLOW_OBJECTS",
    "InvalidBucketName": "correct MEDFLOW_OBJECTS",
    "InvalidAccessKeyId": KEYS,
    "SignatureDoesNotMatch": KEYS,
    "ExpiredToken": KEYS,
    "InvalidToken": KEYS,
    "AccessDenied": RIGHTS,
    "403": RIGHTS,
    "RequestTimeTooSkewed": "set this machine's clock",
}
BUSY = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "IncompleteBody"}


class S3Files(RemoteFiles):
    """Files in one bucket. A PUT is seen whole or not at all, so that no temporary name is needed."""

    def __init__(self, url: str, system: type[fsspec.AbstractFileSystem], *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        super().__init__(url, system)
        self.system.retries = ROUNDS

    def options(self, system: type[fsspec.AbstractFileSystem]) -> dict[str, Any]:
        """Timeouts, retries and connections; what is configured for s3fs goes before them."""
        ours = {
            "connect_timeout": min(CONNECT_S, self._timeout_s),
            "read_timeout": self._timeout_s,
            "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
            "max_pool_connections": CONNECTIONS,
        }
        theirs: dict[str, Any] = {}
        for protocol in ("s3", "s3a"):
            theirs |= conf.get(protocol, {}).get("config_kwargs") or {}
        return {"config_kwargs": ours | theirs}

    def check(self) -> None:
        """List one key: whatever is wrong with the bucket or the credentials, S3 says it in the answer's body."""
        with self.translated():
            bucket, prefix, _ = self.system.split_path(self.root)
            self.system.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)

    def exists(self, name: str) -> bool:
        """One HEAD request."""
        with self.translated():
            try:
                self.system.metadata(self.at(name))
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return False
            return True

    def place(self, target: str, source: bytes | Path) -> None:
        """One PUT, or a multipart upload that becomes an object when it is complete."""
        self.upload(target, source)

    def explained(self, error: Exception) -> MedflowError | None:
        """S3's code where there is one: it names what is wrong, without the text, which names keys."""
        code = _code(error)
        if code is None:
            if isinstance(error, BotoCoreError):
                return self._of_botocore(error)
            return super().explained(error)
        if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
            return None
        status = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in BUSY or status >= 500 or status in (408, 429):
            return self.unavailable(code, answered=True)
        return self.refused(code, WAYS_OUT.get(code, AWAY))

    def _of_botocore(self, error: BotoCoreError) -> MedflowError:
        kind = type(error).__name__
        if isinstance(error, SSLError):
            return self.refused(kind, "name the certificates of its authority in AWS_CA_BUNDLE")
        if isinstance(error, (ConnectionError, HTTPClientError)):
            return self.unavailable(kind)
        return self.refused(kind, KEYS if "Credential" in kind or "Profile" in kind else AWAY)


def _answer(error: BaseException) -> dict[str, Any]:
    """The response behind an error of s3fs, which puts its own in front of botocore's."""
    for link in (error, error.__cause__):
        if isinstance(link, ClientError):
            return dict(link.response)
    return {}


def _code(error: BaseException) -> str | None:
    return _answer(error).get("Error", {}).get("Code")
