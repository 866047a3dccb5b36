"""bitly."""
