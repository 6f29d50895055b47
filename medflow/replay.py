"""What was not taken, did not end well or was not sent, offered again: rejects, jobs and deliveries.

Each replay is a run of its own, and in the audit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from medflow.connections.endpoints import DicomWebSource, Files, PacsSource
from medflow.errors import RejectCode
from medflow.ingest.fetch import fetch
from medflow.ingest.offers import Offer, origin_of
from medflow.ingest.record_source import server_bases
from medflow.ingest.retrieval import study_of
from medflow.ingest.tally import Tally
from medflow.ingest.vcf import file_of_sample
from medflow.steps import Progress, Site, recorded, take
from medflow.store import jobs, ledger, outbox
from medflow.store.ledger import now_us
from medflow.store.specimens import OF_STORED_FILE


def replay_rejects(
    site: Site, *, reference: Path | None = None, samples: Path | None = None, progress: Progress | None = None
) -> Tally:
    """Offer every open reject again, from the bytes kept of it or from where it came; what is taken is settled.

    A VCF whose REF alleles were refused is offered only with a ``reference`` to check them against again: the one
    given, else that of the configured VCF sources. Whose its samples are is asked of the sheet ``samples``, else of
    that of the configured source that it came from; where sources have sheets, samples that a Specimen or order no
    longer gives to their patient wait for ``samples``, or for their file. Studies that an archive did not give are
    asked for again where that archive is configured.
    """
    files = [item for item in site.settings.sources.values() if isinstance(item, Files)]
    reference = reference or next((item.reference for item in files if item.reference), None)
    with site.store.reading() as connection:
        found = ledger.list_rejects(connection)
    total = Tally()
    if reference is None and (left := [item for item in found if item.code == RejectCode.REF_MISMATCH]):
        total.notes["left-without-reference"] = len(left)
        found = [item for item in found if item.code != RejectCode.REF_MISMATCH]
    sheets = any(source.kind == "vcf" and source.samples for source in files)
    left = [item for item in found if item.kind == "vcf" and item.origin.startswith(OF_STORED_FILE)]
    if sheets and samples is None and left:  # whose sheet to ask is not known of them: without it they might be misled
        total.notes["left-without-sheet"] = len(left)
        found = [item for item in found if item not in left]
    left = [
        item for item in found if item.kind == "fhir" and not item.payload and server_bases(site.settings, item.origin)
    ]
    if left:  # it is its server that would have to send it again
        total.notes["left-at-their-server"] = len(left)
        found = [item for item in found if item not in left]
    missing = [item for item in found if item.code == RejectCode.NOT_RETRIEVED]
    found = [item for item in found if item.code != RejectCode.NOT_RETRIEVED]
    with recorded(site, "retry rejects") as run:
        started = now_us()
        alike: dict[tuple[str, str, Path | None, Path | None], list[ledger.Reject]] = {}
        for item in found:
            sheet = samples or _sheet(files, item.origin)
            genome = None if file_of_sample(item.origin) else reference  # that file is stored: no more is asked of it
            alike.setdefault((item.kind, item.source, genome, sheet), []).append(item)
        for (kind, system, genome, sheet), same in alike.items():
            again = {(offer.origin, offer.path): offer for offer in (_offer(site, item) for item in same)}
            paths = tuple(again.values())  # several entries of one file: the file once
            source = Files.model_construct(kind=kind, paths=paths, reference=genome, samples=sheet)
            total.add(take(site, source, run.id, progress, record_source=system))
        with site.store.writing() as connection:
            settled = ledger.settle_rejects(connection, [item.id for item in found], before_us=started)
            ledger.record_audit(connection, run.id, "replay", "rejects", offered=len(found), settled=settled)
        _fetch_again(site, missing, total, run.id, progress)
        run.counts = total.as_json()
    return total


def _fetch_again(
    site: Site, missing: Sequence[ledger.Reject], total: Tally, run_id: int, progress: Progress | None
) -> None:
    """Ask the archives for what they did not give; the fetch itself settles what it has brought."""
    for name in dict.fromkeys(item.source for item in missing):
        origins = [item.origin for item in missing if item.source == name]
        source = site.settings.sources.get(name)
        if isinstance(source, DicomWebSource | PacsSource):
            asked = source.model_copy(update={"studies": tuple(map(study_of, origins)), "days": None})
            total.add(fetch(site.store, site.settings, asked, name, run_id=run_id, progress=progress))
        else:
            total.notes["left-to-the-next-fetch"] += len(origins)


def _sheet(sources: Iterable[Files], origin: str) -> Path | None:
    """The sample sheet of the configured source that a file came from: another laboratory's may name others alike."""
    whole = file_of_sample(origin) or origin
    for source in sources:
        if source.kind == "vcf" and any(whole == origin_of(path) or _lies_in(whole, path) for path in source.paths):
            return source.samples
    return None


def _lies_in(origin: str, path: Path) -> bool:
    """Whether what came from there came out of this folder or archive."""
    return origin.startswith((f"{origin_of(path)}/", f"{origin_of(path)}!"))


def _offer(site: Site, reject: ledger.Reject) -> Offer:
    store, kept = site.store, reject.sha256 if reject.payload else None
    whole = file_of_sample(reject.origin) if reject.kind == "vcf" else None
    if whole is not None:
        stored = kept is not None and kept in store.objects
        return Offer(origin=whole, path=store.objects.path(kept) if kept and stored else Path(whole))
    if kept and kept in store.objects and not reject.code.startswith("archive-"):
        bases = server_bases(site.settings, reject.origin) if reject.kind == "fhir" else frozenset()
        return Offer(origin=reject.origin, path=store.objects.path(kept), entry="#" in reject.origin, bases=bases)
    origin = reject.origin.partition("#")[0]  # of an entry whose bytes were not kept, the whole file
    return Offer(origin=origin, path=Path(origin))


def replay_jobs(site: Site, job_ids: Sequence[int] | None = None) -> int:
    """Make dead and failed jobs ready again; returns how many."""
    with recorded(site, "retry jobs") as run, site.store.writing() as connection:
        count = jobs.retry_jobs(connection, job_ids)
        ledger.record_audit(connection, run.id, "replay", "jobs", ready=count)
        run.counts = {"ready": count}
    return count


def replay_deliveries(site: Site, target: str | None = None, *, overwrite: bool = False) -> int:
    """Make dead, failed and withheld deliveries pending again, of one target or all; returns how many.

    With ``overwrite``, they are written over what others changed at the server since.
    """
    where = site.settings.target(target).public if target else None
    with recorded(site, "retry deliveries") as run, site.store.writing() as connection:
        count = outbox.retry_deliveries(connection, where, overwrite=overwrite)
        ledger.record_audit(connection, run.id, "replay", "deliveries", pending=count, overwrite=overwrite)
        run.counts = {"pending": count}
    return count
