"""The report: matplotlib figures and a self-contained HTML page.

`raysense.report.page.write_report` writes it. What is said about a scan comes from the module of this package that is
named like its kind (`raysense.report.influence`), so a new kind of scan adds one module: a function
``sections(database, scan) -> list[Section]``, and, where several scans can be compared, ``joint(database, scans)``.

Importing this package imports neither matplotlib nor DuckDB.
"""
