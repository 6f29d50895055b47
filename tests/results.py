"""Results of made-up models, for the tests of what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson

from medflow.fhir.write import ModelIdentity, ResultContext, catalog_resources, result_resources
from medflow.plugin import (
    Classification,
    ClassLabel,
    Coding,
    ImagingInput,
    InputSpec,
    Measure,
    ModelCard,
    ModelSpec,
    OutputSpec,
    Risk,
    Segment,
    SequenceInput,
    TimeSeriesInput,
    VariantEffect,
)
from medflow.records import (
    CalledVariant,
    Identifier,
    InputReference,
    Instant,
    Outgoing,
    Result,
    Subject,
    Unit,
    UnitKind,
    VariantScore,
    digest_of,
)

SNOMED = "http://snomed.info/sct"
PREDICTION_TIME = Instant(utc_us=1_325_548_800_000_000)  # 2012-01-03T00:00Z
ISSUED = Instant(utc_us=1_700_000_000_123_456)
SERIES = ImagingInput(modality=("CT",))
STAY = TimeSeriesInput(channels=(), window=timedelta(hours=48), step=timedelta(hours=1))
BASES = SequenceInput(length=60)
VARIANTS = SequenceInput(length=60, source="variants", assembly="GRCh38", strand="both")

MORTALITY = Risk(
    name="mortality",
    code=Coding(system="urn:test:score", code="mortality", display="In-hospital mortality"),
    outcome=Coding(system=SNOMED, code="419099009", display="Dead"),
    horizon=timedelta(days=30),
    threshold=0.3,
)
SPLEEN = Segment(
    name="spleen", body_site=Coding(system=SNOMED, code="78961009", display="Spleen"), valid_ml=(0.0, 5000.0)
)
PNEUMONIA = Classification(
    name="pneumonia",
    code=Coding(system=SNOMED, code="233604007", display="Pneumonia"),
    classes=(
        ClassLabel(name="normal", code=Coding(system=SNOMED, code="17621005", display="Normal")),
        ClassLabel(name="pneumonia", code=Coding(system=SNOMED, code="233604007", display="Pneumonia")),
    ),
    positive="pneumonia",
    threshold=0.5,
    indeterminate=0.05,
)
SPLICE = Classification(
    name="site",
    code=Coding(system="urn:test:sequence", code="splice-site"),
    classes=tuple(
        ClassLabel(name=name, code=Coding(system="urn:test:splice", code=name)) for name in ("EI", "IE", "N")
    ),
)
SPLICING = VariantEffect(
    name="splicing",
    code=Coding(system="urn:test:sequence", code="splice-effect", display="Effect on splicing"),
    effects=tuple(
        ClassLabel(name=name, code=Coding(system="urn:test:splice-effect", code=name.replace(" ", "-")))
        for name in ("donor change", "acceptor change")
    ),
    report_from=0.2,
)
DENSITY = Measure(
    name="density",
    code=Coding(system="urn:test:measure", code="density"),
    unit="[hnsf'U]",
    valid_range=(-1024.0, 3071.0),
)

STUDY = InputReference(
    type="ImagingStudy",
    identifier=Identifier(system="urn:dicom:uid", value="urn:oid:1.2.3.4"),
    display="series urn:oid:1.2.3.4.5",
)
ENCOUNTER = InputReference(type="Encounter", reference="Encounter/e1")
SEQUENCE = InputReference(
    type="MolecularSequence", identifier=Identifier(system="urn:ietf:rfc:3986", value=f"urn:sha256:{'ab' * 32}")
)
SPECIMEN = InputReference(type="Specimen", reference="Specimen/s1")
CALLED = CalledVariant(
    contig="chr7",
    position=117_559_590,
    ref="ATCT",
    alt="A",
    zygosity="heterozygous",
    phase="117559590:2",
    depths=(21, 17),
    gene="CFTR",
)


def variant_file(name: str = "file") -> InputReference:
    """A VCF, of which a sample was scored."""
    digest = Identifier(system="urn:ietf:rfc:3986", value=f"urn:sha256:{digest_of(name)}")
    return InputReference(type="DocumentReference", identifier=digest, display="sample s1")


def effects_on(*variants: CalledVariant, score: float = 0.5, **changes: Any) -> Result:
    """What a model of `SPLICING` says of a sample with these variants, and of 40 that it does not report."""
    scores = tuple(VariantScore(variant=item, score=score, effects=(-score, score / 4)) for item in variants)
    counts = {"scored": 40 + len(scores), "reported": len(scores), "low-quality": 3}
    result = Result(output="splicing", value=score, variants=scores, build="GRCh38", scores="ef" * 32, counts=counts)
    return replace(result, **changes)


def model(*outputs: OutputSpec, accepts: InputSpec = SERIES, name: str = "test-model") -> ModelIdentity:
    """A model that declares these outputs."""
    card = ModelCard(
        intended_use="None: it is made up.", training_data="None.", licence="CC0-1.0", metrics={"AUROC": "0.5 (coin)"}
    )
    spec = ModelSpec(
        name=name,
        version="1.2.0",
        title="A model made up for tests",
        unit=UnitKind.SERIES,
        accepts=(accepts,),
        outputs=outputs,
        card=card,
    )
    return ModelIdentity(name=name, version="1.2.0", digest="d" * 64, spec=spec, distribution="test-models 1.2.0")


def context(of: ModelIdentity, **changes: Any) -> ResultContext:
    """A job of that model on a study of patient 7, who is Patient/p7."""
    plain = ResultContext(
        model=of,
        unit=Unit(kind=UnitKind.SERIES, id=3),
        subject=Subject(patient_id=7, reference="Patient/p7"),
        input_key="k" * 64,
        prediction_time=PREDICTION_TIME,
        effective=PREDICTION_TIME,
        issued=ISSUED,
        inputs=(STUDY,),
    )
    return replace(plain, **changes)


def risk_of(patient: int, chance: float = 0.25, **changes: Any) -> list[Outgoing]:
    """The three resources of a mortality risk of one patient."""
    subject = Subject(patient_id=patient, reference=f"Patient/p{patient}")
    job = context(model(MORTALITY, accepts=STAY), subject=subject, inputs=(ENCOUNTER,), **changes)
    return result_resources(job, [Result(output="mortality", value=chance)])


def catalog() -> list[Outgoing]:
    """The Device and the model card that `risk_of` refers to."""
    return catalog_resources(model(MORTALITY, accepts=STAY))


def parsed(outgoing: Sequence[Outgoing]) -> list[dict[str, Any]]:
    """The resources themselves."""
    return [orjson.loads(item.body) for item in outgoing]
