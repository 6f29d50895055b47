from pathlib import Path

import pytest

from medflow.errors import ConfigurationError
from medflow.genomics.sample_sheet import read_sample_sheet
from medflow.records import Identifier, fhir_identifier


@pytest.fixture
def sheet(tmp_path: Path):
    def write(text: str | bytes) -> dict[str, Identifier]:
        path = tmp_path / "sheet.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_sample_sheet(path, "local")

    return write


def test_a_sample_is_given_by_an_identifier_or_by_a_reference(sheet) -> None:
    by_identifier = sheet('\ufeffrun,Sample,system,value\n1,S1,urn:mrn," 7 "\n\n2,S2,urn:mrn,8\n1,S1,urn:mrn,7\n')
    by_reference = sheet("sample,patient\nS1,Patient/p1\n")
    by_either = sheet("sample,system,value,patient\nS1,,,Patient/p1\nS2,urn:mrn,8\n")

    seven, eight = Identifier(system="urn:mrn", value="7"), Identifier(system="urn:mrn", value="8")
    assert by_identifier == {"S1": seven, "S2": eight}
    assert by_reference == {"S1": fhir_identifier("local", "p1")}
    assert by_either == {"S1": fhir_identifier("local", "p1"), "S2": eight}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: column sample is missing"),
        ("system,value\nurn:x,SECRET\n", "line 1: column sample is missing"),
        ("sample;system;value\nSECRET;urn:x;1\n", "line 1: column sample is missing"),
        ("sample,system\nSECRET,urn:x\n", "line 1: columns system and value are missing"),
        ("sample,sample,patient\na,SECRET,Patient/1\n", "line 1: column sample is there twice"),
        ("sample,system,value\nS1,urn:x,1\n,urn:x,SECRET\n", "line 3: column sample is empty"),
        ("sample,system,value\nSECRET,,1\n", "line 2: column system is empty"),
        ("sample,system,value\nSECRET,urn:x\n", "line 2: column value is empty"),
        ("sample,patient\nSECRET,\n", "line 2: column patient is empty"),
        ("sample,patient\nS1,Practitioner/SECRET\n", "line 2: column patient must be a FHIR reference"),
        ("sample,system,value,patient\nS1,urn:x,SECRET,Patient/1\n", "line 2: column patient: beside system and value"),
        ("sample,patient\nS1,Patient/1,SECRET\n", "line 2: it has more columns than the first line"),
        ("sample,patient\nS1,Patient/1\nS1,Patient/SECRET\n", "line 3: column sample: an earlier line"),
        ('sample,patient\n"SECRET,Patient/1\n', "it is not CSV"),
        (b"sample,patient\n\xffSECRET,Patient/1\n", "is not UTF-8 text"),
    ],
)
def test_a_wrong_sheet_is_told_by_line_and_column_and_without_its_values(sheet, text, said) -> None:
    with pytest.raises(ConfigurationError) as told:
        sheet(text)

    assert said in told.value.message and "SECRET" not in told.value.message


def test_a_sheet_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.csv cannot be read"):
        read_sample_sheet(tmp_path / "gone.csv", "local")
