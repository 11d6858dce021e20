"""What is done with a model, one file a task: a frozen, checked request; its steps; its result.

Reading order: generate, source (what is given to be inverted or edited), invert, edit; steps is what they
share.
"""
