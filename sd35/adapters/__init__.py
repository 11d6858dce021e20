"""What is added to a model or put in the place of a part of it, and taken back."""
