"""What the model reads: 37 measurements by code, with the units it converts and the values it takes for real.

The codes and canonical units are those of the PhysioNet/CinC Challenge 2012 in LOINC. The valid ranges cut artefacts
(a temperature of -17.8 Cel, a pH of 735), not disease. Serum magnesium is left out on purpose: the challenge labels it
mmol/L, its values are those of mg/dL, and a unit that cannot be trusted must not reach a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

from medflow.plugin import LOINC, SNOMED, Channel, Coding, TimeSeriesInput

ICU_TYPE = "urn:physionet:challenge-2012:icu-type"
HOURS = 48

Aggregate = Literal["last", "mean", "min", "max", "sum", "count"]
PRESSURE = {"mm[Hg]": 1.0, "kPa": 7.50062}
ENZYME = {"U/L": 1.0, "[IU]/L": 1.0, "ukat/L": 60.0}
CELLS = {"10*3/uL": 1.0, "10*9/L": 1.0, "/uL": 1e-3, "/nL": 1.0}
TROPONIN = {"ug/L": 1.0, "ng/mL": 1.0, "ng/L": 1e-3, "pg/mL": 1e-3}
SALT = {"mmol/L": 1.0, "meq/L": 1.0}


def _channel(
    name: str,
    code: str,
    unit: str,
    valid: tuple[float, float],
    units: Mapping[str, float] | None = None,
    aggregate: Aggregate = "mean",
) -> Channel:
    return Channel(
        name=name,
        codes=(Coding(system=LOINC, code=code),),
        unit=unit,
        units=units or {unit: 1.0},
        valid_range=valid,
        aggregate=aggregate,
    )


CHANNELS = (
    _channel("Albumin", "1751-7", "g/dL", (0.5, 10), {"g/dL": 1.0, "g/L": 0.1}),
    _channel("ALP", "6768-6", "U/L", (1, 10_000), ENZYME),
    _channel("ALT", "1742-6", "U/L", (1, 50_000), ENZYME),
    _channel("AST", "1920-8", "U/L", (1, 50_000), ENZYME),
    _channel("Bilirubin", "1975-2", "mg/dL", (0, 100), {"mg/dL": 1.0, "umol/L": 1 / 17.104}),
    _channel("BUN", "3094-0", "mg/dL", (1, 400), {"mg/dL": 1.0, "mmol/L": 2.8011}),
    _channel("Cholesterol", "2093-3", "mg/dL", (10, 1_000), {"mg/dL": 1.0, "mmol/L": 38.67}),
    _channel("Creatinine", "2160-0", "mg/dL", (0.05, 50), {"mg/dL": 1.0, "umol/L": 1 / 88.42}),
    _channel("DiasABP", "76213-8", "mm[Hg]", (5, 200), PRESSURE),
    _channel("FiO2", "3150-6", "1", (0.2, 1.0), {"1": 1.0, "%": 0.01}),
    _channel("GCS", "9269-2", "{score}", (3, 15)),
    _channel("Glucose", "2345-7", "mg/dL", (5, 2_500), {"mg/dL": 1.0, "mmol/L": 18.016}),
    _channel("HCO3", "1963-8", "mmol/L", (1, 80), SALT),
    _channel("HCT", "4544-3", "%", (5, 80), {"%": 1.0, "L/L": 100.0}),
    _channel("HR", "8867-4", "/min", (10, 300), {"/min": 1.0, "{beats}/min": 1.0}),
    _channel("K", "2823-3", "mmol/L", (0.5, 20), SALT),
    _channel("Lactate", "2524-7", "mmol/L", (0.1, 50), {"mmol/L": 1.0, "mg/dL": 0.111}),
    _channel("MAP", "76214-6", "mm[Hg]", (10, 250), PRESSURE),
    Channel(
        name="MechVent", codes=(Coding(system=SNOMED, code="40617009"),), unit=None, valid_range=(0, 1), aggregate="max"
    ),
    _channel("Na", "2951-2", "mmol/L", (80, 220), SALT),
    _channel("NIDiasABP", "76535-4", "mm[Hg]", (5, 200), PRESSURE),
    _channel("NIMAP", "76536-2", "mm[Hg]", (10, 250), PRESSURE),
    _channel("NISysABP", "76534-7", "mm[Hg]", (20, 320), PRESSURE),
    _channel("PaCO2", "2019-8", "mm[Hg]", (5, 250), PRESSURE),
    _channel("PaO2", "2703-7", "mm[Hg]", (10, 760), PRESSURE),
    _channel("pH", "2744-1", "[pH]", (6.3, 8.2)),
    _channel("Platelets", "777-3", "10*3/uL", (1, 3_000), CELLS),
    _channel("RespRate", "9279-1", "/min", (1, 100), {"/min": 1.0, "{breaths}/min": 1.0}),
    _channel("SaO2", "2708-6", "%", (20, 100), {"%": 1.0, "1": 100.0}),
    _channel("SysABP", "76215-3", "mm[Hg]", (20, 320), PRESSURE),
    _channel("Temp", "8310-5", "Cel", (20, 45)),
    _channel("TroponinI", "10839-9", "ug/L", (0, 500), TROPONIN),
    _channel("TroponinT", "6598-7", "ug/L", (0, 500), TROPONIN),
    _channel("Urine", "9187-6", "mL", (0, 10_000), {"mL": 1.0, "L": 1_000.0}, "sum"),
    _channel("WBC", "6690-2", "10*3/uL", (0.05, 1_000), CELLS),
    _channel("Weight", "29463-7", "kg", (20, 400), {"kg": 1.0, "g": 1e-3, "[lb_av]": 0.453592}, "last"),
    _channel("Height", "8302-2", "cm", (100, 250), {"cm": 1.0, "m": 100.0, "[in_i]": 2.54}, "last"),
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
