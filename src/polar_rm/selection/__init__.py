"""Selection of data by reward: best of n, shares, thresholds and quotas, out of scored rows, as rows for SFT or DPO."""
