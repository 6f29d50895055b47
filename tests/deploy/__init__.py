"""What deploy/ holds: run where it can run here, and held against schemas and linters where it cannot."""
