"""An S3 server of the tests' own: moto's, in a process of its own, so that other processes reach it too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from tests.services import missing

SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
NOBODY = os.devnull  # instead of the user's own files


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A bucket, what reaches it, and the environment variables that a process needs for it."""

    name: str
    client: Any = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)

    @property
    def url(self) -> str:
        """What MEDFLOW_OBJECTS is set to."""
        return f"s3://{self.name}/objects"

    def listed(self) -> list[str]:
        """All that lies in it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


@contextmanager
def s3_server(**environment: str) -> Iterator[str]:
    """Start the server; gives its URL. ``environment`` is moto's own configuration."""
    if find_spec("moto") is None or find_spec("s3fs") is None or find_spec("flask") is None:
        missing("the S3 test server is not installed: pip install -r requirements-dev.txt")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        env={**os.environ, **aws_environment(""), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()  # it ends with its input, and so even when this session is killed
        process.wait(timeout=10)
        process.stdout.close()


def aws_environment(url: str, key: str = "testing", secret: str = "testing") -> dict[str, str]:
    """The variables that lead botocore to the server with these credentials, and to no file or role of the user's."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": NOBODY,
        "AWS_SHARED_CREDENTIALS_FILE": NOBODY,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def new_bucket(url: str, name: str) -> Bucket:
    """Make an empty bucket."""
    import boto3  # with the rest of moto

    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    client = boto3.session.Session().client("s3", endpoint_url=url, **keys)
    client.create_bucket(Bucket=name)
    return Bucket(name=name, client=client, environment=aws_environment(url))
