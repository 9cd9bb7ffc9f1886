"""Cells of the table, artifacts, launching and the report.

Where a change belongs; of these, each imports from those above it alone::

    artifacts           what is expensive, made once and found again by its key
    cell                settings, data, split and name of a cell; what of the settings is part of its hash
    training            any network's training to its budget; ranks, threads
    generators, stages  what a cell has trained, each with its key
    run                 a cell from patches to result.json; choosing on validation patches; the commands train, evaluate
    judge, reproduce    many of them as jobs of launch, then gallery, report, sweep
"""
