"""The commands of `ryorin index`, a module a topic."""
