"""FHIR R4: resources to records, results to resources, and the client that sends them."""
