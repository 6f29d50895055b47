"""DICOM files to records, and series to volumes."""
