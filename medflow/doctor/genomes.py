"""What variants are scored with: reference genomes, the regions wanted, and the laboratory's sample sheet."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from medflow.config import Settings
from medflow.doctor.finding import FAILED, OK, WARNING, Said
from medflow.genomics.assembly import LENGTHS, belied, chromosomes_of, contigs_of
from medflow.genomics.site import GenomeSite

SMALL = 256 << 20  # bytes of a FASTA file whose index is made in seconds
NAMED = 5  # contigs that a message lists


def reference(assembly: str, path: Path) -> Iterator[Said]:
    """Whether it can be read at any place without a wait, and is the assembly that it is configured as."""
    path = path.expanduser()
    if assembly not in LENGTHS:
        yield FAILED, f"no model asks for an assembly {assembly}: name it {' or '.join(LENGTHS)} in MEDFLOW_REFERENCES"
    if not path.is_file():
        yield FAILED, f"{path} is not there, or no file: correct MEDFLOW_REFERENCES"
        return
    if not os.access(path, os.R_OK):
        yield FAILED, f"this user may not read {path}"
        return
    stale = unindexed(path)
    if stale and path.stat().st_size > SMALL:
        yield (
            WARNING,
            f"{stale}: whether its contigs are of {assembly} is not checked, and each process that scores variants "
            f"makes an index of its own first, about a minute for a human genome; make it once: {_command(path)}",
        )
        return
    from medflow.genomics.reference import Reference  # pyfaidx is no light import

    with Reference(path) as opened:
        _ = opened.identity  # some bases of every contig are read
        lengths = dict(opened.lengths)
    yield from _is_assembly(assembly, lengths)
    kept = "its index lies beside it" if not stale else f"{stale}, and it is small enough to do without"
    yield OK, f"{path.name}: {len(lengths)} contigs; {kept}"


def _command(path: Path) -> str:
    """What makes the index; the latter comes with pyfaidx, which is installed here."""
    quoted = shlex.quote(str(path))
    return f"`samtools faidx {quoted}` or `faidx --no-output {quoted}`"


def unindexed(path: Path) -> str:
    """Why the index beside a FASTA file is of no use; empty where it can be used."""
    index = path.with_name(path.name + ".fai")
    if not index.exists():
        return f"no index {index.name} lies beside it"
    return f"{index.name} is older than the file" if index.stat().st_mtime < path.stat().st_mtime else ""


def _is_assembly(assembly: str, lengths: Mapping[str, int]) -> Iterator[Said]:
    """By the lengths of its chromosomes: another assembly's are a contradiction, unknown ones may be a part of it."""
    if assembly not in LENGTHS:
        return
    fitting, named = contigs_of(lengths), chromosomes_of(lengths)
    others = belied(assembly, lengths)
    for other, found in others.items():
        yield (
            FAILED,
            f"{_listed(found)} are as long as in {other}, and it is configured as {assembly}: variants would be read "
            "from the wrong places; correct MEDFLOW_REFERENCES",
        )
    if others:
        return
    strange = [name for name in named if name not in fitting[assembly]]
    if strange:
        yield (
            WARNING,
            f"{_listed(strange)} are of another length than in {assembly}: is this a part, or another genome?",
        )
    elif not named:
        yield (
            WARNING,
            f"none of its contigs is called as a chromosome (1 or chr1): whether it is {assembly} cannot be told, and "
            "a VCF's contigs may not be found in it",
        )
    else:
        yield OK, f"{len(named)} chromosomes are as long as in {assembly}"


def regions(settings: Settings) -> Iterator[Said]:
    """Whether what is to be scored can be read, every gene has a place, and the references have those contigs."""
    from medflow.genomics.regions import regions_of  # numpy

    found = regions_of(GenomeSite.of(settings))
    if found is None:
        yield (
            WARNING,
            "nothing says which variants are wanted: files of more than 20,000 records are not scored (no-regions); "
            'set MEDFLOW_REGIONS to a BED file or "all", or MEDFLOW_GENES',
        )
        return
    if found.everything:
        yield OK, "variants are scored wherever they are"
        return
    bounds = found.by_contig.values()
    bases = sum(int((ends - starts).sum()) for starts, ends in bounds)
    yield OK, f"{sum(len(starts) for starts, _ in bounds)} intervals of {bases:,} bases on {len(bounds)} contigs"
    for assembly, path in settings.references.items():
        yield from _on_reference(assembly, path.expanduser(), list(found.by_contig))


def _on_reference(assembly: str, path: Path, contigs: list[str]) -> Iterator[Said]:
    """Whether a reference has the contigs of the regions."""
    if not path.is_file():  # which is told of the reference itself
        return
    if unindexed(path) and path.stat().st_size > SMALL:
        yield WARNING, f"not compared with the contigs of {assembly}, which has no index of use: {_command(path)}"
        return
    from medflow.genomics.reference import Reference

    with Reference(path) as opened:
        missing = [name for name in contigs if not opened.has(name, assembly)]
    if missing:
        yield (
            WARNING,
            f"the reference of {assembly} has no {_listed(missing)}: what lies there is not scored; are the regions of "
            "another assembly, or their contigs named otherwise?",
        )


def sample_sheet(settings: Settings) -> Iterator[Said]:
    """Whether the sheet that names patients can be read; none of them is told."""
    from medflow.genomics.sample_sheet import read_sample_sheet

    assert settings.sample_sheet is not None  # noqa: S101 - there is no check otherwise
    found = read_sample_sheet(settings.sample_sheet.expanduser(), settings.source)
    if found:
        yield OK, f"{len(found)} samples of {len(set(found.values()))} patients"
    else:
        yield WARNING, "it names no sample: every sample of a VCF file will be a reject (sample-unknown)"


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
