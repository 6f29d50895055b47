"""`medflow receive`: the C-STORE receiver as a service, in the foreground until it is asked to stop."""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from medflow.config import load_settings
from medflow.logs import set_up_logging


def receive(
    aet: Annotated[str | None, typer.Option(help="This receiver's AE title (MEDFLOW_RECEIVE_AET).")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port (MEDFLOW_RECEIVE_PORT).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at (MEDFLOW_RECEIVE_HOST).")] = None,
    into: Annotated[Path | None, typer.Option(help="Folder to spool to (MEDFLOW_RECEIVE_INTO).")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A calling AE title to take images from; repeatable; all by default.")
    ] = None,
    allow_address: Annotated[
        list[str] | None, typer.Option(help="An IP address or network that may send; repeatable; all by default.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Receiving processes; one per core by default.")] = None,
    ingest: Annotated[
        bool | None, typer.Option("--ingest", help="Take each study into the store when it is complete.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM) to speak TLS with.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Authority that senders' certificates must be of.")] = None,
) -> None:
    """Take what modalities and the PACS send (DICOM C-STORE) into a folder, until asked to stop (SIGTERM)."""
    from medflow.dicom.reception import Reception  # with pynetdicom, which no other command is to wait for
    from medflow.ingest.commitment import StoredInstances

    settings = load_settings(
        receive_aet=aet,
        receive_port=port,
        receive_host=host,
        receive_into=into,
        receive_allow=tuple(allow) if allow else None,
        receive_allow_addresses=tuple(allow_address) if allow_address else None,
        receive_processes=processes,
        receive_ingest=ingest,
        receive_tls_cert=tls_cert,
        receive_tls_key=tls_key,
        receive_tls_ca=tls_ca,
    )
    set_up = partial(set_up_logging, level="INFO")  # one line an event: all there is to see of a service
    set_up(settings)
    asked, again = threading.Event(), threading.Event()

    def stop(_number: int, _frame: object) -> None:
        (again if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    beside = None
    if settings.receive_ingest:
        from medflow import arrivals

        arrivals.check(settings)
        beside = arrivals.follow
    reception = Reception(settings, set_up=set_up, stored=StoredInstances(settings=settings), beside=beside)
    reception.start()
    reception.serve(asked, again)
