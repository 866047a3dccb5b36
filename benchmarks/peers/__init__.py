"""The same job as others do it: list, GET, a line a link. Each script runs in an environment of its own.

They do what their documentation shows first, with five connections where they have connections to set. What they do not
do (limits, resuming, one row a link) is not added to them. usage of each: SCRIPT LIST BASE_URL OUT
"""
