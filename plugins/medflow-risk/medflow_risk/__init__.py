"""Risk models for medflow: in-hospital mortality from the first 48 hours in intensive care."""
