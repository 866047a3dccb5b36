"""Where bytes lie: a local folder or an object store, behind one interface (`storage.Storage`).

In go names and bytes; out comes a promise: a file appears, is replaced and disappears as a whole, and durably. The
package knows nothing of Bitly, rows or datasets. `filesystem` has locks and synced writes, `sqlite` a durable database
file and its index, `scratch` what ends with the process, `location` what `--out` and `--work-dir` mean, `object_store`
the retries and errors of a store.
"""
