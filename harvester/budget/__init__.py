"""May the next attempt be sent now? One SQLite file answers for all processes of a machine.

In: limits as requested, and what Bitly's responses reveal of its limits. Out: "counted, send it" or how long to wait
and why; the state of each window; forecasts.
"""
