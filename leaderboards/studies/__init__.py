"""Studies that come with the package: `opdbench study leaderboards/studies/conflict.toml`."""
