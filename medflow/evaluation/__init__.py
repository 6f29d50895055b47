"""How good a model has been: its live predictions against the outcomes that became known afterwards.

    predictions --+
                  +--> join --> cases --> metrics, bootstrap --> Evaluation --> Markdown, JSON, plots
    labels -------+
    or records of the store (observed)

Everything that leaves this package is an aggregate: no identifier, no single case, no group of fewer than 10.
Its modules import scikit-learn and matplotlib, so import them where an evaluation is asked for, not before.
"""
