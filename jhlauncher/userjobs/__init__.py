"""User jobs: from a running server, jobs on systems with Slurm, and forwards to what they serve.

`requests` says what may be asked, `systems` where and by whom; `userjobs` carries it out; `watching` follows it.
"""
