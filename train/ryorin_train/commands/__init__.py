"""The commands of training, a module each where cli.py would grow a second subject."""
