"""One run, from its settings to its outcome.

In: a `Job` (`assembly` builds it from options), a `ShutdownSignal` that may end it, a `RunObserver` that is told of its
progress. Out: a `RunOutcome`, and a dataset with everything durable that was answered. `job.run` opens everything and
closes it; `harvest` makes the calls of the worklist; `committer` makes verdicts durable beside that; `abort_rules`
decides when going on is a waste of calls; `telemetry` keeps the progress for observer and manifest. A `row_stream` is a
run whose rows are read while it goes on.
"""
