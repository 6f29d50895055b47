"""Units that hospitals use are converted to those that the model was trained in; what cannot be known is refused."""

from __future__ import annotations

import pytest

from medflow.timeseries import conversion_of
from medflow_risk.channels import CHANNELS

BY_NAME = {channel.name: channel for channel in CHANNELS}


@pytest.mark.parametrize(
    ("name", "value", "unit", "canonical"),
    [
        ("Bilirubin", 17.104, "umol/L", 1.0),
        ("BUN", 5.0, "mmol/L", 14.0055),
        ("Cholesterol", 5.0, "mmol/L", 193.35),
        ("Creatinine", 88.42, "umol/L", 1.0),
        ("Glucose", 5.5, "mmol/L", 99.088),
        ("Lactate", 9.008, "mg/dL", 1.0),
        ("ALT", 0.5, "ukat/L", 30.0),
        ("ALT", 30.0, "[IU]/L", 30.0),
        ("K", 4.1, "meq/L", 4.1),
        ("Platelets", 250.0, "10*9/L", 250.0),
        ("TroponinT", 14.0, "ng/L", 0.014),
        ("PaO2", 12.0, "kPa", 90.0074),
        ("FiO2", 40.0, "%", 0.4),
        ("HCT", 0.4, "L/L", 40.0),
        ("HR", 80.0, "{beats}/min", 80.0),
        ("Temp", 98.6, "[degF]", 37.0),
        ("Weight", 176.37, "[lb_av]", 80.0),
    ],
)
def test_usual_units_become_the_canonical_one(name: str, value: float, unit: str, canonical: float) -> None:
    found = conversion_of(BY_NAME[name], unit)

    assert found is not None
    assert found.slope * value + found.intercept == pytest.approx(canonical, rel=1e-3)


@pytest.mark.parametrize(("name", "unit"), [("Glucose", "meq/L"), ("Urine", "mL/h"), ("HR", "mm[Hg]"), ("GCS", "1")])
def test_other_units_are_refused(name: str, unit: str) -> None:
    assert conversion_of(BY_NAME[name], unit) is None
