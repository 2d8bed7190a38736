"""What a person looks at: figures, and two runs compared; without torch."""
