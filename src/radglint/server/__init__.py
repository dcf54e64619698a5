"""`radglint serve`: studies in by upload or from a PACS, questions as jobs, results in every format, over HTTP.

One process answers HTTP and owns the data base (`database`), the folder of studies (`folders`) and the queue (`jobs`:
`planning` says what is next, `in_work` holds what was sent, `outcomes` takes what comes back). A second one, spawned
by `model_process`, holds the model and everything that decodes files (`worker`); if it dies it is started again and
what it had in work is tried once more. `app` joins the routes, `run` starts it all.
"""
