"""Who computes where: processes of their own, and the workers of a run."""
