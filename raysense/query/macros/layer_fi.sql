-- FI of every layer (target layer) over all samples, in the network's order: percentiles, mean of log10 FI over rows above 0, the fraction of rows at their bound (as fi_informative counts them), and the median Jacobian norm, which unlike FI changes with the scale of the weights.
-- tables: influence, layers
CREATE OR REPLACE MACRO layer_fi(tolerance := 1e-6) AS TABLE
WITH percentiles AS (
    SELECT
        scan, target, layer, objective, method,
        count(*) AS n,
        quantile_cont(fi, [0.50, 0.75, 0.95, 0.99, 1.00]) AS fi,
        avg(log10(fi)) FILTER (fi > 0 AND isfinite(fi)) AS mean_log10_fi,
        median(jacobian_norm) AS median_jacobian_norm
    FROM influence
    WHERE layer IS NOT NULL
    GROUP BY ALL
)
SELECT
    scan, objective, method, position, layer, p.n,
    fi[1] AS p50, fi[2] AS p75, fi[3] AS p95, fi[4] AS p99, fi[5] AS p100,
    mean_log10_fi, fraction_at_bound, median_jacobian_norm
FROM percentiles AS p
JOIN fi_informative(tolerance := tolerance) USING (scan, target, layer, objective, method)
LEFT JOIN layers USING (scan, layer)
ORDER BY scan, objective, method, position NULLS LAST, layer;
