"""From values of single images to tables, verdicts and figures; without torch."""
