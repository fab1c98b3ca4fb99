"""Settings of the launcher: docs/configuration.md has all, docs/policy.md what may be launched by whom."""

c = get_config()

c.Policy.images = ["quay.io/jupyter/*"]  # what ordinary users may launch
