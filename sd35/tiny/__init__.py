"""How the embedded model "tiny" is made: its pictures, its captions, its vocabulary, its training."""
