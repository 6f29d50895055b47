"""What the model reads: 37 measurements by code, with their units and the values it takes for real.

The codes and canonical units are those of the PhysioNet/CinC Challenge 2012 in LOINC. The valid ranges cut artefacts
(a temperature of -17.8 Cel, a pH of 735), not disease. Serum magnesium is left out on purpose: the challenge labels it
mmol/L, its values are those of mg/dL, and a unit that cannot be trusted must not reach a patient.

Any UCUM unit of the same dimension is converted; here stands only what UCUM cannot know: molar masses, and that for
these ions an equivalent is a mole, and for these enzymes an international unit is an enzyme unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

from medflow.plugin import LOINC, SNOMED, Channel, Coding, TimeSeriesInput

ICU_TYPE = "urn:physionet:challenge-2012:icu-type"
HOURS = 48

Aggregate = Literal["last", "mean", "min", "max", "sum", "count"]
ENZYME = {"[IU]/L": 1.0, "[iU]/L": 1.0}
SALT = {"meq/L": 1.0}  # of one charge each


def _channel(
    name: str,
    code: str,
    unit: str,
    valid: tuple[float, float],
    *,
    units: Mapping[str, float] | None = None,
    molar: float | None = None,
    aggregate: Aggregate = "mean",
) -> Channel:
    return Channel(
        name=name,
        codes=(Coding(system=LOINC, code=code),),
        unit=unit,
        units=units or {},
        molar_mass_g_mol=molar,
        valid_range=valid,
        aggregate=aggregate,
    )


CHANNELS = (
    _channel("Albumin", "1751-7", "g/dL", (0.5, 10)),
    _channel("ALP", "6768-6", "U/L", (1, 10_000), units=ENZYME),
    _channel("ALT", "1742-6", "U/L", (1, 50_000), units=ENZYME),
    _channel("AST", "1920-8", "U/L", (1, 50_000), units=ENZYME),
    _channel("Bilirubin", "1975-2", "mg/dL", (0, 100), molar=584.66),
    _channel("BUN", "3094-0", "mg/dL", (1, 400), molar=28.013),  # the nitrogen of a mole of urea
    _channel("Cholesterol", "2093-3", "mg/dL", (10, 1_000), molar=386.65),
    _channel("Creatinine", "2160-0", "mg/dL", (0.05, 50), molar=113.12),
    _channel("DiasABP", "76213-8", "mm[Hg]", (5, 200)),
    _channel("FiO2", "3150-6", "1", (0.2, 1.0)),
    _channel("GCS", "9269-2", "{score}", (3, 15)),
    _channel("Glucose", "2345-7", "mg/dL", (5, 2_500), molar=180.156),
    _channel("HCO3", "1963-8", "mmol/L", (1, 80), units=SALT),
    _channel("HCT", "4544-3", "%", (5, 80)),
    _channel("HR", "8867-4", "/min", (10, 300)),
    _channel("K", "2823-3", "mmol/L", (0.5, 20), units=SALT),
    _channel("Lactate", "2524-7", "mmol/L", (0.1, 50), molar=90.08),
    _channel("MAP", "76214-6", "mm[Hg]", (10, 250)),
    Channel(
        name="MechVent", codes=(Coding(system=SNOMED, code="40617009"),), unit=None, valid_range=(0, 1), aggregate="max"
    ),
    _channel("Na", "2951-2", "mmol/L", (80, 220), units=SALT),
    _channel("NIDiasABP", "76535-4", "mm[Hg]", (5, 200)),
    _channel("NIMAP", "76536-2", "mm[Hg]", (10, 250)),
    _channel("NISysABP", "76534-7", "mm[Hg]", (20, 320)),
    _channel("PaCO2", "2019-8", "mm[Hg]", (5, 250)),
    _channel("PaO2", "2703-7", "mm[Hg]", (10, 760)),
    _channel("pH", "2744-1", "[pH]", (6.3, 8.2)),
    _channel("Platelets", "777-3", "10*3/uL", (1, 3_000)),
    _channel("RespRate", "9279-1", "/min", (1, 100)),
    _channel("SaO2", "2708-6", "%", (20, 100)),
    _channel("SysABP", "76215-3", "mm[Hg]", (20, 320)),
    _channel("Temp", "8310-5", "Cel", (20, 45)),
    _channel("TroponinI", "10839-9", "ug/L", (0, 500)),
    _channel("TroponinT", "6598-7", "ug/L", (0, 500)),
    _channel("Urine", "9187-6", "mL", (0, 10_000), aggregate="sum"),
    _channel("WBC", "6690-2", "10*3/uL", (0.05, 1_000)),
    _channel("Weight", "29463-7", "kg", (20, 400), aggregate="last"),
    _channel("Height", "8302-2", "cm", (100, 250), aggregate="last"),
)

# read on a logarithmic scale: right-skewed over decades
SKEWED = frozenset(
    ("ALP", "ALT", "AST", "Bilirubin", "BUN", "Creatinine", "Glucose", "Lactate", "PaO2", "Platelets")
    + ("TroponinI", "TroponinT", "Urine", "WBC")
)

STATICS = ("age", "sex", *(f"encounter-type:{ICU_TYPE}|{kind}" for kind in (1, 2, 3, 4)))

SERIES = TimeSeriesInput(
    channels=CHANNELS,
    window=timedelta(hours=HOURS),
    step=timedelta(hours=1),
    anchor="admission",
    statics=STATICS,
    min_measurements=10,
)
