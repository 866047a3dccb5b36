"""From a call to its verdict, under all limits: connections, pace, circuit breaker, budget, retries.

In: a bitlink. Out: a `Verdict`, or RunStopping once the run ends. aiohttp, aiolimiter and tenacity appear here alone.
"""
