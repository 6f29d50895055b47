"""A new version of a model from a site's own store: found, read, split, searched, fitted, measured and kept.

    cohort --> dataset --> splits --> search (fit) --> measure --> card --> a candidate in the store
    which      one array   by         Optuna           as it is            served by nobody until
    stays      each        patient                     served              `medflow models promote`

Whatever was known after a prediction time reaches no array, and no patient is in two parts. The test part is never
shown to the search. Its modules import scikit-learn and Optuna: import them where somebody trains, not before.
"""
