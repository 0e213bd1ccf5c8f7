"""What the networks cost: measured, shown, and held against an earlier measurement."""
