"""The commands of `ryorin adapter`, one module a subject."""
