#!/bin/sh
# The environment is what the Hub has sent: where the Hub is, who may come in, and where to listen.
exec jupyterhub-singleuser
