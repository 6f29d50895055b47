"""medflow's Prefect flows: orchestration, retries and names only; the work is in medflow.steps.

What goes through Prefect is names of sources, models and targets, and counts. Never a path, an array, or anything
about a patient.
"""
