"""Results of every kind that a model can give: each a job and its answers, for whoever has to take them all."""

from __future__ import annotations

from dataclasses import replace

from medflow.fhir.write import catalog_resources, result_resources
from medflow.plugin import LOINC, Channel, Coding
from medflow.records import (
    CalledVariant,
    Contribution,
    Identifier,
    Mutagenesis,
    Outgoing,
    Result,
    ResultObject,
    Subject,
)
from tests.results import (
    BASES,
    CALLED,
    DENSITY,
    ENCOUNTER,
    MORTALITY,
    PNEUMONIA,
    SEQUENCE,
    SPECIMEN,
    SPLEEN,
    SPLICE,
    SPLICING,
    STAY,
    VARIANTS,
    context,
    effects_on,
    model,
    variant_file,
)

HEAT_MAP = ResultObject(
    kind="heat-map",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.30",
    sop_instance_uid="2.25.1234",
    series_uid="2.25.123",
    study_uid="1.2.3.4",
    sha256="5" * 64,
    size=1,
    content="c",
    outputs=("mortality", "pneumonia"),
)
SEGMENTATION = replace(HEAT_MAP, kind="segmentation", sop_instance_uid="2.25.77", outputs=("spleen",))
COMA = Coding(system=LOINC, code="9269-2", display="Glasgow coma score total")
COMA_STAY = replace(
    STAY,
    channels=(
        Channel(name="GCS", codes=(COMA,), unit="{score}"),
        Channel(name="Urine", codes=(Coding(system=LOINC, code="9187-6"),), unit="mL"),
    ),
)
MOVED = (
    Contribution(kind="channel", name="GCS", value=0.812, share=0.5, steps=(0.8, 0.012), basis="Observation/o7"),
    Contribution(kind="channel", name="Urine", value=-0.4, share=0.25, measured=False),
    Contribution(kind="static", name="age", value=0.1, share=0.0625),
)
SPLICE_MODEL = model(SPLICING, accepts=VARIANTS)
BARE = CalledVariant(contig="HLA-A*01:01", position=7, ref="G", alt="C")  # no accession, nothing known of the call
MITOCHONDRIAL = replace(CALLED, contig="MT", position=3243, ref="A", alt="G", gene="MT-TL1", phase=None)
RESTS_ON = (
    Contribution(kind="position", name="2G>A", value=-3.25, share=0.75),
    Contribution(kind="position", name="1A>T", value=0.5, share=0.25),
)
MUTATED = Mutagenesis(of="EI", changes=((0.0, 0.25, 0.25, 0.5), (-3.25, -3.0, 0.0, -3.0)))
KINDS = {
    "measure": (context(model(DENSITY)), [Result(output="density", value=-55.25)]),
    "segment": (context(model(SPLEEN)), [Result(output="spleen", value=211.4, voxels=70467)]),
    "segment with its mask": (
        context(model(SPLEEN), objects=(SEGMENTATION,)),
        [Result(output="spleen", value=211.4, voxels=70467, mean=118.25, mean_unit="[hnsf'U]")],
    ),
    "segment of an MR": (
        context(model(SPLEEN), objects=(SEGMENTATION,)),
        [Result(output="spleen", value=211.4, voxels=70467, mean=825.2354363, mean_unit="1")],
    ),
    "classification": (
        context(model(PNEUMONIA), status="final"),
        [Result(output="pneumonia", value=0.91, probabilities=(0.09, 0.91))],
    ),
    "several classes": (
        context(model(SPLICE, accepts=BASES), subject=None, inputs=(SEQUENCE,)),
        [Result(output="site", value=0.7, probabilities=(0.2, 0.7, 0.1))],
    ),
    "risk": (
        context(model(MORTALITY, accepts=STAY), inputs=(ENCOUNTER,), encounter="Encounter/e1"),
        [Result(output="mortality", value=0.3125)],
    ),
    "risk without horizon": (
        context(model(replace(MORTALITY, horizon=None, threshold=None, calibrated=True), accepts=STAY)),
        [Result(output="mortality", value=1.0)],
    ),
    "out of scope": (context(model(PNEUMONIA)), [Result(output="pneumonia", out_of_scope="no chest in the image")]),
    "risk out of scope": (context(model(MORTALITY)), [Result(output="mortality", out_of_scope="a child")]),
    "explained": (
        context(model(PNEUMONIA, MORTALITY, DENSITY), objects=(HEAT_MAP,)),
        [
            Result(output="pneumonia", value=0.5, probabilities=(0.5, 0.5)),
            Result(output="mortality", value=0.5),
            Result(output="density", value=1.0),
        ],
    ),
    "risk that is explained": (
        context(model(MORTALITY, accepts=COMA_STAY), inputs=(ENCOUNTER,), encounter="Encounter/e1"),
        [Result(output="mortality", value=0.3125, contributions=MOVED)],
    ),
    "measure that is explained": (
        context(model(DENSITY, accepts=COMA_STAY)),
        [Result(output="density", value=1.0, contributions=MOVED[1:])],
    ),
    "variants": (
        context(SPLICE_MODEL, inputs=(variant_file(), SPECIMEN)),
        [effects_on(CALLED, replace(CALLED, ref="A", alt="ATTC", zygosity="hemizygous"), MITOCHONDRIAL)],
    ),
    "variants of nobody": (
        context(SPLICE_MODEL, subject=None, inputs=(variant_file("of nobody"),)),
        [effects_on(CALLED, BARE, build="GRCh37")],
    ),
    "no variant to report": (
        context(SPLICE_MODEL, inputs=(variant_file("nothing"),)),
        [effects_on(score=0.125)],
    ),
    "variants out of scope": (
        context(SPLICE_MODEL, inputs=(variant_file("out of scope"),)),
        [Result(output="splicing", out_of_scope="no variant in the regions wanted")],
    ),
    "sequence that is explained": (
        context(model(SPLICE, accepts=BASES), subject=None, inputs=(SEQUENCE,)),
        [Result(output="site", value=0.7, probabilities=(0.2, 0.7, 0.1), contributions=RESTS_ON, mutagenesis=MUTATED)],
    ),
    "by identifier": (
        context(model(SPLEEN), subject=Subject(patient_id=7, identifier=Identifier(system="urn:mrn", value="0815"))),
        [Result(output="spleen", value=1.0)],
    ),
    "several outputs": (
        context(model(SPLEEN, PNEUMONIA, DENSITY)),
        [
            Result(output="spleen", value=0.0),
            Result(output="pneumonia", value=0.5, probabilities=(0.5, 0.5)),
            Result(output="density", value=1e-7),
        ],
    ),
}


def resources_of(kind: str) -> list[Outgoing]:
    """What is sent of one kind, the catalog first; no two kinds have an id in common."""
    job, results = KINDS[kind]
    apart = replace(job, input_key=f"{kind:k>64}")
    return [*catalog_resources(job.model), *result_resources(apart, results)]
