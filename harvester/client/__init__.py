"""From a call to its verdict, under all limits: pace, circuit breaker, budget, retries, and doubt.

In: a bitlink. Out: a `Verdict`, or RunStopping once the run ends. `client` makes calls and `attempt` sends one attempt
over `transport`; `held_verdicts` and `known_good` find out whom a bad answer concerns. aiolimiter and tenacity are
here.
"""
