-- How curved the boundary near unseen samples is along the shared directions u_i, as in the slides of Fawzi et al. (2018): mean of rho_i over n samples with its standard error, and median; more than 1 is more curved than random directions. mean_curvature is signed, 1 / pixel values.
-- tables: direction_curvatures, samples
CREATE OR REPLACE MACRO shared_curvature() AS TABLE
SELECT
    scan, split, direction, count(*) AS n, avg(rho) AS mean_rho, stddev_samp(rho) / sqrt(count(*)) AS stderr,
    quantile_cont(rho, 0.5) AS median_rho, avg(curvature) FILTER (isfinite(curvature)) AS mean_curvature
FROM direction_curvatures JOIN samples USING (scan, sample_id)
WHERE isfinite(rho)
GROUP BY ALL
ORDER BY scan, split, direction;
