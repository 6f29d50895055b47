"""Why each series or study is taken or not: in the same words and to the same effect as the selection, and private."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import update

from medflow import selection, steps
from medflow.errors import ConfigurationError
from medflow.ingest.dicom import ingest_dicom
from medflow.plugin import Model, ModelSpec
from medflow.records import Instant
from medflow.registry import Registry
from medflow.selection import Explanation, Line, explain_selection
from medflow.store import Store, jobs
from medflow.store.tables import JobRow
from tests.distributions import environment, medflow, write_distribution
from tests.factories_dicom import slice_of, volume_of, write_series
from tests.imaging_models import BrightTissue, Enhancement
from tests.imaging_objects import LATE, object_of, patients, put
from tests.models import GcContent, registered

BONE = replace(BrightTissue.spec.accepts[0], descriptions=("bone",), min_slices=3)  # type: ignore[type-var]  # an ImagingInput


class Bone(BrightTissue):
    """Asks for a description."""

    spec: ClassVar[ModelSpec] = replace(BrightTissue.spec, name="bone", accepts=(BONE,))


def _explain(store: Store, model: type[Model] = Bone, **options: Any) -> Explanation:
    return explain_selection(store, registered(model), **{"as_of": LATE, "limit": 50, **options})


def _said(line: Line) -> tuple[str, str, list[str]]:
    return str(line.unit), line.verdict, [reason.words for reason in line.reasons]


def _volume(series: str, slices: int = 3, **changes: Any) -> list[Any]:
    return [object_of(number, series=series, **changes) for number in range(slices)]


def _select(store: Store, settings: Any, model: type[Model]) -> int:
    found = registered(model)
    site = steps.Site(settings=settings, store=store, registry=Registry(models={found.name: found}, broken=()))
    return steps.select(site, found).selected


def test_each_series_says_why_it_is_taken_or_not(store: Store) -> None:
    (patient,) = patients(store, "a")
    put(store, _volume("1.1.1", description="Bone 2.0"), patient)
    put(store, _volume("1.1.2", slices=2, description="Doe^John"), patient)
    put(store, _volume("1.2.1", study="1.2", description="bone", modality="MR"))

    told = _explain(store)

    assert [_said(line) for line in told.lines] == [
        ("series/3", "not-taken", ["modality MR, not CT", "no known patient"]),
        ("series/2", "not-taken", ["neither description nor protocol matches /bone/", "2 slices, fewer than 3"]),
        ("series/1", "due", ["the next `medflow score` takes it"]),
    ]
    assert dict(told.verdicts) == {"not-taken": 2, "due": 1}
    assert told.reasons == {"modality": 1, "no-patient": 1, "description": 1, "too-few-slices": 1}


def test_what_is_due_is_what_is_selected_and_explaining_changes_nothing(store: Store, settings: Any) -> None:
    (patient,) = patients(store, "a")
    put(store, _volume("1.1.1", description="bone"), patient)
    put(store, _volume("1.1.2", description="soft"), patient)

    before = _explain(store)
    with store.reading() as connection:
        assert jobs.list_jobs(connection, states=["ready"]) == []
    selected = _select(store, settings, Bone)
    after = _explain(store)

    assert (before.verdicts["due"], selected) == (1, 1)
    assert _said(after.lines[1]) == ("series/1", "waiting", ["job 1 is ready"])
    assert after.lines[1].job == 1


@pytest.mark.parametrize(
    ("state", "code", "verdict", "words"),
    [
        ("done", None, "scored", "scored already: job 1 is done"),
        ("dead", "irregular-gaps", "refused", "refused: irregular-gaps (job 1)"),
        ("failed", "transient", "waiting", "job 1 is failed (transient)"),
        ("leased", None, "waiting", "job 1 is leased"),
    ],
)
def test_what_became_of_a_series_is_said(
    store: Store, settings: Any, state: str, code: str | None, verdict: str, words: str
) -> None:
    (patient,) = patients(store, "a")
    put(store, _volume("1.1.1", description="bone"), patient)
    _select(store, settings, Bone)
    with store.writing() as connection:
        connection.execute(update(JobRow).values(state=state, error_code=code))

    (line,) = _explain(store).lines
    assert _said(line) == ("series/1", verdict, [words])

    put(store, [object_of(7, series="1.1.1")], patient)
    (line,) = _explain(store).lines
    assert _said(line) == ("series/1", "due", ["its images changed after job 1"])


def test_a_series_of_the_future_waits(store: Store) -> None:
    (patient,) = patients(store, "a")
    put(store, _volume("1.1.1", description="bone"), patient)

    (line,) = _explain(store, as_of=Instant(utc_us=1)).lines

    assert _said(line)[1:] == ("not-taken", ["acquired after the moment of the selection"])


def test_each_series_of_a_study_says_for_which_input_it_is_taken_or_why_not(store: Store, settings: Any) -> None:
    (patient,) = patients(store, "a")
    put(store, _volume("1.1.1", slice_thickness_mm=1.0), patient)
    put(store, _volume("1.1.2", slice_thickness_mm=3.0), patient)
    assert _said(_explain(store, Enhancement).lines[0]) == ("study/1", "not-taken", ["no series for late"])

    put(store, _volume("1.1.3", contrast=True), patient)
    (line,) = _explain(store, Enhancement).lines

    assert _said(line)[:2] == ("study/1", "due")
    film = "film: modality CT, not CR"
    assert [_said(part) for part in line.series] == [
        ("series/3", "taken", ["as late"]),
        (
            "series/2",
            "not-taken",
            ["plain: series/1 of the study is preferred: thinner slices", "late: no contrast agent was given", film],
        ),
        ("series/1", "taken", ["as plain"]),
    ]
    assert _select(store, settings, Enhancement) == 1
    assert _explain(store, Enhancement).lines[0].verdict == "waiting"


def test_one_series_can_be_asked_for(store: Store) -> None:
    (patient,) = patients(store, "a")
    put(store, _volume("1.1.1", description="bone"), patient)
    put(store, _volume("1.1.2", contrast=True), patient)

    (line,) = _explain(store, series=2).lines
    (study,) = _explain(store, Enhancement, series=2).lines

    assert str(line.unit) == "series/2"
    assert [str(part.unit) for part in study.series] == ["series/2"]
    assert study.verdict == "due"  # with the other series, which has no line
    with pytest.raises(ConfigurationError, match="there is no series 9"):
        _explain(store, series=9)


def test_all_are_counted_and_some_get_a_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "PAGE", 2)
    (patient,) = patients(store, "a")
    for number in range(5):
        put(store, _volume(f"1.1.{number + 1}"), patient)

    told = _explain(store, limit=3)

    assert ([line.unit.id for line in told.lines], told.more) == ([5, 4, 3], 2)
    assert (told.verdicts["not-taken"], told.reasons["description"]) == (5, 5)


def test_a_model_that_reads_no_images_is_not_explained(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="gc-content reads sequence input"):
        _explain(store, GcContent)


def test_what_is_no_image_is_never_taken_for_a_volume(
    store: Store, settings: Any, realdata: Callable[[str], Path]
) -> None:
    """Segmentations, slide microscopy, reports and annotations, by a model that asks for any of their modalities."""
    ingest_dicom(store, settings, [realdata("highdicom")], in_place=True)
    asked = replace(BONE, modality=("SEG", "SM", "SR", "ANN"), descriptions=(), min_slices=1)

    class Greedy(BrightTissue):
        spec: ClassVar[ModelSpec] = replace(BrightTissue.spec, name="greedy", accepts=(asked,))

    told = _explain(store, Greedy)

    assert set(told.verdicts) == {"not-taken"}
    assert told.reasons["not-an-image"] >= 20


# --- the command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An installation with a model of studies and one of series, and a few series of one named patient."""
    folder = tmp_path_factory.mktemp("select")
    code = "from tests import imaging_models\n\nclass Enhancement(imaging_models.Enhancement):\n    pass\n"
    code += "\nclass BrightTissue(imaging_models.BrightTissue):\n    pass\n"
    names = {"enhancement": "Enhancement", "bright-tissue": "BrightTissue"}
    plugins = write_distribution(folder / "plugins", "imaging-plugin", code, names)
    found = environment(folder / "home", plugins)
    secret: dict[str, Any] = {"PatientName": "Doe^Jane", "SeriesDescription": "Jane Doe", "ProtocolName": "Doe"}
    write_series(folder / "in" / "plain", volume_of(4, series=1, **secret))
    write_series(folder / "in" / "late", volume_of(4, series=2, ContrastBolusAgent="Iohexol", **secret))
    write_series(folder / "in" / "few", [slice_of(0, series=3, **secret)])
    assert medflow(found, "ingest", "dicom", folder / "in").returncode == 0
    return found


