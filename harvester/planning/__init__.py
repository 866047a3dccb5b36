"""What a command would cost and when it would end, without a metrics call.

In: the jobs of a command. Out: a `Plan`. `planner` makes it, `endpoints` reads the limits of its facets for it,
`group_pages` the links of groups, and `plan_text` writes it for a person and for a program.
"""
