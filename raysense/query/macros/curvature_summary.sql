-- Mean over samples of the boundary's mean_curvature, 1 / pixel values, with its standard error; positive where the region of the sample's class is convex (Fawzi et al. 2018 find it negative near images). share_uncertain of the n samples are within two of their own standard errors of 0; mean_largest and mean_smallest are of principal curvatures; hessian_asymmetry is the mean of that column of table boundary.
-- tables: boundary, samples
CREATE OR REPLACE MACRO curvature_summary() AS TABLE
WITH known AS (
    SELECT
        scan, split, method, step, curvature_stderr,
        CASE WHEN isfinite(mean_curvature) THEN mean_curvature END AS curvature,
        CASE WHEN isfinite(largest_curvature) THEN largest_curvature END AS largest,
        CASE WHEN isfinite(smallest_curvature) THEN smallest_curvature END AS smallest,
        CASE WHEN isfinite(hessian_asymmetry) THEN hessian_asymmetry END AS asymmetry
    FROM boundary JOIN samples USING (scan, sample_id)
    WHERE method IS NOT NULL
)
SELECT
    scan, split, method, step, count(curvature) AS n, avg(curvature) AS mean_curvature,
    stddev_samp(curvature) / sqrt(count(curvature)) AS stderr,
    quantile_cont(curvature, 0.5) AS median_curvature,
    count(*) FILTER (curvature < 0) / nullif(count(curvature), 0) AS share_negative,
    count(*) FILTER (abs(curvature) < 2 * curvature_stderr) / nullif(count(curvature), 0) AS share_uncertain,
    avg(largest) AS mean_largest, avg(smallest) AS mean_smallest, avg(asymmetry) AS hessian_asymmetry
FROM known
GROUP BY ALL
ORDER BY scan, split, method, step;
