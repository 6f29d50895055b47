"""The human genome as LOINC and NCBI name it: assemblies, chromosomes, and the sequences that coordinates count on."""

from __future__ import annotations

import re
from functools import cache

from medflow.fhir.write.elements import Json

LOINC = "http://loinc.org"
NUCCORE = "http://www.ncbi.nlm.nih.gov/nuccore"
MITOCHONDRION = "MT"
ASSEMBLIES = {"GRCh37": "LA14029-5", "GRCh38": "LA26806-2"}  # LOINC answer list LL1040-6
# LOINC answer list LL2938-0: chromosomes 1 to 22, X and Y, and nothing else
CHROMOSOMES = {
    "1": "LA21254-0", "2": "LA21255-7", "3": "LA21256-5", "4": "LA21257-3", "5": "LA21258-1", "6": "LA21259-9",
    "7": "LA21260-7", "8": "LA21261-5", "9": "LA21262-3", "10": "LA21263-1", "11": "LA21264-9", "12": "LA21265-6",
    "13": "LA21266-4", "14": "LA21267-2", "15": "LA21268-0", "16": "LA21269-8", "17": "LA21270-6", "18": "LA21271-4",
    "19": "LA21272-2", "20": "LA21273-0", "21": "LA21274-8", "22": "LA21275-5", "X": "LA21276-3", "Y": "LA21277-1",
}  # fmt: skip
# RefSeq's versions of NC_000001 to NC_000024 (X is 23, Y is 24) in GCF_000001405.25 (GRCh37.p13) and .40 (GRCh38.p14)
VERSIONS = {
    "GRCh37": (10, 11, 11, 11, 9, 11, 13, 10, 11, 10, 9, 11, 10, 8, 9, 9, 10, 9, 9, 10, 8, 10, 10, 9),
    "GRCh38": (11, 12, 12, 12, 10, 12, 14, 11, 12, 11, 10, 12, 11, 9, 10, 10, 11, 10, 10, 11, 9, 11, 11, 10),
}
REVISED_CAMBRIDGE = "NC_012920.1"  # the mitochondrion, in both
# of RefSeq or GenBank, with its version: names one sequence, whatever the assembly
ACCESSION = re.compile(r"(?:N[CTWG]_\d{6,9}|[A-Z]{2}\d{6}|[A-Z]\d{5})\.\d{1,2}")


@cache
def place_of(contig: str, build: str | None) -> tuple[str | None, str | None]:
    """The chromosome (1 to 22, X, Y, MT) and the accession of a contig, each None where it cannot be told.

    In GRCh37 ``chrM`` is left without either: UCSC's hg19 has another mitochondrion of that name (NC_001807).
    """
    accessions = _accessions(build) if build in VERSIONS else {}
    by_accession = {accession: name for name, accession in accessions.items()}
    if contig in by_accession:
        return by_accession[contig], contig
    if ACCESSION.fullmatch(contig):
        return None, contig
    name = contig.removeprefix("chr")
    if name == "M" and build == "GRCh38":
        name = MITOCHONDRION
    if name in accessions:
        return name, accessions[name]
    return None, None


def _accessions(build: str) -> dict[str, str]:
    numbered = zip(CHROMOSOMES, VERSIONS[build], strict=True)
    found = {name: f"NC_{number:06}.{version}" for number, (name, version) in enumerate(numbered, start=1)}
    return {**found, MITOCHONDRION: REVISED_CAMBRIDGE}


def loinc(code: str, display: str) -> Json:
    """CodeableConcept of a LOINC code or answer."""
    return {"coding": [{"system": LOINC, "code": code, "display": display}]}
