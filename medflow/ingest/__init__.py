"""Taking inputs into the store: read, validate, resolve the patient, write in bulk, and account for every input."""
