"""Where budgets and connections are shared: by all runs of this machine, or by many hosts.

In: the options that name the place, and a run's account. Out: a `Home`, which opens budgets and connection slots.
"""
