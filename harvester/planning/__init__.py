"""What a command would cost and when it would end, without a metrics call.

In: the jobs of a command. Out: a `Plan`. `planner` makes it, `group_pages` reads the links of groups for it, and
`plan_text` writes it for a person and for a program.
"""
