"""medflow: runs a hospital's models over its images, records and genomes, and writes the results back as FHIR."""

__version__ = "0.1.0"
