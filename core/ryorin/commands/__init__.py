"""The core's commands: one module a command. They parse words, call the core and print; they decide nothing."""
