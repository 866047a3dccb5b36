"""What people see of sums and runs: a report, with pictures and tables, and a table on a terminal.

In: outputs and their sums. Out: one self-contained HTML file, or lines of text. Vega-Lite (in vl-convert) draws, Jinja
fills in the report; what to show is decided here.
"""
