"""Label tables: what is read of them, and what is said of one that cannot be."""

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from medflow.config import LabelTable
from medflow.errors import ConfigurationError
from medflow.evaluation.labels import Label, outcome_choices, read_labels
from medflow.records import Instant
from tests.results import MORTALITY
from tests.stays import Letters

LETTER = Letters.spec.outputs[0]


def table(tmp_path: Path, text: str | bytes, **options) -> LabelTable:
    path = tmp_path / "secret-name.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return LabelTable(path=path, **options)


def test_a_table_is_read_line_by_line(tmp_path):
    text = "\ufeffward,encounter,outcome,known_at\nA,e1,1,2026-01-02T00:00:00Z\nB, e2 ,False,\nC,e3,,\n"

    found = read_labels(table(tmp_path, text), MORTALITY, None)

    known = Instant.of(datetime(2026, 1, 2, tzinfo=UTC)).utc_us
    assert (found.by, found.system) == ("encounter", None)
    assert found.lines == (
        Label(name="e1", outcome=1, known_us=known),
        Label(name="e2", outcome=0, known_us=None),
        Label(name="e3", outcome=None, known_us=None),
    )


def test_a_table_with_other_names_is_described_by_its_configuration(tmp_path):
    options = {"unit": "patient", "column": "RecordID", "system": "urn:r", "outcome": "died", "known": "when"}
    given = table(tmp_path, "RecordID,died,when\n12,1,2026-01-02T01:00\n", **options)

    found = read_labels(given, MORTALITY, ZoneInfo("Europe/Berlin"))

    assert (found.by, found.system, found.lines[0].name) == ("patient", "urn:r", "12")
    assert found.lines[0].known_us == Instant.of(datetime(2026, 1, 2, tzinfo=UTC)).utc_us


def test_a_class_may_be_named_or_coded():
    choices = outcome_choices(LETTER)

    assert choices["mostly-c"] == choices["L-mostly-c"] == 1
    assert "1" not in choices


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("encounter,outcome\ne1,maybe-Smith\n", "the outcome in line 2 of the label table is none of: 0, 1"),
        ("encounter,outcome\ne1,1\n,1\n", "line 3 of the label table has no encounter"),
        ("encounter,outcome\ne1\n", "line 2 of the label table does not have as many cells"),
        ("encounter,outcome\ne1,1,Smith\n", "line 2 of the label table does not have as many cells"),
        ("encounter,patient,outcome\n", "exactly one column of"),
        ("name,outcome\nSmith,1\n", "exactly one column of"),
        ("encounter,died\ne1,1\n", "no column 'outcome'"),
        ("encounter,outcome,known_at\ne1,1,Smith\n", "the time in line 2 of the label table is not ISO 8601"),
        ("encounter,outcome,known_at\ne1,1,2026-01-02T00:00\n", "has no zone"),
        (b"encounter,outcome\nSm\xefth,1\n", "not UTF-8"),
        ('encounter,outcome\n"e1"x,1\n', "after line 1 the label table is not CSV"),
        ("", "exactly one column of"),
    ],
)
def test_a_table_that_cannot_be_read_is_a_sentence_without_its_content(tmp_path, text, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_labels(table(tmp_path, text), MORTALITY, None)

    assert "Smith" not in caught.value.message
    assert "secret-name" not in caught.value.message


def test_a_table_that_is_not_there_is_a_sentence():
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_labels(LabelTable(path=Path("nowhere.csv")), MORTALITY, None)
