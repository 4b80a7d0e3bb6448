"""Studies, each one function over the public API: scans, tables from SQL, a report.

Of Shu & Zhu (2019):

- `raysense.studies.outliers`: do FI, Jacobian norm and Cook's local influence find simulated outliers (Setup 1)?
- `raysense.studies.architectures`: how sensitive are networks, and their layers, to their weights (Setup 2)?
- `raysense.studies.train_test`: are networks more sensitive on the test set than where they were trained (Setup 3)?
- `raysense.studies.pixels`: which pixels are vulnerable, and does changing one change the prediction (Setup 4)?

Of others:

- `raysense.studies.semantic`: in how much of a semantic space do networks keep seeing a class (Hamdi & Ghanem 2020)?
- `raysense.studies.significance`: do class paths tell a network from one untrained, and from one that memorised shuffled
  labels (Khaitan & Banerjee 2026)?

The scripts in ``jobs/`` run them from a command line or as Ray jobs.
"""
