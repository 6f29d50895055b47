"""A VCF file that should not have been scored is taken back; or another, with a corrected call, takes its place.

The new file is stored before the old one is withdrawn, in a transaction each: whatever breaks off in between, both
stand, and the same command once more goes on from there.
"""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import file_digest, sha256
from itertools import islice
from pathlib import Path
from typing import Unpack

from medflow.config import Settings
from medflow.errors import ConfigurationError, InputRejected
from medflow.ingest.genomic_files import checked_blocks
from medflow.ingest.genomics import VcfTerms, ingest_vcf
from medflow.ingest.offers import Offer, offers
from medflow.ingest.tally import Tally
from medflow.store import Connection
from medflow.store.session import Store
from medflow.store.withdrawn_files import StoredFile, TakenBack, compare_samples, stored_file, withdraw_file

_ID = re.compile(r"(?:variant_file/)?(\d{1,18})")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
NAMES = "its id as `medflow samples` lists it (variant_file/N), its SHA-256, or the file itself"


def withdraw_vcf(store: Store, name: str, *, run_id: int | None = None) -> TakenBack:
    """Take back whatever a stored VCF file gave: its results are entered in error, and its samples not scored again.

    ``name`` is the file's id (``variant_file/N`` or N), its SHA-256, or the path of a file with the same bytes.

    Raises
    ------
    ConfigurationError
        No such file is stored, or it was withdrawn already.
    """
    old = _not_withdrawn(named_file(store, name))
    with store.writing() as connection:
        return withdraw_file(connection, _standing(connection, old), run_id)


def replace_vcf(
    store: Store,
    settings: Settings,
    path: Path,
    name: str,
    **terms: Unpack[VcfTerms],
) -> Tally:
    """Take in a VCF file as `ingest_vcf`, and withdraw the one that it stands for, named as for `withdraw_vcf`.

    The old file stands, and ``broken`` of the tally says why, where the new one is not taken with all its samples, or
    gives one to nobody that the old one gave to a patient. ``notes`` counts what became of the old one's samples.

    Raises
    ------
    ConfigurationError
        Before anything is taken: as for `withdraw_vcf` and `ingest_vcf`; or the new one is several files, the old one
        itself, or was withdrawn (without ``restore``).
    """
    old = _not_withdrawn(named_file(store, name))
    found = list(islice(offers([path]), 2))
    if len(found) != 1:
        raise ConfigurationError("--replaces goes with one VCF file: of a folder or an archive of several, name it")
    digest = _digest(found[0], settings) if isinstance(found[0], Offer) else None
    _check_new(store, digest, old, restore=terms.get("restore", False))
    tally = ingest_vcf(store, settings, [path], **terms)
    if tally.rejected:
        tally.broken["replaces"] = f"{old} stands: the new file was not taken whole (`medflow rejects` says why)"
        return tally
    with store.writing() as connection:
        _replace(connection, tally, old, digest, terms.get("run_id"))
    return tally


def _replace(connection: Connection, tally: Tally, old: StoredFile, digest: str | None, run_id: int | None) -> None:
    # in this order whichever replaces which: two that replace one another wait, and one of them is refused
    locked = {key: stored_file(connection, sha256=key, lock=True) for key in sorted({old.sha256, digest or ""})}
    new = locked.get(digest or "")
    if new is None or new.withdrawn:
        tally.broken["replaces"] = f"{old} stands: the new file changed or was withdrawn meanwhile; run the same again"
        return
    old = _standing(connection, old)
    compared = compare_samples(connection, old, new)
    if compared.nobodys:
        tally.broken["replaces"] = (
            f"{old} stands: {compared.nobodys} of its samples have a patient, and none in the new file; say whose they "
            "are (--samples), and run the same again"
        )
        return
    taken = withdraw_file(connection, old, run_id, replaced_by=new.id)
    counts = {
        "replaced": 1,
        "results-taken-back": taken.results,
        "jobs-let-go": taken.jobs,
        "samples-not-in-the-new-file": compared.missing,
        "samples-of-another-patient-now": compared.moved,
    }
    tally.notes.update({name: count for name, count in counts.items() if count})


def named_file(store: Store, name: str) -> StoredFile:
    """The stored file that a user means, named as for `withdraw_vcf`; raises ConfigurationError where there is none."""
    found, digest = _ID.fullmatch(name), None
    if found is None:
        digest = name.lower() if _SHA256.fullmatch(name) else _digest_at(Path(name))
    with store.reading() as connection:
        file = stored_file(connection, file_id=int(found[1]) if found else None, sha256=digest)
    if file is None:
        raise ConfigurationError(f"no such variant file is stored: name {NAMES}")
    return file


def _digest_at(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        raise ConfigurationError(f"the file named is neither a stored one nor one to read: name {NAMES}") from None


def _standing(connection: Connection, file: StoredFile) -> StoredFile:
    """The file, locked; raises ConfigurationError where another process withdrew it meanwhile."""
    found = stored_file(connection, file_id=file.id, lock=True)
    return _not_withdrawn(found or replace(file, withdrawn=True))


def _not_withdrawn(file: StoredFile) -> StoredFile:
    if file.withdrawn:
        raise ConfigurationError(
            f"{file} was withdrawn already: `medflow ingest vcf FILE --restore` would take it in again"
        )
    return file


def _digest(item: Offer, settings: Settings) -> str | None:
    """The SHA-256 of what is offered; None where it cannot be read, of which ingest tells."""
    total = sha256()
    try:
        for block in checked_blocks(item, settings.max_input_bytes):
            total.update(block)
    except InputRejected:
        return None
    return total.hexdigest()


def _check_new(store: Store, digest: str | None, old: StoredFile, *, restore: bool) -> None:
    if digest == old.sha256:
        raise ConfigurationError(f"the new file is {old} itself, byte for byte: name the file that it replaces")
    if digest is None or restore:
        return
    with store.reading() as connection:
        new = stored_file(connection, sha256=digest)
    if new is not None and new.withdrawn:
        raise ConfigurationError(f"the new file was withdrawn itself ({new}): --restore takes it in again")
