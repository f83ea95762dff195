"""ClickHouse's HTTP interface over the embedded engine, for tests and trials. Not a server to run.

`sql` finds out what a statement is, `frames` (de)compresses bodies, `engine` runs statements,
`faults` are the hooks of failure tests, `web` speaks HTTP.
"""