def test_the_command_explains_and_then_selects(env: dict[str, str]) -> None:
    words = medflow(env, "select", "--model", "bright-tissue", "--explain")
    told = json.loads(medflow(env, "select", "--model", "enhancement", "--explain", "--json").stdout)
    made = medflow(env, "select", "--model", "enhancement", "--json")
    again = medflow(env, "select", "--model", "enhancement")

    assert words.returncode == 0
    assert "bright-tissue takes CT 3D; no scout; 3 slices or more; every series that fits" in words.stdout
    assert "1 slice, fewer than 3" in words.stdout
    assert "in all: 2 due, 1 not-taken" in words.stdout
    assert not any(secret in words.stdout + json.dumps(told) for secret in ("Doe", "Jane", "P1", "1.2.826"))
    assert (told["unit"], told["verdicts"], told["more"]) == ("study", {"due": 1}, 0)
    assert sorted(part["verdict"] for part in told["units"][0]["series"]) == ["not-taken", "taken", "taken"]
    assert json.loads(made.stdout) == {"selected": 1, "models": {"enhancement": 1}, "notes": {}, "broken": {}}
    assert "0 selected" in again.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--explain",), "name it with --model"),
        (("--series", "1"), "--series goes with --explain"),
    ],
)
def test_what_the_command_cannot_do_is_a_sentence(env: dict[str, str], words: tuple[str, ...], said: str) -> None:
    done = medflow(env, "select", *words)

    assert done.returncode == 1
    assert said in done.stderr


def test_models_shows_the_rule(env: dict[str, str]) -> None:
    found = json.loads(medflow(env, "models", "--json").stdout)["models"]

    rules = {model["name"]: model["inputs"] for model in found}
    assert rules["bright-tissue"] == ["CT 3D; no scout; 3 slices or more; every series that fits"]
    assert rules["enhancement"][0].startswith("plain: CT 3D; no scout; without contrast agent; 3 slices or more; ")
    assert rules["enhancement"][2].startswith("film (may be missing): CR 2D; of several the newest")
