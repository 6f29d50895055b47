"""Outcomes from a table that somebody made: one line a unit, in CSV with a header (RFC 4180), UTF-8.

No message quotes a cell: a label is about a patient.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from io import StringIO
from typing import NamedTuple
from zoneinfo import ZoneInfo

from medflow.config import LABEL_UNITS, LabelTable
from medflow.errors import ConfigurationError
from medflow.plugin import Classification, OutputSpec

YES_NO = {"0": 0, "1": 1, "false": 0, "true": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One line: whose outcome it is, by a kind of name; the outcome (None: empty); when it became known, if stated.

    ``happened_us``: when what the outcome says happened, if stated.
    """

    name: str
    outcome: int | None
    known_us: int | None
    happened_us: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """A label table as read; ``by`` says what its names are: unit, encounter, patient, series, study or sequence.

    ``timed``: it has a column of when outcomes happened.
    """

    by: str
    system: str | None
    lines: tuple[Label, ...]
    sha256: str
    timed: bool = False


def read_labels(table: LabelTable, output: OutputSpec, zone: ZoneInfo | None) -> Labels:
    """Read a label table for one output of a model.

    Raises
    ------
    ConfigurationError
        It cannot be read, lacks a column, or a line of it has no valid outcome; the message names the line.
    """
    try:
        data = table.path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"the label table cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigurationError("the label table is not UTF-8: save it as CSV in UTF-8") from None
    reader = csv.DictReader(StringIO(text, newline=""), strict=True)
    try:
        header = list(reader.fieldnames or [])
        by, column = _name_column(table, header)
        known = _column(table.known, header) if table.known else _if_there("known_at", header)
        happened = _column(table.happened, header) if table.happened else _if_there("happened_at", header)
        outcome = _column(table.outcome, header)
        choices = outcome_choices(output)
        lines = tuple(_lines(reader, _Columns(column, outcome, known, happened), choices, zone))
    except csv.Error:
        raise ConfigurationError(f"after line {reader.line_num} the label table is not CSV") from None
    return Labels(by=by, system=table.system, lines=lines, sha256=sha256(data).hexdigest(), timed=happened is not None)


def outcome_choices(output: OutputSpec) -> Mapping[str, int]:
    """What an outcome may be written as, and what it stands for: 0 or 1, or the index of a class."""
    if not isinstance(output, Classification):
        return YES_NO
    classes = range(len(output.classes))
    values = [
        int(label.name == output.positive) if output.positive else index for index, label in enumerate(output.classes)
    ]
    codes = {output.classes[index].code.code: values[index] for index in classes}
    names = {output.classes[index].name: values[index] for index in classes}
    return {**(YES_NO if output.positive else {}), **codes, **names}


def _name_column(table: LabelTable, header: list[str]) -> tuple[str, str]:
    if table.unit is not None:
        return table.unit, _column(table.column or table.unit, header)
    found = [name for name in LABEL_UNITS if name in header]
    if len(found) != 1:
        raise ConfigurationError(
            f"the label table needs exactly one column of: {', '.join(LABEL_UNITS)}; it has {len(found)} "
            "(a table with other names is configured in MEDFLOW_LABELS)"
        )
    return found[0], found[0]


def _column(name: str, header: list[str]) -> str:
    if name not in header:
        raise ConfigurationError(
            f"the label table has no column {name!r} (a table with other names is configured in MEDFLOW_LABELS)"
        )
    return name


def _if_there(name: str, header: list[str]) -> str | None:
    return name if name in header else None


class _Columns(NamedTuple):
    name: str
    outcome: str
    known: str | None
    happened: str | None


def _lines(
    reader: csv.DictReader[str], columns: _Columns, choices: Mapping[str, int], zone: ZoneInfo | None
) -> Iterator[Label]:
    for row in reader:
        place = f"line {reader.line_num} of the label table"
        if None in row or None in row.values():
            raise ConfigurationError(f"{place} does not have as many cells as the header")
        yield Label(
            name=_checked(row[columns.name].strip(), place, f"has no {columns.name}"),
            outcome=_outcome(row[columns.outcome].strip(), choices, place),
            known_us=None if columns.known is None else _moment(row[columns.known].strip(), zone, place),
            happened_us=None if columns.happened is None else _moment(row[columns.happened].strip(), zone, place),
        )


def _checked(name: str, place: str, problem: str) -> str:
    if not name:
        raise ConfigurationError(f"{place} {problem}")
    return name


def _outcome(text: str, choices: Mapping[str, int], place: str) -> int | None:
    if not text:
        return None
    found = choices.get(text, choices.get(text.lower()))
    if found is None:
        raise ConfigurationError(f"the outcome in {place} is none of: {', '.join(choices)}")
    return found


def _moment(text: str, zone: ZoneInfo | None, place: str) -> int | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"the time in {place} is not ISO 8601, for example 2026-01-31T06:00:00+01:00"
        ) from None
    if moment.tzinfo is None and zone is None:
        raise ConfigurationError(f"the time in {place} has no zone: write one, or set MEDFLOW_TIMEZONE")
    return int((moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp() * 1_000_000)
