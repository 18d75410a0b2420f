"""What the weights of heads say: copying, composition, words in and words out."""
