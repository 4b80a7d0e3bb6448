-- Principal curvatures by rank, 1 the largest of n = P - 1, over the samples of a split, 1 / pixel values: mean (which the slides of Fawzi et al. 2018 draw for 1000 images), standard error and percentiles; of whole spectra, or of both ends. asymmetry = mean + mean of the opposite rank n + 1 - rank: below 0 where negative curvatures are the greater ones.
-- tables: curvatures, samples
CREATE OR REPLACE MACRO curvature_profile() AS TABLE
WITH profile AS (
    SELECT
        scan, split, n, rank, count(*) AS n_samples, avg(curvature) AS mean,
        stddev_samp(curvature) / sqrt(count(*)) AS stderr,
        quantile_cont(curvature, [0.05, 0.25, 0.5, 0.75, 0.95]) AS p,
        avg(residual) FILTER (isfinite(residual)) AS mean_residual
    FROM curvatures JOIN samples USING (scan, sample_id)
    WHERE isfinite(curvature)
    GROUP BY ALL
)
SELECT
    a.scan, a.split, a.n, a.rank, a.n_samples, a.mean, a.stderr,
    a.p[1] AS p5, a.p[2] AS p25, a.p[3] AS p50, a.p[4] AS p75, a.p[5] AS p95,
    a.mean + b.mean AS asymmetry, a.mean_residual
FROM profile AS a
LEFT JOIN profile AS b ON b.scan = a.scan AND b.split = a.split AND b.n = a.n AND b.rank = a.n + 1 - a.rank
ORDER BY a.scan, a.split, a.n, a.rank;
