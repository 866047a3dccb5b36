"""What people and programs are shown of a run: events and progress go in, text, JSON and metrics come out.

`reporter` chooses what is written and `terminal`, `live_display` and `logs` write it; `summary` ends a run;
`run_status` and `status_text` describe a run from its manifest alone; `prometheus` exports the manifest's numbers.
"""
