"""Resources per second to a FHIR server: `medflow deliver` against one POST per resource, same server, same run.

    python tests/benchmarks/bench_deliver.py [--patients 2000] [--delays 0 5 20] [--json]

posts: what a script does, one POST after the other over one connection that is kept open. deliver: `medflow deliver`
from an outbox on SQLite, with all it does there. limit: transactions as large as this server takes, made beforehand, by
a bare client with as many in flight: what the server itself can take. Each with the server's two validators, which cost
it more than all else, and without; and at several delays (milliseconds for a round trip, added by a proxy in a process
of its own), as a hospital's server is on no loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.connection
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from medflow import delivery  # noqa: E402
from medflow.config import load_settings, parsed_target  # noqa: E402
from medflow.connections.endpoints import FhirTarget  # noqa: E402
from medflow.delivery.server import IN_FLIGHT  # noqa: E402
from medflow.fhir.client import FhirClient, Write  # noqa: E402
from medflow.records import Outgoing  # noqa: E402
from medflow.store import Store, outbox  # noqa: E402
from tests.results import catalog, risk_of  # noqa: E402
from tests.services.fhir_server import fhir_server  # noqa: E402

LARGEST = 50  # updates in one transaction of this server
JSON = {"Content-Type": "application/fhir+json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2000, help="three resources each")
    parser.add_argument("--posts", type=int, default=1000, help="resources sent by one POST each")
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 5.0, 20.0], help="ms for a round trip")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    found = {}
    for checked in (True, False):
        with fhir_server(checked=checked) as direct:
            for delay in options.delays:
                with delayed(direct, delay) as url:
                    name = f"{'two validators' if checked else 'no validators'}, {delay:g} ms"
                    found[name] = measured(direct, url, options.patients, options.posts)
                    if not options.json:
                        sys.stdout.write(line(name, found[name]))
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")


def line(name: str, rates: dict[str, float]) -> str:
    """The figures of one delay."""
    told = ", ".join(f"{what} {rate:.0f}/s" for what, rate in rates.items())
    ratio, share = rates["deliver"] / rates["posts"], rates["deliver"] / rates["limit"]
    return f"{name}: {told}; deliver is {ratio:.1f} times posts, {share:.2f} of the limit\n"


def measured(direct: str, url: str, patients: int, posts: int) -> dict[str, float]:
    """Resources per second, each way; the server is emptied before each."""
    resources = [item for patient in range(patients) for item in risk_of(patient)]
    ways = {
        "posts": lambda: post_each(url, resources[:posts]),
        "deliver": lambda: deliver_all(url, resources),
        "limit": lambda: send_prebuilt(url, resources),
    }
    found = {}
    for name, way in ways.items():
        httpx.post(direct.removesuffix("/fhir/R4") + "/$reset").raise_for_status()
        found[name] = way()
    return found


def post_each(url: str, resources: Sequence[Outgoing]) -> float:
    """One POST after the other."""
    with httpx.Client(headers=JSON, timeout=60) as client:
        started = time.perf_counter()
        for item in resources:
            client.post(f"{url}/{item.type}", content=item.body).raise_for_status()
        return len(resources) / (time.perf_counter() - started)


def deliver_all(url: str, resources: Sequence[Outgoing]) -> float:
    """`medflow deliver`, from its outbox."""
    with tempfile.TemporaryDirectory(prefix="medflow-bench-") as home:
        settings = load_settings(home=Path(home))
        store = Store(settings).open()
        with store.writing() as connection:
            outbox.queue(connection, None, [*catalog(), *resources])
        started = time.perf_counter()
        tally = delivery.deliver(store, settings, parsed_target(url))
        seconds = time.perf_counter() - started
        store.close()
    assert tally.delivered == len(resources) + 2, tally.as_json()
    return tally.delivered / seconds


def send_prebuilt(url: str, resources: Sequence[Outgoing]) -> float:
    """Transactions made beforehand; answers are read and not looked into."""
    target = parsed_target(url)
    assert isinstance(target, FhirTarget)
    writes = [Write(method="PUT", url=f"{item.type}/{item.id}", body=item.body) for item in resources]
    parts = [writes[at : at + LARGEST // 3 * 3] for at in range(0, len(writes), LARGEST // 3 * 3)]
    with FhirClient(target, timeout_s=60) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
        started = time.perf_counter()
        for answers in pool.map(lambda part: client.bundle("transaction", part), parts):
            assert all(answer.taken for answer in answers)
        return len(writes) / (time.perf_counter() - started)


# --- a server that is further away ------------------------------------------------------------------------------


@contextmanager
def delayed(url: str, round_trip_ms: float) -> Iterator[str]:
    """The same server behind a wire of that length."""
    if not round_trip_ms:
        yield url
        return
    parts = urlsplit(url)
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(parts.port, round_trip_ms / 2000, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}{parts.path}"
    finally:
        process.terminate()
        process.join()


def serve(port: int, delay_s: float, told: multiprocessing.connection.Connection) -> None:
    """Pass bytes on to a port, each chunk so much later; in a process of its own."""

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            loop.call_later(delay_s, writer.write, data)
        loop.call_later(delay_s, writer.close)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(passed_on(reader, back), passed_on(there, writer))

    async def run() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
