"""A laboratory's sample sheet: whose each sample of a VCF file is, as CSV.

Columns are found by their names in the first line: ``sample``, and ``system`` with ``value`` (an identifier of the
patient), or ``patient`` (a FHIR reference, Patient/ID). Others are passed over.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from medflow.errors import ConfigurationError
from medflow.records import Identifier, fhir_identifier

SAMPLE, SYSTEM, VALUE, PATIENT = "sample", "system", "value", "patient"
_REFERENCE = re.compile(r"Patient/([A-Za-z0-9\-.]{1,64})")


def read_sample_sheet(path: Path, source: str) -> dict[str, Identifier]:
    """The patient's identifier of each sample, by the sample's name; ``source`` is the system that Patient/ID is of.

    Raises
    ------
    ConfigurationError
        The sheet cannot be read, lacks a column or a value, or gives a sample to two patients. It names line and
        column, never a value.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, file, source)
    except OSError as error:
        raise ConfigurationError(f"the sample sheet {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the sample sheet {path} is not UTF-8 text: save it as CSV in UTF-8") from None


def _read(path: Path, file: Iterator[str], source: str) -> dict[str, Identifier]:
    rows = csv.reader(file, strict=True)
    found: dict[str, Identifier] = {}
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        _check_header(path, header)
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(header):
                raise _wrong(path, rows.line_num, "it has more columns than the first line")
            cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
            name = _cell(path, rows.line_num, cells, SAMPLE)
            identifier = _identifier(path, rows.line_num, header, cells, source)
            if found.setdefault(name, identifier) != identifier:
                raise _wrong(path, rows.line_num, f"column {SAMPLE}: an earlier line gives it to another patient")
    except csv.Error:
        raise _wrong(path, rows.line_num, "it is not CSV (quotation marks that do not close, perhaps)") from None
    return found


def _check_header(path: Path, header: list[str]) -> None:
    for name in (SAMPLE, SYSTEM, VALUE, PATIENT):
        if header.count(name) > 1:
            raise _wrong(path, 1, f"column {name} is there twice")
    if SAMPLE not in header:
        raise _wrong(path, 1, f"column {SAMPLE} is missing; the first line names the columns, separated by commas")
    if PATIENT not in header and not {SYSTEM, VALUE} <= set(header):
        raise _wrong(path, 1, f"columns {SYSTEM} and {VALUE} are missing, or column {PATIENT} instead of them")


def _identifier(path: Path, line: int, header: list[str], cells: dict[str, str], source: str) -> Identifier:
    reference = cells.get(PATIENT, "")
    if reference and (cells.get(SYSTEM) or cells.get(VALUE)):
        raise _wrong(path, line, f"column {PATIENT}: beside {SYSTEM} and {VALUE} it must be empty")
    if reference:
        matched = _REFERENCE.fullmatch(reference)
        if matched is None:
            raise _wrong(path, line, f"column {PATIENT} must be a FHIR reference, Patient/ID")
        return fhir_identifier(source, matched[1])
    if not {SYSTEM, VALUE} <= set(header):
        raise _wrong(path, line, f"column {PATIENT} is empty")
    return Identifier(system=_cell(path, line, cells, SYSTEM), value=_cell(path, line, cells, VALUE))


def _cell(path: Path, line: int, cells: dict[str, str], column: str) -> str:
    if not cells.get(column):
        raise _wrong(path, line, f"column {column} is empty")
    return cells[column]


def _wrong(path: Path, line: int, reason: str) -> ConfigurationError:
    return ConfigurationError(f"the sample sheet {path}, line {line}: {reason}", line=line)
