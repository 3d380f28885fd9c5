"""Who runs where and in which pages."""
