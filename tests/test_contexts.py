"""How results name what they are of: a sample of a file, and a sequence whoever sent it."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import pytest

from medflow.config import Settings
from medflow.contexts import context_of, identity_of, read_about
from medflow.fhir.write import ResultContext, result_resources
from medflow.plugin import Model, ModelSpec, SequenceInput
from medflow.records import FhirResource, Instant, Result, Sequence, Unit, UnitKind, VariantFile
from medflow.registry import RegisteredModel
from medflow.store import Store
from medflow.store.clinical import ClinicalWriter
from medflow.store.genomics import store_variant_file
from medflow.store.jobs import Job
from medflow.store.packed import pack
from tests.results import BASES, CALLED, SPLICE, SPLICING, VARIANTS, effects_on, model, parsed

Contexts = Callable[[ModelSpec, UnitKind, int], list[ResultContext]]
FILE = VariantFile(sha256="ab" * 32, size=1, version="VCFv4.2", samples=("tumour", "blood"), records=1, build="GRCh38")


@pytest.fixture
def contexts(local: Store, settings: Settings) -> Contexts:
    """Of the first units of a kind, each scored by a model of this spec."""

    def never() -> Model:
        raise AssertionError("no model is loaded to name what a result is of")

    def made(spec: ModelSpec, kind: UnitKind, count: int) -> list[ResultContext]:
        given = RegisteredModel(
            spec=replace(spec, unit=kind), distribution="x", entry_point="x", digest="d" * 64, factory=never
        )
        moment = Instant(utc_us=0)
        jobs = [
            Job(id=key, unit=Unit(kind=kind, id=key), revision=0, input_key="k", prediction_time=moment, attempts=1)
            for key in range(1, count + 1)
        ]
        with local.reading() as connection:
            about = read_about(connection, settings, given, jobs)
        return [context_of(identity_of(given), settings, job, about, moment, ()) for job in jobs]

    return made


@pytest.fixture
def other_source(settings: Settings) -> str:
    return f"{settings.source}-other"


def test_two_samples_of_one_file_have_results_of_their_own(local: Store, contexts: Contexts) -> None:
    with local.writing() as connection:
        store_variant_file(connection, FILE, [None, None])

    jobs = contexts(model(SPLICING, accepts=VARIANTS).spec, UnitKind.SAMPLE, 2)
    found = [result_resources(job, [effects_on(CALLED)]) for job in jobs]

    assert [job.inputs[0].display for job in jobs] == ["sample tumour", "sample blood"]
    assert not {item.id for item in found[0]} & {item.id for item in found[1]}


def test_a_specimen_of_another_system_is_named_by_identifier(
    local: Store, contexts: Contexts, other_source: str
) -> None:
    with local.writing() as connection:
        store_variant_file(connection, FILE, [None, None], [("Specimen/s7", other_source), None])

    [job] = contexts(model(SPLICING, accepts=VARIANTS).spec, UnitKind.SAMPLE, 1)
    variant, score, *_ = parsed(result_resources(job, [effects_on(CALLED)]))

    assert "reference" not in variant["specimen"]
    assert variant["specimen"] == score["specimen"]
    assert variant["specimen"]["identifier"]["value"] == "Specimen/s7"
    assert variant["derivedFrom"][0]["identifier"]["value"] == f"urn:sha256:{FILE.sha256}"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_sequence_is_named_by_its_content_and_as_a_resource_only_where_it_is_one(
    elsewhere: bool, local: Store, settings: Settings, contexts: Contexts, other_source: str
) -> None:
    digest = sha256(b"ACGT" * 15).hexdigest()
    sequence = Sequence(name="MolecularSequence/s1", bases="ACGT" * 15, sha256=digest)
    source = other_source if elsewhere else settings.source
    resource = FhirResource(
        source=source, type="MolecularSequence", id="s1", raw=b"{}", sha256="0" * 64, sequence=sequence
    )
    with local.writing() as connection:
        ClinicalWriter(source).write(connection, [pack(resource)])
    spec = model(SPLICE, accepts=SequenceInput(length=BASES.length)).spec

    [job] = contexts(spec, UnitKind.SEQUENCE, 1)
    [found, _] = parsed(result_resources(job, [Result(output="site", value=0.7, probabilities=(0.2, 0.7, 0.1))]))

    [basis] = found["derivedFrom"]
    assert basis["identifier"] == {"system": "urn:ietf:rfc:3986", "value": f"urn:sha256:{digest}"}
    assert basis.get("reference") == (None if elsewhere else "MolecularSequence/s1")
