"""One budget for a fleet: hosts that share limits and connections, in a Redis that they all reach.

In: Redis' address, an account. Out: a `Budget` as on one machine, counted by one script that Redis runs, by its clock.
"""
