"""A fleet: many recipes built and verified by many machines, into one store.

    recipe ──▶ graph.py     Job, Task     estimate ▸ build ▸ verify in shards ▸ merge ▸ publish, as data
      ──▶ address.py                      every result named by the hash of what it depends on
      ──▶ tasks.py                        what a task does; a result that is there is not made again
      ──▶ runner.py                       which task next; one after another here, or
          cluster.py                      on the workers of dask.distributed
      ──▶ store.py ── places.py           any fsspec URL; whole results or none
      ──▶ account.py ── zoo.py            what is there, what failed and how to go on; the page over a store

The harness that verifies is handed in (`harness.py`).
"""
