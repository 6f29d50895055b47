"""What a bundle is declared as, by its metadata, the shipped codes and the user's map; what is missing is refused."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from pydicom.sr._concepts_dict import concepts

from medflow.errors import ConfigurationError, PluginBroken
from medflow.plugin import UnitKind
from medflow_monai.bundles.adding import check
from medflow_monai.bundles.codes import is_snomed
from medflow_monai.bundles.label_map import LabelMap, read_map
from medflow_monai.bundles.organs import organ_of

# Lateral structures are not among DICOM's codes, which say the side apart; these are SNOMED CT's.
LATERAL = {
    "18639004": "Left kidney",
    "9846003": "Right kidney",
    "44029006": "Left lung",
    "3341006": "Right lung",
    "41224006": "Lower lobe of left lung",
    "42400003": "Upper lobe of right lung",
    "266005": "Lower lobe of right lung",
    "44714003": "Upper lobe of left lung",
}


@pytest.fixture
def declared(zoo, tmp_path):
    """Declare a bundle of these outputs."""

    def run(meta, config=None, weights=None, **wishes):
        folder = tmp_path / "some_bundle"
        zoo.write_bundle(folder, config or zoo.spleen_config(), meta, weights or zoo.state())
        return check(folder, LabelMap.model_validate(wishes), trial=False)[0]

    return run


def organs(zoo, *labels: str):
    """The metadata and configuration of a segmentation of these labels."""
    named = dict(enumerate(("background", *labels)))
    config = zoo.spleen_config()
    config["network_def"] = zoo.UNET | {"out_channels": len(named)}
    network = zoo.UNet(**{key: value for key, value in config["network_def"].items() if key != "_target_"})
    meta = zoo.metadata(zoo.tensor("segmentation", num_channels=len(named), channel_def=named))
    return meta, config, zoo.state(network)


def test_the_declaration_of_a_public_bundle(zoo, declared):
    spec = declared(zoo.metadata(zoo.SPLEEN))

    assert (spec.name, spec.version, spec.title) == ("some-bundle", "0.5.9", "Spleen CT segmentation")
    assert spec.unit is UnitKind.SERIES
    [image], [segment] = spec.accepts, spec.outputs
    assert (image.modality, image.dimensions, image.name) == (("CT",), 3, "image")
    assert (segment.name, segment.body_site.code, segment.valid_ml[0]) == ("spleen", "78961009", 0)
    assert spec.card.intended_use == "This is an example, not to be used for diagnostic purposes"
    assert spec.card.metrics == {"mean_dice, as the bundle states it": "0.96"}
    assert "Apache License" in spec.card.licence


@pytest.mark.parametrize(
    ("label", "code"),
    [
        ("kidney_left", "18639004"),
        ("Right Kidney", "9846003"),
        ("lung_upper_lobe_left", "44714003"),
        ("vertebrae_L1", "66794005"),
        ("IVC", "64131007"),
        ("heart_ventricle_left", "87878005"),
        ("urinary_bladder", "89837001"),
    ],
)
def test_labels_of_public_bundles_are_known(label, code):
    assert organ_of(label).code.code == code


@pytest.mark.parametrize(
    "label", ["adrenal_gland_left", "liver tumor", "portal_vein_and_splenic_vein", "left ventricle"]
)
def test_what_is_not_exactly_known_is_not_guessed(label):
    assert organ_of(label) is None


def test_every_shipped_code_means_in_dicom_what_it_is_shipped_as():
    meanings: dict[str, set[str]] = {}
    for codes in concepts["SCT"].values():
        for code, (meaning, _) in codes.items():
            meanings.setdefault(code, set()).add(meaning)
    rows = json.loads((files("medflow_monai.bundles") / "organs.json").read_text())
    wrong = [
        row["display"]
        for row in rows
        if LATERAL.get(row["code"]) != row["display"] and row["display"] not in meanings.get(row["code"], ())
    ]
    assert wrong == []
    assert len({row["code"] for row in rows}) == len(rows)
    assert all(is_snomed(row["code"]) for row in rows)


@pytest.mark.parametrize("code", ["78961008", "7896100", "0078961009", "spleen", ""])
def test_a_mistyped_code_is_none(code):
    assert not is_snomed(code)


def test_labels_without_a_code_are_refused_with_what_to_write(zoo, declared):
    meta, config, weights = organs(zoo, "spleen", "blob", "thing")

    with pytest.raises(ConfigurationError, match="have no code, and medflow guesses none: blob, thing") as refused:
        declared(meta, config, weights)

    assert '"blob": {"code": "...", "display": "..."}' in refused.value.message
    assert set(refused.value.template["labels"]) == {"blob", "thing"}


def test_the_map_gives_codes_and_leaves_labels_out(zoo, declared):
    meta, config, weights = organs(zoo, "spleen", "liver tumor", "thing")
    tumor = {
        "code": "108369006",
        "display": "Tumor",
        "site": {"code": "10200004", "display": "Liver"},
        "category": {"code": "49755003", "display": "Morphologically Abnormal Structure"},
        "valid_ml": [0, 900],
    }

    spec = declared(meta, config, weights, labels={"liver tumor": tumor, "thing": None})

    assert [item.name for item in spec.outputs] == ["spleen", "liver-tumor"]
    found = spec.outputs[1]
    assert (found.body_site.code, found.property_type.code) == ("10200004", "108369006")
    assert (found.property_category.code, found.valid_ml) == ("49755003", (0, 900))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"spleen": "78961008"}, "is no SNOMED CT code"),
        ({"splen": "78961009"}, "labels that the bundle does not have: splen"),
        ({"spleen": None}, "every label of the bundle is left out"),
    ],
)
def test_a_map_that_is_wrong_is_refused(zoo, declared, labels, said):
    with pytest.raises(ConfigurationError, match=said):
        declared(zoo.metadata(zoo.SPLEEN), labels=labels)


def test_the_map_says_which_series_are_taken(zoo, declared):
    spec = declared(
        zoo.metadata(zoo.SPLEEN),
        name="spleen",
        title="Spleen",
        body_parts=["ABDOMEN"],
        excluded_descriptions=["scout"],
        slice_thickness_mm=[0.5, 5],
        contrast=True,
        min_slices=30,
        memory_mib=5000,
        card={"intended_use": "Trying it out."},
    )

    [image] = spec.accepts
    assert (image.body_parts, image.excluded_descriptions, image.contrast) == (("ABDOMEN",), ("scout",), True)
    assert (image.slice_thickness_mm, image.min_slices) == ((0.5, 5), 30)
    assert (spec.name, spec.title, spec.memory_mib) == ("spleen", "Spleen", 5000)
    assert spec.card.intended_use == "Trying it out."


def test_a_modality_that_dicom_does_not_know_is_asked_for(zoo, declared):
    meta = zoo.metadata(zoo.SPLEEN, zoo.tensor("magnitude", modality="none"))

    with pytest.raises(ConfigurationError, match="says 'none' where the modality stands"):
        declared(meta)


def test_several_channels_are_asked_for(zoo, declared):
    image = zoo.tensor("magnitude", modality="MR", num_channels=2, channel_def={"0": "T1", "1": "T2"})

    with pytest.raises(ConfigurationError, match=r"takes 2 channels \(T1, T2\)") as refused:
        declared(zoo.metadata(zoo.SPLEEN, image))

    assert set(refused.value.template["inputs"]) == {"T1", "T2"}


def test_channels_that_the_metadata_does_not_name_are_asked_for(zoo, declared):
    meta = zoo.metadata(zoo.tensor("segmentation", num_channels=2, channel_def={"0": "image"}))

    with pytest.raises(ConfigurationError, match="names 1 of 2 output channels"):
        declared(meta)


def test_a_classification_asks_for_the_codes_of_its_question_and_its_classes(zoo, declared):
    classes = zoo.tensor(
        "classes", type="probabilities", num_channels=2, spatial_shape=[1, 2], channel_def={0: "a", 1: "b"}
    )

    with pytest.raises(ConfigurationError, match="what it classifies has no code") as refused:
        declared(zoo.metadata(classes))

    assert set(refused.value.template) == {"code", "labels"}


def test_a_bundle_that_detects_is_refused(zoo, declared):
    boxes = {"boxes": zoo.tensor("points", type="object"), "labels": zoo.tensor("classes", type="object")}
    meta = zoo.metadata(zoo.SPLEEN)
    meta["network_data_format"]["outputs"] = boxes

    with pytest.raises(ConfigurationError, match="gives boxes, labels: medflow runs bundles that segment or classify"):
        declared(meta)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"is no MONAI bundle: it has no configs/metadata\.json"):
        check(tmp_path, LabelMap(), trial=False)


def test_metadata_that_lack_what_is_required_are_refused(zoo, declared):
    meta = zoo.metadata(zoo.SPLEEN)
    del meta["network_data_format"]

    with pytest.raises(ConfigurationError, match="has no 'network_data_format'"):
        declared(meta)


def test_a_map_with_an_unknown_field_is_refused_by_its_name(tmp_path):
    (tmp_path / "labels.json").write_text('{"label": {}}')

    with pytest.raises(ConfigurationError, match="label"):
        read_map(tmp_path / "labels.json")


def test_the_maps_in_the_documentation_are_maps():
    page = Path(__file__).parents[4] / "docs/users/bundles.md"
    blocks = re.findall(r"^```json\n(.*?)^```$", page.read_text(), re.M | re.S)

    assert len(blocks) == 2
    for block in blocks:
        LabelMap.model_validate_json(block)


def test_an_override_of_the_configuration_is_run(zoo, declared):
    with pytest.raises(PluginBroken, match=r"of its tensors \d+ have another shape \("):
        declared(zoo.metadata(zoo.SPLEEN), override={"network_def#channels": [4, 16]})
