"""The one exception that loading a model raises for what a user can put right."""


class LoadError(ValueError):
    """A model cannot be loaded; the message is one or two plain sentences, the cause is kept."""
