"""What this package raises beside plain ValueErrors."""


class VocabularyError(ValueError):
    """A tokenizer's file is missing, unreadable, or of another kind of encoder."""
