"""Logs for machines: every line of stderr is a JSON object, and none says anything of a patient."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from medflow.config import LogSettings
from medflow.logs import set_up_logging
from medflow.sample import SampleData, pydicom_files, write_sample
from tests.distributions import environment, medflow, write_distribution

GC = "from tests import models\n\nclass GcContent(models.GcContent):\n    pass\n"


@pytest.fixture
def start() -> Iterator[Callable[[], logging.Logger]]:
    """Begins to log as JSON from DEBUG on, to what stderr is then; undone afterwards."""
    hook = sys.excepthook

    def started() -> logging.Logger:
        set_up_logging(LogSettings(log_format="json", log_level="DEBUG"))
        return logging.getLogger("medflow.tests")

    yield started
    sys.excepthook = hook
    logging.captureWarnings(False)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_has_its_time_level_logger_message_and_ids(
    start: Callable[[], logging.Logger], capfd: pytest.CaptureFixture[str]
) -> None:
    start().info("job %d began", 7, extra={"job": 7, "model": "one", "patient": "Doe"})

    (line,) = lines(capfd.readouterr().err)
    at = datetime.fromisoformat(str(line.pop("time")))
    assert at.utcoffset() is not None and not at.utcoffset()
    assert line == {
        "level": "INFO",
        "logger": "medflow.tests",
        "message": "job 7 began",
        "job": 7,
        "model": "one",
    }


def test_of_an_exception_there_is_its_type_and_place_and_not_its_words(
    start: Callable[[], logging.Logger], capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        raise ValueError("Doe^John")
    except ValueError:
        start().exception("failed")

    text = capfd.readouterr().err
    (line,) = lines(text)
    assert line["error"] == "ValueError"
    assert "test_logs.py" in str(line["at"])
    assert "Doe" not in text


def test_what_a_library_that_reads_data_says_is_not_repeated(
    start: Callable[[], logging.Logger], capfd: pytest.CaptureFixture[str]
) -> None:
    start()
    logging.getLogger("pydicom").setLevel(logging.WARNING)  # whatever reading files in this process made of it
    logging.getLogger("pydicom").warning("invalid value %r", "Doe^John")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("invalid value 'Doe^John'", stacklevel=1)

    text = capfd.readouterr().err
    assert [line["logger"] for line in lines(text)] == ["pydicom", "py.warnings"]
    assert "Doe" not in text


def identifying(sample: SampleData) -> set[str]:
    """Every name, identifier and birth date that the sample's records and pictures hold."""
    words: set[str] = set()
    for stay in sample.stays:
        person = stay.person
        words |= {
            person.family_name,
            person.given_name,
            person.mrn,
            str(person.birth_date),
            f"{person.birth_date:%Y%m%d}",
        }
    return words


@pytest.mark.slow
def test_a_night_in_json_says_nothing_of_a_patient(tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "sample")
    plugins = write_distribution(tmp_path / "plugins", "gc-plugin", GC, {"gc-content": "GcContent"})
    sources = {
        "records": {"kind": "fhir", "paths": [str(sample.fhir)]},
        "imaging": {"kind": "dicom", "paths": [str(sample.dicom), *map(str, pydicom_files()[:40])]},
        "variants": {"kind": "vcf", "paths": [str(sample.vcf)], "reference": str(sample.reference)},
        "sequences": {"kind": "fasta", "paths": [str(sample.fasta)]},
    }
    env = environment(
        tmp_path / "home",
        plugins,
        MEDFLOW_LOG_FORMAT="json",
        MEDFLOW_LOG_LEVEL="DEBUG",
        MEDFLOW_SOURCES=json.dumps(sources),
        MEDFLOW_ISSUER_SYSTEMS=json.dumps(dict(sample.issuer_systems)),
        PREFECT_LOGGING_LEVEL="INFO",
    )
    commands = (
        ("nightly", "--to", tmp_path / "out", "--json"),
        ("status", "--json"),
        ("retry", "rejects", "--json"),
        ("deliver", "--to", "ftp://nowhere", "--json"),  # cannot run: the reason is a line as all others
    )

    done = [medflow(env, *command, timeout=600) for command in commands]

    assert done[0].returncode in (0, 3), done[0].stderr
    assert done[-1].returncode == 1
    assert {name: line["attempt_status"] for name, line in json.loads(done[1].stdout)["sources"].items()} == (
        dict.fromkeys(sources, "completed")
    )
    said = "".join(one.stderr for one in done)
    found = lines(said)
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, found))
    assert {"medflow.steps", "prefect.flow_runs"} <= {str(line["logger"]) for line in found}
    assert any("run" in line for line in found)
    words = identifying(sample)
    assert len(words) > 3 * len(sample.stays)
    assert {word for word in words if word in said} == set()
