"""The command line for people and scripts: ``jhlauncher launch``, ``list``, ``show`` and so on.

Written on `jhlauncher.client` and nothing else.
"""
