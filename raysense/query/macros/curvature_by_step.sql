-- Curvature as a function of h, the step of the differences (--step-study), 1 / pixel values: mean over n samples of the mean normal curvature with its standard error, and of the magnitude of the normal curvature. A network with kinks such as ReLU has no curvature but that at a scale.
-- tables: curvature_steps, samples
CREATE OR REPLACE MACRO curvature_by_step() AS TABLE
SELECT
    scan, split, step, count(*) AS n, avg(mean_curvature) AS mean_curvature,
    stddev_samp(mean_curvature) / sqrt(count(*)) AS stderr,
    count(*) FILTER (mean_curvature < 0) / count(*) AS share_negative,
    avg(mean_magnitude) FILTER (isfinite(mean_magnitude)) AS mean_magnitude
FROM curvature_steps JOIN samples USING (scan, sample_id)
WHERE isfinite(mean_curvature)
GROUP BY ALL
ORDER BY scan, split, step;
