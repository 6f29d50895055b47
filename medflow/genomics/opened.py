"""The reference genomes and regions of a site, opened once a process: an index of a human genome takes seconds.

A file that was replaced since is opened anew, so that a process that stays sees what the next one would.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from threading import Lock

from medflow.errors import ConfigurationError
from medflow.genomics.assembly import belied
from medflow.genomics.reference import Reference
from medflow.genomics.regions import Regions, regions_of
from medflow.genomics.site import GenomeSite

_lock = Lock()
_references: dict[Hashable, Reference] = {}
_regions: dict[Hashable, Regions | None] = {}


def opened_reference(site: GenomeSite, assembly: str) -> Reference | None:
    """The site's reference genome of this assembly; None where it has none.

    Raises
    ------
    ConfigurationError
        It cannot be used, or is of another assembly by the lengths of its chromosomes.
    """
    path = site.references.get(assembly)
    if path is None:
        return None
    with _lock:
        stamp = _stamp([path, path.with_name(path.name + ".fai")])
        if stamp not in _references:
            _references[stamp] = Reference(path)
        found = _references[stamp]
    for other in belied(assembly, found.lengths):  # few variants would agree with it by chance
        raise ConfigurationError(
            f"the reference that is configured as {assembly} has chromosomes as long as in {other}: correct "
            "MEDFLOW_REFERENCES (`medflow doctor` names them)"
        )
    return found


def opened_regions(site: GenomeSite, *, whole: bool = False) -> Regions | None:
    """The regions that the site wants scored; where it names none, all of it for a file that goes ``whole``, or None.

    Raises
    ------
    ConfigurationError
        They cannot be read.
    """
    named = [site.regions if isinstance(site.regions, Path) else None, site.genes, site.gene_bed]
    with _lock:
        stamp = (whole, site.regions == "all", *_stamp(named))
        if stamp not in _regions:
            _regions[stamp] = regions_of(site, whole=whole)
        return _regions[stamp]


def _stamp(paths: Iterable[Path | None]) -> tuple[Hashable, ...]:
    """What tells one state of files from another; a file that is not there has a state as well."""
    return tuple(_state(path) for path in paths)


def _state(path: Path | None) -> Hashable:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return str(path), None
    return str(path), found.st_mtime_ns, found.st_size, found.st_ino
