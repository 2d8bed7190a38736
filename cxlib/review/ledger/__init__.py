"""From values of single images to tables, and to a verdict on every sentence of the review; without torch."""
