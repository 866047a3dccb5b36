"""From a call to its verdict, under all limits: connections, pace, circuit breaker, budget, retries.

In: a bitlink. Out: a `Verdict`, or RunStopping once the run ends. The metrics calls' aiohttp,
aiolimiter and tenacity are here; `cli.login`, `sandbox` and `storage.object_store` have uses of their own.
"""
