"""May the next attempt go now? One SQLite file answers for all processes of a machine.

In: limits as requested, Bitly's responses as far as they tell something of its limits. Out: "counted, send it" or how
long to wait and why; the state of each window; forecasts. Nothing here sleeps, sends, or knows asyncio.
"""
