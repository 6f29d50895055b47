"""What only a remote store can do: be out of reach, busy, refuse, or give back other bytes than it was given."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest

from medflow.config import load_settings
from medflow.errors import ConfigurationError, ObjectDamaged, ObjectsUnavailable
from medflow.store import remote
from medflow.store.objects import object_store
from tests.services import free_port
from tests.services.s3_server import Bucket, aws_environment, new_bucket, s3_server

DIGEST = sha256(b"pixels").hexdigest()


@pytest.fixture
def objects(s3: Bucket, tmp_path):
    made = object_store(load_settings(home=tmp_path, objects=s3.url))
    yield made
    made.close()


def another(tmp_path, url: str, **settings):
    """The store as another machine sees it: with an empty cache."""
    return object_store(load_settings(home=tmp_path / "elsewhere", objects=url, **settings))


@contextmanager
def answering(status: int, code: str, wait_s: float = 0) -> Iterator[tuple[str, list[str]]]:
    """A server that gives every request the same answer; its URL, and the requests that came."""
    came: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            came.append(f"{self.command} {self.path}")
            time.sleep(wait_s)
            body = f"<Error><Code>{code}</Code><Message>testing of Jane Doe</Message></Error>".encode()
            with suppress(BrokenPipeError):  # whoever asked has gone
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        do_HEAD = do_PUT = do_GET

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", came
    finally:
        server.shutdown()
        server.server_close()


def test_objects_lie_in_the_bucket_as_they_would_in_a_folder(objects, s3):
    objects.put(b"pixels")

    assert s3.listed() == [f"objects/{DIGEST[:2]}/{DIGEST[2:4]}/{DIGEST}"]


def test_a_read_comes_from_the_cache_when_it_can(objects, s3, tmp_path):
    objects.put(b"pixels")
    elsewhere = another(tmp_path, s3.url)
    assert elsewhere.get(DIGEST) == b"pixels"

    s3.client.delete_object(Bucket=s3.name, Key=s3.listed()[0])

    assert elsewhere.get(DIGEST) == b"pixels"
    assert DIGEST not in elsewhere


def test_many_objects_come_at_once(objects, s3, tmp_path):
    digests = [objects.put(f"slice {number}".encode()) for number in range(20)]
    elsewhere = another(tmp_path, s3.url)

    elsewhere.fetch([*digests, "0" * 64])

    assert all(digest in elsewhere.cache for digest in digests)


@pytest.mark.parametrize("found", [b"pixel", b"", b"other!"], ids=["cut", "empty", "other"])
def test_bytes_that_are_not_those_that_were_put_are_refused(objects, s3, tmp_path, found):
    objects.put(b"pixels")
    s3.client.put_object(Bucket=s3.name, Key=s3.listed()[0], Body=found)

    with pytest.raises(ObjectDamaged, match=f"{DIGEST}.*ingest its source again"):
        another(tmp_path, s3.url).get(DIGEST)


def test_a_server_that_is_not_there_is_worth_another_try(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    objects = another(tmp_path, s3.url)

    for use in (lambda: objects.put(b"pixels"), lambda: objects.get(DIGEST), lambda: DIGEST in objects):
        with pytest.raises(ObjectsUnavailable, match=f"{s3.url}.*EndpointConnectionError"):
            use()


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError")])
def test_a_server_with_too_much_to_do_is_asked_again_and_then_left_for_later(s3, tmp_path, monkeypatch, status, code):
    with answering(status, code) as (url, came):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(ObjectsUnavailable, match=code) as caught:
            another(tmp_path, s3.url).put(b"pixels")

    assert 3 <= len(came) <= 6
    assert "Jane" not in str(caught.value) and caught.value.__cause__ is None


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(s3, tmp_path, monkeypatch):
    with answering(200, "Late", wait_s=3) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        started = time.monotonic()
        with pytest.raises(ObjectsUnavailable, match="ReadTimeout"):
            another(tmp_path, s3.url, http_timeout_s=0.2).put(b"pixels")

    assert time.monotonic() - started < 20


def test_those_who_ask_after_it_failed_do_not_wait_for_it_again(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 600.0)
    with answering(200, "Late", wait_s=3) as (url, came):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        objects = another(tmp_path, s3.url, http_timeout_s=0.2)
        with ThreadPoolExecutor(8) as pool:
            failures = list(pool.map(lambda number: _failure(objects, number), range(50)))

    assert {type(failure) for failure in failures} == {ObjectsUnavailable}
    assert len(came) <= 6


def _failure(objects, number: int) -> Exception | None:
    try:
        objects.put(f"slice {number}".encode())
    except ObjectsUnavailable as error:
        return error
    return None


def test_a_server_that_comes_back_is_used_again(objects, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    objects.put(b"pixels")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with monkeypatch.context() as gone:
            gone.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
            elsewhere = another(tmp_path, s3.url)
            with pytest.raises(ObjectsUnavailable):
                elsewhere.get(DIGEST)

    assert elsewhere.get(DIGEST) == b"pixels"


def test_a_bucket_that_does_not_exist_is_named(s3, tmp_path):
    with pytest.raises(ConfigurationError, match=r"s3://no-such-bucket/objects.*NoSuchBucket.*make the bucket"):
        another(tmp_path, "s3://no-such-bucket/objects").put(b"pixels")


def test_a_bucket_that_is_taken_away_later_is_not_taken_for_missing_objects(objects, s3, tmp_path):
    objects.put(b"pixels")
    for key in s3.listed():
        s3.client.delete_object(Bucket=s3.name, Key=key)
    s3.client.delete_bucket(Bucket=s3.name)

    for use in (lambda: objects.put(b"other"), lambda: objects.get(DIGEST)):
        with pytest.raises(ConfigurationError, match="NoSuchBucket"):
            use()


def test_no_credentials_at_all_say_where_they_come_from(s3, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with pytest.raises(ConfigurationError, match=r"NoCredentialsError.*AWS_ACCESS_KEY_ID"):
        another(tmp_path, s3.url).put(b"pixels")


POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject"], "Resource": "*"}],
}


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[str, str, str]]:
    """A server that checks credentials: its URL, and the key and secret of a user who may read alone."""
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="4") as url:
        new_bucket(url, "guarded")
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        iam = boto3.session.Session().client("iam", endpoint_url=url, **keys)
        iam.create_user(UserName="reader")
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(POLICY))
        made = iam.create_access_key(UserName="reader")["AccessKey"]
        yield url, made["AccessKeyId"], made["SecretAccessKey"]


def with_keys(monkeypatch, url: str, key: str, secret: str) -> None:
    for name, value in aws_environment(url, key, secret).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("wrong", "code"), [("key", "InvalidAccessKeyId"), ("secret", "SignatureDoesNotMatch")])
def test_wrong_credentials_are_named_by_variable_and_not_shown(guarded, tmp_path, monkeypatch, wrong, code):
    url, key, secret = guarded
    with_keys(monkeypatch, url, "AKIAWRONG" if wrong == "key" else key, "wrong-secret" if wrong == "secret" else secret)
    objects = another(tmp_path, "s3://guarded/objects")

    with pytest.raises(ConfigurationError, match=f"{code}.*AWS_SECRET_ACCESS_KEY") as caught:
        objects.put(b"pixels")

    shown = f"{caught.value!s} {caught.value!r} {caught.value.fields} {vars(objects)}"
    assert not any(word in shown for word in ("AKIAWRONG", "wrong-secret", key, secret))
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_user_who_may_only_read_is_told_which_right_is_missing(guarded, tmp_path, monkeypatch):
    with_keys(monkeypatch, *guarded)
    objects = another(tmp_path, "s3://guarded/objects")

    assert DIGEST not in objects
    with pytest.raises(ConfigurationError, match=r"AccessDenied.*s3:PutObject"):
        objects.put(b"pixels")


@pytest.mark.parametrize(
    ("url", "message"),
    [("no-such-protocol://x/y", "no file system is called"), ("gs://bucket/objects", "pip install")],
)
def test_a_file_system_that_is_not_installed_says_so(tmp_path, url, message):
    with pytest.raises(ConfigurationError, match=message):
        another(tmp_path, url).put(b"pixels")


@pytest.mark.parametrize("url", ["s3://key:sec/ret@bucket/objects", "sftp://user:secret@host/x", "s3://b/o?token=x"])
def test_a_url_with_credentials_in_it_is_refused_without_showing_them(url):
    with pytest.raises(ConfigurationError, match="MEDFLOW_OBJECTS.*no credentials") as caught:
        load_settings(objects=url)

    assert url.partition("://")[2] not in str(caught.value)
    assert "secret" not in str(caught.value) and "sec/ret" not in str(caught.value)
