"""The directory of a scan, on a local disk or an object store: who writes it, what is committed, how it is read.

- `filesystems`, `patient_files`, `fsspec_files`, `retries`: any file system, and patience with its failures
- `files`: whole-file reads and atomic whole-file writes in a directory
- `lock`, `local_lock`: one driver per directory
- `naming`, `store`, `snapshot`, `reading`: units, their commits, and what readers see of them
- `manifests`, `parts`, `compaction`, `cleaning`: many small files gathered into few large ones
"""
