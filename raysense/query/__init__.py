"""Results in SQL: a DuckDB connection over the committed Arrow files of one or several scans.

- `raysense.query.connection`: `open_results`, the database of views and macros
- `raysense.query.overview`: the scans, classes, layers and semantic axes as tables
- `raysense.query.catalogue`: what the macros are called and what they say, without importing DuckDB
- `raysense.query.formats`: a result as table, CSV, JSON or Parquet
- `raysense.query.prompt`: the interactive prompt
- `raysense.query.export`: whole tables as files

Importing this package imports neither DuckDB nor Arrow, so that ``--help`` is instant.
"""

RESULT_FORMATS = ("table", "csv", "json", "parquet")
"""Formats in which a query's result can be written."""

EXPORT_FORMATS = ("parquet", "csv", "arrow")
"""Formats in which the tables of a scan can be exported."""

__all__ = ["EXPORT_FORMATS", "RESULT_FORMATS"]
