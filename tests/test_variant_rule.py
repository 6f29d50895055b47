"""What a model of variants may declare."""

from dataclasses import replace

import pytest

from medflow.errors import PluginBroken
from medflow.plugin import Measure, UnitKind
from medflow.registry import check_spec, dump_spec, load_spec
from medflow.variant_rule import VARIANT, rule_of
from tests.models import GC, GcContent
from tests.variant_models import EFFECTS, GcShift

SPEC = GcShift.spec
(WINDOWS,) = SPEC.accepts
(SHIFT,) = SPEC.outputs
NUMBER = Measure(name="gc", code=GC, unit="1", valid_range=(0.0, 1.0))


def test_a_model_of_variants_is_admitted_and_comes_back_from_the_store_as_it_was():
    check_spec(SPEC)

    assert load_spec(dump_spec(SPEC)) == SPEC


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (replace(SPEC, unit=UnitKind.SEQUENCE), "variants are scored per sample"),
        (replace(SPEC, outputs=(NUMBER,)), "output gc is none"),
        (replace(SPEC, outputs=(SHIFT, NUMBER)), "output gc is none"),
        (replace(SPEC, outputs=(replace(SHIFT, effects=()),)), "names its effects"),
        (replace(SPEC, outputs=(replace(SHIFT, effects=EFFECTS[:1] * 2),)), "each once"),
        (replace(SPEC, outputs=(replace(SHIFT, valid_range=(1.0, -1.0)),)), "the least, then the largest"),
        (replace(SPEC, outputs=(replace(SHIFT, report_from=2.0),)), "can be 2"),
        (replace(SPEC, outputs=(replace(SHIFT, report_from=float("nan")),)), "can be nan"),
        (replace(SPEC, outputs=(replace(SHIFT, code=VARIANT),)), "give it a code of its own"),
        (replace(GcContent.spec, outputs=(replace(NUMBER, code=VARIANT),)), "give it a code of its own"),
        (replace(SPEC, accepts=(replace(WINDOWS, assembly=None),)), "names its assembly"),
        (replace(SPEC, accepts=(replace(WINDOWS, length=0),)), "1 to 1000000 bases"),
        (replace(SPEC, accepts=(replace(WINDOWS, max_allele=0),)), "max_allele"),
        (replace(SPEC, accepts=(replace(WINDOWS, min_quality=-1.0),)), "min_quality"),
        (replace(SPEC, accepts=(replace(WINDOWS, alphabet="ACGA"),)), "each letter once"),
        (replace(GcContent.spec, unit=UnitKind.SAMPLE), "stored sequences are scored per sequence"),
        (replace(GcContent.spec, outputs=(SHIFT,)), "no input has source 'variants'"),
    ],
)
def test_what_cannot_be_served_is_named(spec, said):
    with pytest.raises(PluginBroken, match=said):
        check_spec(spec)


def test_the_rule_says_which_variants_a_model_is_given():
    wanted = replace(WINDOWS, min_quality=30.0, passing_only=False, strand="forward")

    assert rule_of(WINDOWS) == (
        "variants of a sample on GRCh38, that FILTER passed, alleles up to 50 bases: windows of 20, either strand"
    )
    assert "whatever FILTER says, QUAL 30 or more" in rule_of(wanted) and rule_of(wanted).endswith("forward strand")
